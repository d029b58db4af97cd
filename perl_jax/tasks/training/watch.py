"""Decides, alike on all processes, when a run saves between evaluations."""

import time
from collections.abc import Callable

from perl_jax import hosts
from perl_jax.tasks.settings import shared

# Processes ask the first about this often, and at least every so many steps.
_ASK_SECONDS = 0.5
_MOST_STEPS = 10


class Watch:
  """Asked by the loop at each step whether to save.

  The clock is that of process 0. So that short steps do not wait for it, an
  answer holds for several of them: it says how many are not to ask.
  """

  def __init__(
    self, saving: shared.Saving, clock: Callable[[], float] = time.monotonic
  ):
    """Starts the time until the next checkpoint.

    Args:
      saving: When to save.
      clock: Returns seconds.
    """
    self._saving, self._clock = saving, clock
    self._saved = self._asked = clock()
    self._steps = 1  # since the last answer
    self._silent = 0  # steps that need not ask

  def save_is_due(self, step: int) -> bool:
    """Whether to save after this step; to be asked once at each of them."""
    every = self._saving.every_steps
    by_steps = every > 0 and step % every == 0
    if not self._saving.every_seconds:
      return by_steps
    if self._silent:
      self._silent, self._steps = self._silent - 1, self._steps + 1
      return by_steps
    answer, silent = hosts.decided_by_primary(self._decide).split()
    self._silent, self._steps = int(silent), 1
    return by_steps or answer == "save"

  def saved(self) -> None:
    """Starts the time until the next checkpoint anew."""
    self._saved = self._clock()

  def _decide(self) -> str:
    """ "ANSWER N", where the next N steps need not ask."""
    now = self._clock()
    seconds = (now - self._asked) / self._steps
    silent = min(_ASK_SECONDS / max(seconds, 1e-6), _MOST_STEPS)
    self._asked = now
    late = now - self._saved >= self._saving.every_seconds
    return f"{'save' if late else 'go'} {int(silent)}"

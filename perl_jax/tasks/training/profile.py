"""A trace of some steps of a run, for Perfetto and XProf."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
from absl import logging

from perl_jax import hosts
from perl_jax.planning import libtpu
from perl_jax.tasks.settings import shared

FOLDER = "profile"
# The phases of an iteration of RL, as a trace names them.
ROLLOUT, SCORING, LEARNING = "rollout", "scoring", "learning"
EVALUATION, CHECKPOINT = "evaluation", "checkpoint"
named = jax.profiler.TraceAnnotation


class Profile:
  """Traces the steps from a first to a last one, both included.

  It is a context, and what it has begun to trace is written at its end too.
  Names in a trace cost nothing where none is made.
  """

  def __init__(
    self, steps: tuple[int, int] | None = None, place: Path | None = None
  ):
    """Makes a profile; nothing is traced before the first step.

    Args:
      steps: (first, last); None traces nothing.
      place: Directory of the trace.
    """
    self._steps, self._place = steps, place
    self._tracing = False

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._stop()

  @contextlib.contextmanager
  def step(self, number: int) -> Iterator[None]:
    """A step, which has its number in the trace.

    Args:
      number: Number of the step, from 1.
    """
    first, last = self._steps or (0, 0)
    if first <= number <= last and not self._tracing:
      jax.profiler.start_trace(str(self._place), create_perfetto_trace=True)
      self._tracing = True
    with jax.profiler.StepTraceAnnotation("step", step_num=number):
      yield

  def made(self, number: int, state: Any) -> None:
    """Ends the trace after its last step.

    Args:
      number: Number of the step.
      state: The state after it, which is waited for.
    """
    if self._tracing and number >= self._steps[1]:
      jax.block_until_ready(state)
      self._stop()

  def _stop(self) -> None:
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
      logging.info("trace: %s", self._place)


def of(config: shared.Config, workdir: Path) -> Profile:
  """The profile of a stage, in its workdir; process 0 writes its own.

  Raises:
    ValueError: The profiler would end this process.
  """
  steps = shared.profiled_steps(config) if hosts.is_primary() else None
  if steps and libtpu.is_idle():
    platforms = "cuda,cpu" if jax.default_backend() == "gpu" else "cpu"
    raise ValueError(
      f"config.profile.steps={steps}: libtpu is loaded and there is no TPU,"
      " where JAX's profiler ends the process. Start with"
      f" JAX_PLATFORMS={platforms}, or trace nothing:"
      " --config.profile.steps='()'."
    )
  return Profile(steps, workdir / FOLDER)

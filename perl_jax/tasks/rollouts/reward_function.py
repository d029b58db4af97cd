"""The user's reward function: found by name, called, checked.

  --config.reward.fn=package.module:function
  --config.reward.fn=./file.py:function
  --config.reward.fn=http://localhost:8000/score

  def function(prompts, responses, rows):
    return [float(row["reference"] in text)
            for text, row in zip(responses, rows)]

It is called with a batch, on the process that holds the rows:

  prompts    the messages of each row, [{"role", "content"}, ...]
  responses  what the policy answered, text without the stop token
  rows       the data row of each as a dict: "id", "group", "prompt" and
             "reference" (the right or the human response, or None); with
             JSONL files also "fields", the whole line as an object

and returns as many finite numbers, in their order; or it is an `async def` that
does. It must accept any text as a response, and be deterministic, or a resumed
run differs from one that was never interrupted.

The address of a server is called by `endpoints.Scorer`, on process 0 alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from perl_jax import endpoints, hosts
from perl_jax.data import records
from perl_jax.tasks.rollouts import reward_values, user_code
from perl_jax.tasks.settings import reward_functions
from perl_jax.tasks.training import undone

_SIGNATURE = "function(prompts, responses, rows) -> a number for each response"


class Fields(NamedTuple):
  """Config fields that errors name.

  Attributes:
    name: The field that names functions.
    seconds: The field with the time of a call.
  """

  name: str
  seconds: str


REWARD = Fields(reward_functions.FIELD, "config.reward.timeout")


class RewardError(undone.UndoneStepError):
  """A reward function failed, took too long, or returned no rewards."""


class RewardFunction:
  """The user's function with the checks of its results.

  Attributes:
    name: "package.module:function", as in the config.
    on_primary: Whether process 0 alone calls it, for the rows of all.
  """

  def __init__(
    self,
    name: str,
    function: Callable[..., Any],
    *,
    seconds: float = 0.0,
    files: Sequence[str] = (),
    on_primary: bool = False,
    forget: Callable[[], None] = lambda: None,
    fields: Fields = REWARD,
  ):
    """Binds a function.

    Args:
      name: Name of the function, as the config has it.
      function: The user's function.
      seconds: Time that a call may take; 0 for any. See `time_limit`.
      files: Files of the user, for the line of an error.
      on_primary: Whether process 0 alone calls it.
      forget: Forgets results of earlier calls, where they are kept.
      fields: Config fields that errors name.
    """
    self.name, self.on_primary, self.forget = name, on_primary, forget
    self._named, self._time_field = f"{fields.name}={name!r}", fields.seconds
    self._function, self._seconds, self._files = function, seconds, files

  def __call__(
    self, rows: Sequence[records.Prompt], responses: Sequence[str]
  ) -> np.ndarray:
    """Rewards of the responses, `[n]` float32.

    Raises:
      RewardError: The function failed or took too long, or returned something
        else than one finite number for each response.
    """
    # Copies: what the function does to a row must not reach the data.
    copies = [dataclasses.asdict(row) for row in rows]
    prompts = [list(copy["prompt"]) for copy in copies]
    try:
      found = user_code.call(
        self._function,
        prompts,
        list(responses),
        copies,
        seconds=self._seconds,
        files=self._files,
      )
    except user_code.OutOfTimeError as late:
      raise RewardError(
        f"{self._named} took longer than {self._time_field}={self._seconds:g}"
        f" seconds{late} on {len(responses)} responses, to the rows"
        f" {_listed(rows)}. Raise {self._time_field} (0 is no limit), or mend"
        " the function; the same command then goes on."
      ) from late
    except user_code.UserCodeError as error:
      raise RewardError(
        f"{self._named} failed on {len(responses)} responses, the first of them"
        f" {reward_values.shown(responses[0])} to row {rows[0].id}: {error}. It"
        " must take any text as a response."
      ) from error
    try:
      return reward_values.checked(
        found, responses, [row.id for row in rows], _SIGNATURE
      )
    except ValueError as error:
      raise RewardError(f"{self._named} {error}") from error


def _listed(rows: Sequence[records.Prompt], most: int = 5) -> str:
  ids = list(dict.fromkeys(row.id for row in rows))
  more = f" and {len(ids) - most} more" if len(ids) > most else ""
  return ", ".join(ids[:most]) + more


def load(
  name: str, seconds: float = 0.0, fields: Fields = REWARD
) -> RewardFunction:
  """The function, or the server, of a name.

  Args:
    name: "package.module:function", "FILE.py:function", or the address of a
      server.
    seconds: Time that a call may take; 0 for any.
    fields: Config fields that errors name.

  Raises:
    ValueError: The name has another form, the module cannot be imported, or
      what it has under that name cannot be called.
  """
  if name.startswith(reward_functions.SERVERS):
    # A little later than the limit of the call, which knows the rows.
    scorer = endpoints.Scorer(name, seconds=seconds and seconds + 1.0)
    return RewardFunction(
      name,
      scorer,
      seconds=seconds,
      on_primary=True,
      forget=scorer.forget,
      fields=fields,
    )
  place, _, attribute = name.rpartition(":")
  if not (place and attribute):
    raise ValueError(
      f"{fields.name}={name!r} must be 'package.module:function', such as"
      " 'perl_jax.data.coffee_bar:gold_reward', './FILE.py:function', or the"
      " address of a server, 'http://HOST:PORT/PATH'."
    )
  found = user_code.find(name, fields.name, _SIGNATURE)
  return RewardFunction(
    name, found.function, seconds=seconds, files=found.files, fields=fields
  )


def load_and_try(
  name: str,
  rows: Sequence[records.Prompt],
  count: int = 2,
  seconds: float = 0.0,
  fields: Fields = REWARD,
) -> RewardFunction:
  """Loads the function and calls it twice with the references of a few rows.

  A function that fails is then refused before anything is computed, and the log
  warns of one that does not return the same again. A server is asked by process
  0 alone.

  Raises:
    ValueError: As `load` and `RewardFunction` do.
  """
  function = load(name, seconds, fields)
  if function.on_primary and not hosts.is_primary():
    return function
  tried = list(rows[:count])
  references = [row.reference or "" for row in tried]
  first = function(tried, references)
  function.forget()
  second = function(tried, references)
  for place in np.flatnonzero(first != second)[:1]:
    logging.warning(
      "%s=%r returned %s and then %s for the same response to row %s. A reward"
      " that is drawn at random is noise to the policy, and a run that is"
      " interrupted and resumed differs from one that was not.",
      fields.name,
      name,
      first[place],
      second[place],
      tried[place].id,
    )
  return function

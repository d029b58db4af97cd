"""The user's reward function: imported by name, checked, called.

  --config.reward.fn=package.module:function

  def function(prompts, responses, rows):
    return [float(row["reference"] in text)
            for text, row in zip(responses, rows)]

It is called with a batch, on the process that holds the rows:

  prompts    the messages of each row, [{"role", "content"}, ...]
  responses  what the policy answered, text without the stop token
  rows       the data row of each as a dict: "id", "group", "prompt" and
             "reference" (the right or the human response, or None); with
             JSONL files also "fields", the whole line as an object

and returns as many finite numbers, in their order. It must accept any text as a
response, and be deterministic, or a resumed run differs from one that was never
interrupted.
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from perl_jax.data import records

FIELD = "config.reward.fn"
_SIGNATURE = "function(prompts, responses, rows) -> a number for each response"


class RewardFunction:
  """The user's function with the checks of its results.

  Attributes:
    name: "package.module:function", as in the config.
  """

  def __init__(self, name: str, function: Callable[..., Any]):
    self.name = name
    self._function = function

  def __call__(
    self, rows: Sequence[records.Prompt], responses: Sequence[str]
  ) -> np.ndarray:
    """Rewards of the responses, `[n]` float32.

    Raises:
      ValueError: The function failed, or returned something else than one
        finite number for each response.
    """
    # Copies: what the function does to a row must not reach the data.
    copies = [dataclasses.asdict(row) for row in rows]
    prompts = [list(copy["prompt"]) for copy in copies]
    try:
      found = self._function(prompts, list(responses), copies)
    except Exception as error:
      raise ValueError(
        f"{FIELD}={self.name!r} failed on {len(responses)} responses, the first"
        f" of them {responses[0]!r} to row {rows[0].id}:"
        f" {type(error).__name__}: {error}. It must take any text as a"
        " response."
      ) from error
    return self._checked(found, rows, responses)

  def _checked(self, found, rows, responses) -> np.ndarray:
    try:
      values = np.asarray(found, np.float64)
    except (TypeError, ValueError):
      values = None
    if values is None or values.shape != (len(responses),):
      shape = "" if values is None else f" of shape {values.shape}"
      raise ValueError(
        f"{FIELD}={self.name!r} was given {len(responses)} responses and"
        f" returned {type(found).__name__}{shape}. It must return a list of"
        f" {len(responses)} numbers, in their order: {_SIGNATURE}."
      )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
      first = int(bad[0])
      raise ValueError(
        f"{FIELD}={self.name!r} returned {values[first]} for the response"
        f" {responses[first]!r} to row {rows[first].id}. Rewards must be"
        " finite: return a low number for a response that cannot be scored."
      )
    return values.astype(np.float32)


def load(name: str) -> RewardFunction:
  """The function of a name "package.module:function".

  Raises:
    ValueError: The name has another form, the module cannot be imported, or
      what it has under that name cannot be called.
  """
  module_name, colon, attribute = name.partition(":")
  if not (module_name and colon and attribute):
    raise ValueError(
      f"{FIELD}={name!r} must be 'package.module:function', such as"
      " 'perl_jax.data.coffee_bar:gold_reward'."
    )
  try:
    function: Any = importlib.import_module(module_name)
  except Exception as error:
    raise ValueError(
      f"{FIELD}={name!r}: importing {module_name} failed with"
      f" {type(error).__name__}: {error}. Start from the directory that holds"
      " it, put that on PYTHONPATH, or install the package."
    ) from error
  for part in attribute.split("."):
    if not hasattr(function, part):
      having = [n for n in vars(function) if callable(getattr(function, n))]
      named = ", ".join(n for n in having if not n.startswith("_"))
      raise ValueError(
        f"{FIELD}={name!r}: {module_name} has no {attribute!r}. It has"
        f" {named or 'no function'}."
      )
    function = getattr(function, part)
  if not callable(function):
    raise ValueError(
      f"{FIELD}={name!r} is a {type(function).__name__}, not a function. Name"
      f" one: {_SIGNATURE}."
    )
  return RewardFunction(name, function)


def load_and_try(
  name: str, rows: Sequence[records.Prompt], count: int = 2
) -> RewardFunction:
  """Loads the function and calls it with the references of a few rows.

  A function that fails is then refused before anything is computed.

  Raises:
    ValueError: As `load` and `RewardFunction` do.
  """
  function = load(name)
  tried = list(rows[:count])
  function(tried, [row.reference or "" for row in tried])
  return function

"""Judges that are Python: the checks of a data set, and the user's functions.

A function of scores is a reward function, see `rollouts.reward_function`; the
response with the higher score wins. One that has parameters named `a` and `b`
compares:

  def better(prompts, a, b, rows):
    return ["a" if len(x) < len(y) else "b" for x, y in zip(a, b)]

It is called with a batch of pairs, once in each order, and returns for each of
them "a", "b" or "tie"; or a number, above 0 for a and below 0 for b; or None
for no verdict. `prompts` and `rows` are those of reward functions.
"""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

from perl_jax.data import records
from perl_jax.data.sources import registry
from perl_jax.tasks.judging import pairs as pairs_lib
from perl_jax.tasks.judging import statistics
from perl_jax.tasks.judging.pairs import Both, Opinion, Pair
from perl_jax.tasks.rollouts import reward_function, reward_values, user_code
from perl_jax.tasks.settings import judge as settings
from perl_jax.tasks.settings import reward_functions

FIELDS = reward_function.Fields("config.judges", "config.timeout")
_SIGNATURE = (
  "function(prompts, responses, rows) -> a number for each response, or"
  " function(prompts, a, b, rows) -> 'a', 'b' or 'tie' for each pair"
)
_WORDS = {"a": statistics.WIN, "b": statistics.LOSS, "tie": statistics.TIE}


class CheckJudge:
  """A check of the data set: who passes it wins against who does not."""

  everywhere = False

  def __init__(self, label: str, check: str, source: str):
    """Binds the check.

    Args:
      label: What the metrics call it.
      check: Name of the check.
      source: Name of the data set.
    """
    self.label, self._check = label, check
    self._checker = registry.checker(source)

  def __call__(self, pairs: Sequence[Pair]) -> list[Both]:
    """Opinions of pairs; a prompt that the check is not for is a tie."""
    return [
      pairs_lib.by_scores(
        *(
          self._checker(pair.row, text).get(self._check, 0.0)
          for text in (pair.policy, pair.against)
        )
      )
      for pair in pairs
    ]


class ScoreJudge:
  """A function, or a server, that scores single responses.

  During a run it is asked at each evaluation, about other responses of the
  policy and the same ones beside them: the scores of those are kept.
  """

  everywhere = False

  def __init__(self, label: str, function: reward_function.RewardFunction):
    """Binds the function.

    Args:
      label: What the metrics call it.
      function: The function with the checks of its results.
    """
    self.label, self._function = label, function
    self._known: dict[tuple[str, str], float] = {}  # by id of the row and text

  def __call__(self, pairs: Sequence[Pair]) -> list[Both]:
    """Opinions of pairs."""
    keys = [(pair.row.id, pair.against) for pair in pairs]
    new = {k: pair.row for k, pair in zip(keys, pairs, strict=True)}
    new = {k: row for k, row in new.items() if k not in self._known}
    rows = [pair.row for pair in pairs] + list(new.values())
    texts = [pair.policy for pair in pairs] + [text for _, text in new]
    scores = self._function(rows, texts).tolist()
    self._known |= zip(new, scores[len(pairs) :], strict=True)
    against = [self._known[key] for key in keys]
    return list(map(pairs_lib.by_scores, scores[: len(pairs)], against))


class PairJudge:
  """A function of the user that compares two responses."""

  everywhere = False

  def __init__(
    self,
    label: str,
    name: str,
    function: Callable[..., Any],
    *,
    seconds: float = 0.0,
    files: Sequence[str] = (),
    fields: reward_function.Fields = FIELDS,
  ):
    """Binds the function.

    Args:
      label: What the metrics call it.
      name: Name of the function, as the config has it.
      function: The user's function.
      seconds: Time that a call may take; 0 for any.
      files: Files of the user, for the line of an error.
      fields: Config fields that errors name.
    """
    self.label, self._named = label, f"{fields.name}: {name!r}"
    self._time_field = fields.seconds
    self._function, self._seconds, self._files = function, seconds, files

  def __call__(self, pairs: Sequence[Pair]) -> list[Both]:
    """Opinions of pairs.

    Raises:
      ValueError: The function failed, took too long, or returned something
        else than a verdict for each pair.
    """
    rows = [pair.row for pair in pairs]
    policy = [pair.policy for pair in pairs]
    against = [pair.against for pair in pairs]
    shown_first = self._call(rows, policy, against)
    shown_last = self._call(rows, against, policy)
    return [
      (Opinion(*first), Opinion(-last[0], *last[1:]))
      for first, last in zip(shown_first, shown_last, strict=True)
    ]

  def _call(
    self, rows: Sequence[records.Prompt], a: list[str], b: list[str]
  ) -> list[tuple[float, str, str]]:
    """(verdict for a, reason, fault) of each pair."""
    copies = [dataclasses.asdict(row) for row in rows]
    prompts = [list(copy["prompt"]) for copy in copies]
    try:
      found = user_code.call(
        self._function, prompts, list(a), list(b), copies,
        seconds=self._seconds, files=self._files,
      )  # fmt: skip
    except user_code.OutOfTimeError as late:
      raise ValueError(
        f"{self._named} took longer than {self._time_field}={self._seconds:g}"
        f" seconds{late} on {len(a)} pairs. Raise {self._time_field} (0 is no"
        " limit), or mend the function; then run the same command again."
      ) from late
    except user_code.UserCodeError as error:
      raise ValueError(
        f"{self._named} failed on {len(a)} pairs, the first of them to row"
        f" {rows[0].id}: {error}. It must take any text as a response."
      ) from error
    if not isinstance(found, list | tuple) and not hasattr(found, "tolist"):
      raise self._wrong(f"returned {type(found).__name__}", len(a))
    found = found.tolist() if hasattr(found, "tolist") else list(found)
    if not isinstance(found, list) or len(found) != len(a):
      count = len(found) if isinstance(found, list) else 1
      raise self._wrong(f"returned {count} verdicts", len(a))
    return [
      self._verdict(value, row) for value, row in zip(found, rows, strict=True)
    ]

  def _verdict(self, value: Any, row: records.Prompt):
    shown = reward_values.shown(str(value))
    if value is None:
      return statistics.NONE, "None", pairs_lib.UNPARSABLE
    if isinstance(value, str) and value.strip().lower() in _WORDS:
      return _WORDS[value.strip().lower()], value, ""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number and not math.isnan(value):
      return float(value > 0) - float(value < 0), f"{value:.6g}", ""
    raise self._wrong(f"returned {shown} for row {row.id}", 1)

  def _wrong(self, what: str, count: int) -> ValueError:
    return ValueError(
      f"{self._named} was given {count} pair(s) and {what}. It must return a"
      " list with 'a', 'b' or 'tie' for each pair, in their order; or numbers,"
      " above 0 where a is better; or None for no verdict."
    )


def load(
  named: settings.Judge,
  rows: Sequence[records.Prompt],
  seconds: float,
  fields: reward_function.Fields = FIELDS,
) -> ScoreJudge | PairJudge:
  """The function of a name, tried on the references of a few rows.

  Args:
    named: The judge.
    rows: Rows to try it on; without any it is not called.
    seconds: Time of a call; 0 for any.
    fields: Config fields that errors name.

  Raises:
    ValueError: It cannot be found or called, or returns something else.
  """
  name = named.of
  if not name.startswith(reward_functions.SERVERS):
    found = user_code.find(name, fields.name, _SIGNATURE)
    if _compares(found.function):
      judge = PairJudge(
        named.label,
        name,
        found.function,
        seconds=seconds,
        files=found.files,
        fields=fields,
      )
      if rows:
        judge([Pair(row, row.reference or "", "") for row in rows[:2]])
      return judge
  if rows:
    function = reward_function.load_and_try(
      name, rows, seconds=seconds, fields=fields
    )
  else:
    function = reward_function.load(name, seconds, fields)
  return ScoreJudge(named.label, function)


def _compares(function: Callable[..., Any]) -> bool:
  """Whether a function has parameters named a and b."""
  try:
    parameters = inspect.signature(function).parameters
  except (TypeError, ValueError):
    return False
  return {"a", "b"} <= set(parameters)

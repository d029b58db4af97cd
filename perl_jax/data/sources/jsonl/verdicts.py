"""Two replies and which of them is better, as `chosen` and `rejected`.

Public data sets each have names of their own for it. Those that are read are in
`_FORMS`, as their authors describe them, and OpenAI's files for preference
fine-tuning; what a verdict of another data set means is not guessed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from perl_jax.data import unusable
from perl_jax.data.sources.jsonl import rated, summaries

Fields = dict[str, Any]

# Names for columns that are called otherwise: both replies, and the number of
# the better one.
NUMBERED = ("response_0", "response_1", "better_response_id")


class _Form(NamedTuple):
  """How a data set says which of two replies is better.

  Attributes:
    replies: The columns of both.
    verdicts: Columns that say it.
    better: Function of their values that returns 0 if the first reply is
      better, 1 if the second one is, and None if neither is.
    prompt: The column with what was asked, where it is not called a prompt.
    says: What the verdicts are, for errors.
  """

  replies: tuple[str, str]
  verdicts: tuple[str, ...]
  better: Callable[..., int | None]
  prompt: str = ""
  says: str = ""


def _number_of(first: int, second: int) -> Callable[[Any], int | None]:
  """Returns what reads a verdict that is the number of the better reply."""

  def better(verdict: Any) -> int | None:
    return {first: 0, second: 1}.get(rated.number(verdict))

  return better


def side_of(verdict: Any) -> int | None:
  """Reads a verdict "model_a" or "model_b"; all else prefers neither.

  A verdict may be the name of a column, too, in any case: "response_a".
  """
  plain = verdict.strip().lower() if isinstance(verdict, str) else ""
  who, _, side = plain.replace(" ", "_").rpartition("_")
  if who not in ("model", "response", "conversation") or side not in "ab":
    return None
  return "ab".index(side)


def _flags(first: Any, second: Any) -> int | None:
  """Reads a 0 or 1 for each reply; 1 of one alone says that it is better."""
  found = [rated.label_of(first), rated.label_of(second)]
  return found.index(1.0) if sorted(map(str, found)) == ["0.0", "1.0"] else None


def _strength(verdict: Any) -> int | None:
  """Reads a number, below 0 for the first reply and above 0 for the second."""
  strength = rated.number(verdict) or 0.0
  return None if strength == 0 else int(strength > 0)


def _scores(first: Any, second: Any) -> int | None:
  """Reads a score of each reply; the higher one is better."""
  scores = rated.number(first), rated.number(second)
  if None in scores or scores[0] == scores[1]:
    return None
  return int(scores[1] > scores[0])


_STRENGTH = "a number below 0 for the first and above 0 for the second"
_MODELS = "'model_a' or 'model_b'"
_FORMS = (
  # PKU-SafeRLHF
  _Form(NUMBERED[:2], NUMBERED[2:], _number_of(0, 1), "", "0 or 1"),
  # HelpSteer3: from -3, the first is much better, to 3
  _Form(
    ("response1", "response2"), ("overall_preference",), _strength, "context",
    _STRENGTH,
  ),
  # HelpSteer2-Preference: alike
  _Form(
    ("response_1", "response_2"), ("preference_strength",), _strength, "",
    _STRENGTH,
  ),
  # Chatbot Arena, as conversations and as texts
  _Form(
    ("conversation_a", "conversation_b"), ("winner",), side_of, "", _MODELS
  ),
  _Form(("response_a", "response_b"), ("winner",), side_of, "", _MODELS),
  _Form(
    ("response_a", "response_b"), ("winner_model_a", "winner_model_b"), _flags,
    "", "1 for one and 0 for the other",
  ),
  # SHP: 1 if A is preferred
  _Form(
    ("human_ref_A", "human_ref_B"), ("labels",), _number_of(1, 0), "history",
    "1 for the first or 0 for the second",
  ),
  # AlpacaFarm
  _Form(
    ("output_1", "output_2"), ("preference",), _number_of(1, 2), "", "1 or 2"
  ),
  # OpenAI's comparisons of summaries
  _Form(
    summaries.REPLIES, (summaries.VERDICT,), _number_of(0, 1), "", "0 or 1"
  ),
  # WebGPT comparisons
  _Form(
    ("answer_0", "answer_1"), ("score_0", "score_1"), _scores, "question",
    "two numbers, the higher one for the better reply",
  ),
)  # fmt: skip
_OUTPUTS = ("preferred_output", "non_preferred_output")


def decided(fields: Fields, where: str, kind: str) -> Fields:
  """Returns a row with its better reply as `chosen`, the other as `rejected`.

  A row that is in none of the known forms is returned as it is. Of prompts it
  does not matter which reply is better.

  Args:
    fields: The row.
    where: File and line, for errors.
    kind: The kind of record that is wanted.

  Raises:
    UnusableError: Neither reply is better.
    ValueError: Replies are counted from 1 where they should be from 0.
  """
  form = _form_of(fields)
  if form is None:
    return _of_outputs(fields)
  better = form.better(*(fields[name] for name in form.verdicts))
  if better is None and kind == "prompts":
    better = 0
  if better is None:
    _check_counted(fields, form, where)
    said = ", ".join(f"{name} {fields[name]!r}" for name in form.verdicts)
    raise unusable.UnusableError(
      f"{where}: neither {' nor '.join(form.replies)} is better: {said}. A"
      f" verdict is {form.says}.",
      "in which neither reply is better",
    )
  read = {*form.replies, *form.verdicts}
  found = rated.without(fields, read)
  if form.prompt and "prompt" not in found and form.prompt in found:
    asked = found.pop(form.prompt)
    if isinstance(asked, dict):
      asked = asked.get("full_text")
    found["prompt"] = asked
  return found | {
    "chosen": fields[form.replies[better]],
    "rejected": fields[form.replies[1 - better]],
  }


def _check_counted(fields: Fields, form: _Form, where: str) -> None:
  """Checks that the number of the better reply counts from 0.

  A file that counts from 1 would be read the wrong way round.
  """
  (name, *_) = form.verdicts
  if form.verdicts == NUMBERED[2:] and rated.number(fields[name]) == 2:
    first, second = form.replies
    raise ValueError(
      f"{where}: field {name!r}: is 2, but replies are counted from 0. Write 0"
      f" where {first} is better and 1 where {second} is."
    )


def _form_of(fields: Fields) -> _Form | None:
  if "chosen" in fields or "rejected" in fields:
    return None
  for form in _FORMS:
    if fields.keys() >= {*form.replies, *form.verdicts}:
      return form
  return None


def _of_outputs(fields: Fields) -> Fields:
  """Returns a row of OpenAI's preference files, whose `input` has messages."""
  asked = fields.get("input")
  outputs = [fields.get(name) for name in _OUTPUTS]
  if not isinstance(asked, dict) or None in outputs:
    return fields
  found = rated.without(fields, ("input", *_OUTPUTS))
  if asked.get("tools"):
    found["tools"] = asked["tools"]
  chosen, rejected = outputs
  return found | {
    "prompt": asked.get("messages"),
    "chosen": chosen,
    "rejected": rejected,
  }

"""What rows are, for the log, and how others could be made of them."""

import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from perl_jax.data.records import Message
from perl_jax.data.sources.jsonl import conversations, layouts, pairs, rated

Fields = dict[str, Any]

# Columns with the right answer to a prompt, the best first.
ANSWERS = ("answer", "ground_truth", "solution", "label")
# Names that make a shape, and what else people call what they name.
_OURS = ("prompt", "response", "completion", "chosen", "rejected", "label")
_OURS += ("messages", "conversations", "instruction")
# Fields beside which a text is no row of its own.
_ASKING = ("prompt", "instruction", *rated.RESPONSES)
_OTHERS = {
  **dict.fromkeys(("question", "query", "problem", "input"), "prompt"),
  **dict.fromkeys(("prompts", "inputs", "input_text"), "prompt"),
  **dict.fromkeys(("answer", "output", "reply", "solution"), "response"),
  **dict.fromkeys(
    ("target", "targets", "completions", "responses"), "response"
  ),
  **dict.fromkeys(("answers", "generation", "output_text"), "response"),
  **dict.fromkeys(("dialog", "dialogue", "chat", "turns"), "messages"),
  **dict.fromkeys(("preferred", "accepted", "winner", "win", "pos"), "chosen"),
  **dict.fromkeys(("dispreferred", "loser", "lose", "neg"), "rejected"),
  **dict.fromkeys(
    ("chosen_responses", "chosen_response", "response_chosen"), "chosen"
  ),
  **dict.fromkeys(
    ("text_chosen", "chosen_messages", "preferred_output"), "chosen"
  ),
  **dict.fromkeys(
    ("rejected_responses", "rejected_response", "response_rejected"), "rejected"
  ),
  **dict.fromkeys(
    ("text_rejected", "rejected_messages", "non_preferred_output"), "rejected"
  ),
}
# Fields with the one answer of a row.
_ANSWERED = (*rated.RESPONSES, "output", "messages", "conversations")
# Columns that may say which reply is better, by its letter or number.
_SIDES = ("winner", "loser", "preferred", "dispreferred", "accepted")
_SIDES += ("win", "lose", "pos", "neg")
_SIDE = re.compile(
  r"((model|response|assistant|answer|completion)[ _-]?)?[abcd0-9]|tie.*|both.*"
)
# Columns with what may have been asked besides the prompt.
_MORE = {name for name, ours in _OTHERS.items() if ours == "prompt"}
_MORE |= {"article", "document", "instruction", "passage", "persona", "prompt"}


def about(fields: Fields) -> str:
  """Returns the name of a row's shape, for the log."""
  if "chosen" in fields or "rejected" in fields:
    return _about_pair(fields)
  for name in ("conversations", "messages"):
    if isinstance(fields.get(name), str):
      return "conversations as JSON text"
    if isinstance(fields.get(name), list):
      sharegpt = any(isinstance(t, dict) and "from" in t for t in fields[name])
      form = "ShareGPT conversations" if sharegpt else "conversations"
      return form + (" with labels" if "label" in fields else "")
  if "text" in fields and fields.keys().isdisjoint(_ASKING):
    return "texts"
  if len(layouts.turns_of(fields)) > 1:
    return "several turns of a user"
  prompt = "Alpaca instruction" if layouts.is_alpaca(fields) else "prompt"
  if rated.replies_of(fields)[0]:
    return f"{prompt} and several replies with scores"
  answered = any(name in fields for name in (*rated.RESPONSES, "output"))
  found = ["response"] if answered else []
  found += ["label"] if answered and "label" in fields else []
  found += ["score"] if rated.score_of(fields) is not None else []
  if not answered:
    found = [name for name in ANSWERS if name in fields][:1]
  return " and ".join([prompt, *found])


def hint(
  fields: Fields,
  kind: str,
  margin: float | None = None,
  threshold: float | None = None,
  columns: Collection[str] = (),
) -> str:
  """Returns how records of a kind could be made of a row, "" if unknown.

  Args:
    fields: A row of which none is made.
    kind: The kind of record.
    margin: What the user states of pairs, see `forms.Reading`.
    threshold: What the user states of labels.
    columns: Names of the columns in the file.
  """
  if kind == "demonstrations":
    return _hint_for_demonstrations(fields, columns)
  if kind == "prompts":  # Only texts have none.
    return f" If a text is a prompt, say so: {option({'text': 'prompt'})}"
  if kind == "preferences":
    ours = suggested(fields, kind)
    names = {*ours.values(), *fields}
    if {*pairs.SIDES} <= names or {"messages", "rejected"} <= names:
      return f" {renamed(ours)}"
  scored = rated.replies_of(fields)[0] or rated.score_of(fields) is not None
  if kind == "preferences" and margin is None and scored:
    return (
      " Replies with scores become pairs where you say which difference counts:"
      " --config.data.margin=1"
    )
  if kind == "labelled" and threshold is None and scored:
    return (
      " Replies with scores become labelled where you say from which score on"
      " one is good: --config.data.threshold=0.5"
    )
  if scored or fields.keys().isdisjoint(_ANSWERED):
    return ""
  stated = margin if kind == "preferences" else threshold
  for name, value in fields.items():
    if isinstance(value, bool) and kind == "labelled":
      return f" {renamed({name: 'label'})}"
    if isinstance(value, (int, float)) and stated is not None:
      return f" No column is called a score. {renamed({name: 'score'})}"
  return ""


def example(kind: str) -> str:
  """Returns how columns get the names that a kind needs, as a sentence."""
  needed = {"preferences": pairs.SIDES, "labelled": ("response", "label")}
  names = needed.get(kind, ("prompt", "response"))
  return f" {renamed({f'YOUR_{name.upper()}': name for name in names})}"


def _hint_for_demonstrations(fields: Fields, columns: Collection[str]) -> str:
  if "chosen" in fields and isinstance(fields.get("messages"), list):
    return (
      " To learn its `messages`, leave the pair out:"
      " --config.data.ignore=\"('chosen', 'rejected')\""
    )
  chosen = fields.get("chosen") if {*pairs.SIDES} <= {*columns} else None
  whole = isinstance(chosen, list) and len(chosen) > 1
  if chosen and not pairs.is_many(fields) and (whole or "prompt" in fields):
    ours = "messages" if whole else "response"
    return (
      " To learn its chosen replies, leave the others out:"
      f" {option({'chosen': ours})} --config.data.ignore=\"('rejected',)\""
    )
  for name in ANSWERS[:-1]:
    if isinstance(fields.get(name), str):
      return f" {renamed({name: 'response'})}"
  ours = suggested(fields)
  if "response" in ours.values():
    return f" {renamed(ours)}"
  return ""


def unseen(
  fields: Fields, names: Iterable[str], prompt: Sequence[Message]
) -> set[str]:
  """Returns the columns that may have been asked, and are not in the prompt.

  Args:
    fields: A row with our names.
    names: The columns of it that are not read.
    prompt: The prompt that is made of the row.
  """
  said = "\n".join(message["content"] for message in prompt)
  return {
    name
    for name in _MORE.intersection(names)
    if isinstance(text := fields.get(name), str)
    and text.strip()
    and text.strip() not in said
  }


def renamed(columns: Mapping[str, str]) -> str:
  """Returns how columns get our names, as a sentence with the option."""
  return f"Columns get our names with {option(columns)}."


def option(columns: Mapping[str, str]) -> str:
  """Returns the option that gives columns our names."""
  text = shlex.quote(json.dumps(columns, ensure_ascii=False))
  return f"--config.data.columns={text}"


def suggested(fields: Fields, kind: str = "") -> dict[str, str]:
  """Returns our names of columns that are known under others; {} of none.

  The names of columns are compared without case and white space around them.

  Args:
    fields: A row.
    kind: The kind of record that is wanted. Of prompts it is the prompt alone:
      a response would be taken for the right answer.
  """
  taken = {*fields}
  found: dict[str, str] = {}
  for column in fields:
    plain = column.strip().lower()
    name = plain if plain in _OURS else _OTHERS.get(plain)
    if kind == "prompts" and "prompt" in (*found.values(), *fields):
      break
    if plain in _SIDES and _is_side(fields[column]):
      continue
    if name and column not in _OURS and name not in taken:
      if not _may_be(name, fields[column]):
        continue
      found[column] = name
      taken.add(name)
  return found


def answers_in(fields: Fields) -> dict[str, str]:
  """Returns our names of columns that may be what follows a prompt."""
  return {k: v for k, v in suggested(fields).items() if v in pairs.REPLIES}


def conversation_in(fields: Fields) -> dict[str, str]:
  """Returns our name of the first column that is a conversation; {} of none.

  It is a prompt if no answer ends it.
  """
  for column, value in fields.items():
    if conversations.is_talk(value):
      answered = layouts.is_answered(conversations.of(value))
      return {column: "messages" if answered else "prompt"}
  return {}


def _may_be(name: str, value: Any) -> bool:
  """Whether a value may be what our name says: a text is no conversation.

  A list of texts is no one response.
  """
  if name == "messages" and isinstance(value, str):
    return conversations.is_talk(value)
  if name == "response" and isinstance(value, list):
    return conversations.is_talk(value)
  return True


def _is_side(value: Any) -> bool:
  """Whether a value says which reply is better, and is none itself."""
  return isinstance(value, str) and bool(_SIDE.fullmatch(value.strip().lower()))


def _about_pair(fields: Fields) -> str:
  if pairs.is_many(fields):
    return "lists of chosen and rejected replies"
  prompt = "a prompt and " if "prompt" in fields else ""
  sides = [fields.get(side) for side in pairs.SIDES]
  if layouts.is_alpaca(fields):
    prompt = "an Alpaca instruction and "
  if all(map(conversations.is_transcript, sides)):
    return "pairs of transcripts"
  if all(isinstance(side, str) for side in sides):
    return f"{prompt}pairs of texts" + ("" if prompt else " that begin alike")
  if all(isinstance(side, list) and len(side) == 1 for side in sides):
    return f"{prompt}pairs of messages"
  return f"{prompt}pairs of conversations"

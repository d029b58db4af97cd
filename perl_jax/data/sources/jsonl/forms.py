"""The rows that people have, as rows with the fields that `rows` reads.

A user's columns get our names first, and null fields are left out. Then:

  conversations   ShareGPT: a list of {"from", "value"}; becomes `messages`
  instruction     Alpaca, with `input`, `output`, `history`; becomes `prompt`
                  and `response`
  chosen,         texts, messages, conversations that repeat the prompt,
  rejected        transcripts, or lists of them; see `pairs`
  responses       replies with scores; become pairs or labels, see `rated`
  messages        that end with the user are a prompt for RL
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from perl_jax import names
from perl_jax.data.sources.jsonl import conversations, messages, pairs, rated

Fields = dict[str, Any]

# Columns with the right answer to a prompt, the best first.
ANSWERS = ("answer", "ground_truth", "solution", "label")
# Names that `columns` may map to.
KNOWN = (
  *("prompt", "response", "completion", "chosen", "rejected", "label"),
  *("messages", "conversations", "instruction", "input", "output", "history"),
  *("system", "tools", "score", "responses", "scores", "subset"),
  *ANSWERS[:-1],
)
_TALKS = ("prompt", "messages", "chosen", "rejected", *rated.RESPONSES)


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a user states about rows.

  Attributes:
    columns: Our name of each column that is called otherwise.
    margin: Least difference of two scores that makes a pair of their replies;
      None makes none.
    threshold: Score from which on a response is good; None if labels say it.
  """

  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  margin: float | None = None
  threshold: float | None = None

  def __post_init__(self) -> None:
    for column, name in self.columns.items():
      if name not in KNOWN:
        raise ValueError(
          f"data.columns maps {column!r} to {name!r}, which is no field of any"
          f" shape: they are {messages.listed(KNOWN)}."
          + names.did_you_mean(name, KNOWN)
        )
    targets = list(self.columns.values())
    twice = {name for name in targets if targets.count(name) > 1}
    if twice:
      raise ValueError(
        f"data.columns maps several columns to {messages.listed(sorted(twice))}"
        f": {dict(self.columns)}."
      )
    if self.margin is not None and not self.margin > 0:
      raise ValueError(f"data.margin={self.margin} must be more than 0.")


class Reader:
  """Turns the rows of one file, one by one.

  Attributes:
    about: What the first row is, for the log.
  """

  def __init__(self, kind: str, reading: Reading) -> None:
    """Takes the kind of record that is wanted, and what the user states."""
    self._kind = kind
    self._reading = reading
    self._missing = set(reading.columns)
    self._columns: set[str] = set()
    self._by_prompt = rated.ByPrompt()
    self.about = ""

  def rows(self, where: str, fields: Fields) -> Iterator[tuple[str, Fields]]:
    """Yields file and line, and the fields of `rows`, for a row of a file.

    There may be several of a row with several replies, and there is none yet of
    one that makes pairs with other rows.

    Raises:
      ValueError: A field is malformed.
    """
    fields = self._named(where, fields)
    if not self.about:
      self.about = about(fields)
    fields = _as_talk(fields)
    if self._kind != "labelled" and "label" in fields:
      fields = _without_answer(fields)
    if "chosen" in fields or "rejected" in fields:
      yield from self._pairs(where, fields)
      return
    replies, used = rated.replies_of(fields)
    if replies:
      yield from self._rated(where, rated.without(fields, used), replies)
      return
    score = rated.score_of(fields)
    if score is not None and "label" not in fields:
      if self._kind == "labelled" and self._reading.threshold is not None:
        fields = self._labelled(fields, score)
      elif self._kind == "preferences" and self._reading.margin is not None:
        self._by_prompt.add(where, fields, score)
        return
    elif self._reading.threshold is not None and self._kind == "labelled":
      value = fields.get("label")
      if isinstance(value, (int, float)) and not isinstance(value, bool):
        fields = self._labelled(fields, value)
    if self._kind == "prompts":
      fields = _as_prompt(fields)
    yield where, fields

  def rest(self) -> Iterator[tuple[str, Fields]]:
    """Yields what several rows make together, after the last row."""
    if self._reading.margin is not None:
      yield from self._by_prompt.pairs(self._reading.margin)

  def check_columns(self, file: str) -> None:
    """Checks that every column that the user names was there.

    Raises:
      ValueError: One was in no row.
    """
    for column in sorted(self._missing):
      raise ValueError(
        f"{file} has no column {column!r}, which data.columns names: it has"
        f" {messages.listed(sorted(self._columns))}."
        + names.did_you_mean(column, self._columns)
      )

  def _named(self, where: str, fields: Fields) -> Fields:
    """Returns a row with our names, and without fields that are null."""
    columns = self._reading.columns
    if not columns:
      return {k: v for k, v in fields.items() if v is not None}
    if self._missing:
      self._columns.update(fields)
      self._missing -= fields.keys()
    named: Fields = {}
    for column, value in fields.items():
      if value is None:
        continue
      name = columns.get(column, column)
      if name in named:
        raise ValueError(
          f"{where}: data.columns gives a second field the name {name!r}: this"
          f" row has {messages.listed(fields)}. Map {name!r} to another name"
          " too, or leave one out."
        )
      named[name] = value
    return named

  def _pairs(self, where: str, fields: Fields) -> Iterator[tuple[str, Fields]]:
    if "prompt" not in fields and "messages" in fields:
      talk = fields["messages"]
      if isinstance(talk, list) and not _is_answered(talk):
        fields = rated.without(fields, ("messages",)) | {"prompt": talk}
    if not pairs.is_many(fields):
      yield where, pairs.apart(fields, where)
      return
    for number, pair in enumerate(pairs.each(fields), 1):
      yield f"{where}#{number}", pairs.apart(pair, where)
      if self._kind == "prompts":
        return

  def _rated(
    self, where: str, fields: Fields, replies: list[rated.Reply]
  ) -> Iterator[tuple[str, Fields]]:
    """Yields pairs or labelled responses of several replies, or the prompt."""
    margin, threshold = self._reading.margin, self._reading.threshold
    if self._kind == "labelled" and threshold is not None:
      for number, (reply, score) in enumerate(replies, 1):
        labelled = self._labelled(fields | {"response": reply}, score)
        yield f"{where}#{number}", labelled
    elif self._kind == "preferences" and margin is not None:
      for number, (good, bad) in enumerate(rated.pairs(replies, margin), 1):
        pair = fields | {"chosen": good, "rejected": bad}
        yield f"{where}#{number}", pairs.apart(_as_talk(pair), where)
    else:
      yield where, fields

  def _labelled(self, fields: Fields, score: float) -> Fields:
    label = score >= self._reading.threshold
    return rated.without(fields, rated.SCORES) | {"label": label}


def about(fields: Fields) -> str:
  """Returns the name of a row's shape, for the log."""
  if "chosen" in fields or "rejected" in fields:
    return _about_pair(fields)
  for name in ("conversations", "messages"):
    if isinstance(fields.get(name), list):
      sharegpt = any(isinstance(t, dict) and "from" in t for t in fields[name])
      form = "ShareGPT conversations" if sharegpt else "conversations"
      return form + (" with labels" if "label" in fields else "")
  prompt = "Alpaca instruction" if _is_alpaca(fields) else "prompt"
  if rated.replies_of(fields)[0]:
    return f"{prompt} and several replies with scores"
  answered = any(name in fields for name in (*rated.RESPONSES, "output"))
  found = ["response"] if answered else []
  found += ["label"] if answered and "label" in fields else []
  found += ["score"] if rated.score_of(fields) is not None else []
  if not answered:
    found = [name for name in ANSWERS if name in fields][:1]
  return " and ".join([prompt, *found])


def hint(fields: Fields, kind: str, reading: Reading) -> str:
  """Returns how records of a kind could be made of a row, "" if unknown."""
  scored = rated.replies_of(fields)[0] or rated.score_of(fields) is not None
  if not scored:
    return ""
  if kind == "preferences" and reading.margin is None:
    return (
      " Replies with scores become pairs where you say which difference counts:"
      " --config.data.margin=1"
    )
  if kind == "labelled" and reading.threshold is None:
    return (
      " Replies with scores become labelled where you say from which score on"
      " one is good: --config.data.threshold=0.5"
    )
  return ""


def _about_pair(fields: Fields) -> str:
  if pairs.is_many(fields):
    return "lists of chosen and rejected replies"
  prompt = "a prompt and " if "prompt" in fields else ""
  sides = [fields.get(side) for side in pairs.SIDES]
  if all(map(conversations.is_transcript, sides)):
    return "pairs of transcripts"
  if all(isinstance(side, str) for side in sides):
    return f"{prompt}pairs of texts" + ("" if prompt else " that begin alike")
  if all(isinstance(side, list) and len(side) == 1 for side in sides):
    return f"{prompt}pairs of messages"
  return f"{prompt}pairs of conversations"


def _is_alpaca(fields: Fields) -> bool:
  return (
    "instruction" in fields
    and "prompt" not in fields
    and "messages" not in fields
  )


def _as_talk(fields: Fields) -> Fields:
  """Returns a row with its conversations as messages, in fields of `rows`."""
  for name in ("conversations", "conversation"):
    if name in fields and "messages" not in fields:
      talk = fields[name]
      fields = rated.without(fields, (name,))
      fields["prompt" if "chosen" in fields else "messages"] = talk
  if _is_alpaca(fields):
    fields = _of_alpaca(fields)
  changed = {}
  for name in _TALKS:
    value = fields.get(name)
    if isinstance(value, (list, dict)):
      talk = conversations.of(value)
      if talk is not value:
        changed[name] = talk
  talk = conversations.transcript(fields.get("prompt"))
  if talk:
    changed["prompt"] = talk
  return fields | changed if changed else fields


def _of_alpaca(fields: Fields) -> Fields:
  """Returns an Alpaca row as a prompt and a response."""
  instruction, given = fields["instruction"], fields.get("input", "")
  rest = rated.without(fields, ("instruction", "input", "output", "history"))
  if "output" in fields:
    rest["response"] = fields["output"]
  if not isinstance(instruction, str) or not isinstance(given, str):
    return rest | {"prompt": instruction}
  text = "\n\n".join(t for t in (instruction, given) if t.strip())
  history = fields.get("history")
  if not history:
    return rest | {"prompt": text}
  talk = [
    {"role": role, "content": said}
    for turn in history
    for role, said in zip(("user", "assistant"), turn, strict=False)
  ]
  return rest | {"prompt": [*talk, {"role": "user", "content": text}]}


def _without_answer(fields: Fields) -> Fields:
  """Returns a row without a label that is no rating, but the right answer."""
  answered = any(name in fields for name in rated.RESPONSES)
  talk = fields.get("messages")
  if answered or (isinstance(talk, list) and _is_answered(talk)):
    return fields
  return rated.without(fields, ("label",))


def _as_prompt(fields: Fields) -> Fields:
  """Returns a conversation that ends with the user as a prompt."""
  talk = fields.get("messages")
  if "prompt" in fields or not isinstance(talk, list) or _is_answered(talk):
    return fields
  return rated.without(fields, ("messages",)) | {"prompt": talk}


def _is_answered(talk: list[Any]) -> bool:
  """Whether the assistant has the last word."""
  return (
    bool(talk)
    and isinstance(talk[-1], dict)
    and talk[-1].get("role") == "assistant"
  )

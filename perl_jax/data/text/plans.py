"""Plans of a chat template: the tokens and text around the contents."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from perl_jax.data.text import rendering
from perl_jax.data.text.added_tokens import AddedTokens, Piece
from perl_jax.data.text.responses import Responses

# Matches `rendering.HOLE`.
_HOLE_PATTERN = re.compile(r"Xq7Zk(\d{5})kZ7qX")


_MOST_PLANS = 4096


class Plans:
  """Plans of one tokenizer's chat template; each is made once."""

  def __init__(
    self,
    text: rendering.Rendering,
    added: AddedTokens,
    responses: Responses | None = None,
    stop_id: int | None = None,
  ) -> None:
    """Prepares to make plans.

    Args:
      text: Renders messages.
      added: The added tokens of the tokenizer.
      responses: The texts of responses; None if they are not known yet, so that
        plans have contents in their place.
      stop_id: The token that ends an assistant turn.
    """
    self._text = text
    self._added = added
    self._responses = responses
    self._stop = ("token", stop_id)
    self._plans: dict[Any, tuple[Piece, ...]] = {}

  def of(
    self,
    roles: tuple[str, ...],
    generate: bool = True,
    more: tuple[str, ...] = (),
  ) -> tuple[Piece, ...]:
    """Renders `roles` with a hole for each content, and cuts up the text.

    Args:
      roles: Roles of the messages.
      generate: Whether a generation prompt follows them.
      more: What else the messages have; see `calls.holes`.

    Raises:
      NotRenderedError: The template leaves out a part of a tool call.
      ValueError: The template refuses the messages, or leaves one out.
    """
    key = (roles, generate, more if any(more) else ())
    if key in self._plans:
      return self._plans[key]
    holes = [
      {"role": role, "content": rendering.HOLE.format(i)}
      for i, role in enumerate(roles)
    ]
    if any(more):
      for hole, keys in zip(holes, more, strict=True):
        hole.update(json.loads(keys or "{}"))
      if len(self._plans) >= _MOST_PLANS:  # Calls and tools are of many kinds.
        self._plans.clear()
    text = self._text.render(holes, generate)
    pieces: list[Piece] = []
    for i, part in enumerate(_HOLE_PATTERN.split(text)):
      pieces += [("content", int(part))] if i % 2 else self._added.cut(part)
    plain = [
      i
      for i, role in enumerate(roles)
      if role == "assistant" and not (any(more) and more[i])
    ]
    pieces = self._with_responses(pieces, plain)
    forgotten = self._check_complete(pieces, holes)
    if any(more):
      pieces = self._with_calls(pieces, roles, more, forgotten)
    self._plans[key] = tuple(pieces)
    return self._plans[key]

  def _check_complete(
    self, pieces: Sequence[Piece], holes: Sequence[dict[str, Any]]
  ) -> set[int]:
    """Checks that every hole is written, but for thoughts of past turns.

    Templates may show a model only what it has thought since the last question.

    Returns:
      The numbers of the turns whose thoughts are left out.
    """
    written = {v for kind, v in pieces if kind in ("content", "response")}
    asked = [i for i, hole in enumerate(holes) if hole["role"] == "user"]
    forgotten = set()
    for i, hole in enumerate(holes):
      missing = _numbers(hole) - written
      if not missing:
        continue
      thoughts = {k: v for k, v in hole.items() if k in rendering.THOUGHTS}
      if missing <= _numbers(thoughts) and asked and i < asked[-1]:
        forgotten.add(i)
        continue
      if i in missing:
        raise ValueError(
          f"The chat template of {self._text.name} leaves out the content of a "
          f"message of role {hole['role']!r}. Leave such messages out, or"
          " change the template."
        )
      keys = sorted(hole.keys() - {"role", "content"})
      raise rendering.NotRenderedError(
        f"The chat template of {self._text.name} leaves out a part of"
        f" {keys} of a message of role {hole['role']!r}. Change the template,"
        f" or {rendering.without(keys)}."
      )
    return forgotten

  def _with_calls(
    self,
    pieces: Sequence[Piece],
    roles: tuple[str, ...],
    more: tuple[str, ...],
    forgotten: set[int],
  ) -> list[Piece]:
    """Turns what the template writes of turns with more than text into calls.

    That is done where it goes on from the prompt that the turn is given for,
    and has all of the turn.
    """
    pieces = list(pieces)
    for i in range(1, len(roles)):
      if roles[i] != "assistant" or not more[i] or i in forgotten:
        continue
      before = list(self.of(roles[:i], True, more[:i]))
      after = _behind(before, pieces)
      if after is None or self._stop not in after:
        continue
      end = after.index(self._stop)
      pieces = [*before, ("call", (i, tuple(after[:end]))), *after[end:]]
    return pieces

  def text_of(self, piece: Piece) -> str:
    """Returns the text of a piece; "" for a hole."""
    kind, value = piece
    if kind == "token":
      return self._added.texts[value]
    return value if kind == "text" else ""

  def _with_responses(
    self, pieces: Sequence[Piece], plain: Sequence[int]
  ) -> list[Piece]:
    """Turns `plain` contents and the space around them into responses.

    That is done where the template writes before them what a prompt ends with;
    other turns are not as a model writes them (Qwen3, DeepSeek-R1).
    """
    if self._responses is None:
      return list(pieces)
    lead, tail = self._responses.lead, self._responses.tail
    found: list[Piece] = []
    since = ""  # The text behind the last content.
    pieces = [*pieces, ("text", "")]
    for i, (kind, value) in enumerate(pieces[:-1]):
      if kind == "text" and tail and found and found[-1][0] == "response":
        continue  # The tail, which is part of the response.
      if kind != "content":
        since += self.text_of((kind, value))
        found.append((kind, value))
        continue
      if (
        value in plain
        and since.endswith(self._responses.opener + lead)
        and (not tail or pieces[i + 1] == ("text", tail))
      ):
        if lead:
          kept = str(found[-1][1])
          found[-1] = ("text", kept[: len(kept) - len(lead)])
        kind = "response"
      since = ""
      found.append((kind, value))
    return [piece for piece in found if piece != ("text", "")]


def _numbers(hole: dict[str, Any]) -> set[int]:
  """Returns the numbers of the holes in a message."""
  return {int(n) for n in _HOLE_PATTERN.findall(json.dumps(hole))}


def _behind(
  before: Sequence[Piece], pieces: Sequence[Piece]
) -> list[Piece] | None:
  """Returns what follows `before` in pieces that begin with it, else None."""
  count = len(before) - 1
  if count < 0 or list(pieces[:count]) != list(before[:count]):
    return None
  if len(pieces) <= count:
    return None
  (kind, value), (other, whole) = before[count], pieces[count]
  rest = list(pieces[count + 1 :])
  if (kind, value) == (other, whole):
    return rest
  if kind == other == "text" and whole.startswith(value):
    return [("text", whole[len(value) :]), *rest]
  return None


def flat(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
  """Returns pieces with those of calls in their place."""
  flat: list[Piece] = []
  for kind, value in pieces:
    flat += value[1] if kind == "call" else [(kind, value)]
  return tuple(flat)


def written(content: str) -> Iterator[str]:
  """Yields what a template may make of a content."""
  yield content
  for characters in (None, "\n"):
    yield content.strip(characters)
    yield content.lstrip(characters)
    yield content.rstrip(characters)
  yield json.dumps(content, ensure_ascii=False)[1:-1]  # `tojson`

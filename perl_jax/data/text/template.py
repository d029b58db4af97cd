"""Chat templates as plans: the tokens and text around the contents.

A chat template is rendered once per sequence of roles, with placeholders for
the contents, into a plan: special tokens, literal text and holes.
`tokenization` fills the holes. The filled plan is compared with what the
template renders for the real messages, so that templates which trim or rewrite
contents are noticed.
"""

import json
import re
from collections.abc import Iterator, Sequence

from perl_jax.data.records import Message
from perl_jax.data.text import rendering
from perl_jax.data.text.added_tokens import AddedTokens, Piece
from perl_jax.data.text.responses import Responses

# Matches `rendering.HOLE`.
_HOLE_PATTERN = re.compile(r"Xq7Zk(\d{5})kZ7qX")


class UnevenError(ValueError):
  """The template renders past assistant turns differently from new ones.

  A dialogue is then not the concatenation of a prompt and its responses.
  """


class ChatTemplate:
  """Plans of one tokenizer's chat template.

  Attributes:
    name: Name of the tokenizer in errors.
    added: The added tokens of the tokenizer.
    stop_ids: The token that ends an assistant turn, if the template has one,
      then the other tokens that end a response.
    bos_id: The BOS token if every prompt starts with it, or None.
    prefix: What the tokenizer puts before a plain text, such as BOS; empty
      with a chat template, which says itself what a prompt begins with.
    beginning: What every prompt begins with and no new turn does: BOS or
      nothing. Where BOS also opens the turns of a conversation it is no sign of
      a beginning.
    text: Renders messages.
    responses: Finds the texts of responses.
    ends_turn: Whether it writes the first of `stop_ids` after a response; also
      true without a template. Where it is false, a sampled response ends with a
      token that a conversation does not have.
    closing: What it writes after that token, or after the response if it writes
      none, when a conversation ends with the turn.
    opening: Literal text at the end of every prompt, which a response follows;
      "" if a prompt ends with an added token, and a line break if it ends with
      a content.
  """

  def __init__(
    self, tokenizer, name: str, more_stop_ids: Sequence[int]
  ) -> None:
    self.name = name
    self._tokenizer = tokenizer
    self.added = AddedTokens(tokenizer)
    self._plans: dict[tuple[tuple[str, ...], bool], tuple[Piece, ...]] = {}
    self._even: set[tuple[tuple[str, ...], int]] = set()
    self.bos_id: int | None = None
    self.prefix: tuple[int, ...] = ()
    self.beginning: tuple[int, ...] = ()
    self.text = rendering.Rendering(tokenizer, name)
    self.ends_turn = not self.text.exists
    self.closing: tuple[Piece, ...] = ()
    self.responses: Responses | None = None
    self.stop_ids = self._find_stops(more_stop_ids)
    stop = self.added.texts.get(self.stop_ids[0])
    self.responses = Responses(self.text, stop)
    # Earlier plans were made without the text around responses.
    self._plans.clear()
    self._find_start()
    self.opening, self._last_id = self._find_end()

  def fill(
    self, messages: Sequence[Message]
  ) -> tuple[tuple[Piece, ...], list[str]] | None:
    """Returns the plan of a prompt, and the contents as they are rendered.

    Returns:
      The pieces of the plan and the text for each hole; None if the template
      changes a content more than by trimming or quoting it, so that it cannot
      be found in the rendered text.

    Raises:
      ValueError: The template refuses the messages, or leaves one out.
    """
    pieces = self._plan(tuple(message["role"] for message in messages))
    rendered = self.text.render(messages, True)
    contents = [message["content"] for message in messages]
    position = 0
    for piece, following in zip(
      pieces, (*pieces[1:], ("text", "")), strict=True
    ):
      text = self._piece_text(piece)
      if piece[0] in ("content", "response"):
        content = messages[piece[1]]["content"]
        after = self._piece_text(following)
        for text in _written(content):
          if piece[0] == "response":
            text = self.responses.lead + text + self.responses.tail
          if rendered.startswith(text + after, position):
            break
        contents[piece[1]] = text
      if not rendered.startswith(text, position):
        return None
      position += len(text)
    return (pieces, contents) if position == len(rendered) else None

  def rewritten(self, messages: Sequence[Message]) -> tuple[Piece, ...]:
    """Returns the pieces of a prompt for which `fill` returns None.

    Contents are literal text in them.

    Raises:
      ValueError: The text of a content has a special token in it.
    """
    pieces = self.added.cut(self.text.render(messages, True))
    plan = self._plan(tuple(message["role"] for message in messages))
    for message in messages:
      for token in self.added.pattern.findall(message["content"]):
        id_ = self.added.ids[token]
        # Others, such as <think>, are tokens wherever they occur in a text.
        if id_ not in self.added.reserved and id_ not in self.stop_ids:
          continue
        piece = ("token", id_)
        if pieces.count(piece) <= plan.count(piece):
          continue  # The template leaves it out.
        raise ValueError(
          f"The chat template of {self.name} rewrites contents, and one of "
          f"role {message['role']!r} has the special token {token!r} "
          "in its text, which would become a real one. Remove it from the row."
        )
    return tuple(pieces)

  def check_even(self, roles: tuple[str, ...], first: int) -> None:
    """Checks that past assistant turns are rendered like new ones.

    Args:
      roles: Roles of the messages before the last target.
      first: Number of the first message that may be a target.

    Raises:
      UnevenError: A turn in the middle is not rendered as a prompt followed by
        a response and the stop token.
    """
    if (roles, first) in self._even:
      return
    pieces = self._plan(roles)
    for i in range(first, len(roles)):
      if roles[i] != "assistant":
        continue
      start = self._plan(roles[:i])
      expected = (*start, ("response", i), ("token", self.stop_ids[0]))
      if pieces[: len(expected)] != expected:
        raise UnevenError(
          f"The chat template of {self.name} renders an assistant turn in the "
          "middle of a dialogue differently from one that is being written, so "
          "its turns cannot be trained on in one pass. Give each assistant "
          "turn as a row of its own (prompt, response)."
        )
    self._even.add((roles, first))

  def tokens(self) -> set[int]:
    """Returns the special tokens around a single exchange."""
    plan = self._plan(("user",))
    if self.text.exists:
      plan += self._plan(("user", "assistant"), False)
    found = {value for kind, value in plan if kind == "token"}
    return found.union(self.prefix)

  def without_unsaid(self, pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Returns the pieces of a prompt as a conversation goes on from it."""
    kept, length = list(pieces), len(self.responses.unsaid)
    while length:
      text = self._piece_text(kept[-1])
      if len(text) > length:
        kept[-1] = ("text", text[:-length])
        break
      length -= len(text)
      kept.pop()
    return tuple(kept)

  def cut_response(self, turn: str) -> list[Piece]:
    """Cuts the text of a response into tokens and literal text.

    Tokens are those that the template writes or opens itself (thoughts).
    """
    stop = self.stop_ids[0] if self.ends_turn else None
    turn = self.added.strip(turn, self._last_id, stop)
    before = self.responses.before_answer
    if not turn.startswith(before):
      before = ""
    pieces = self.added.cut(before)
    markers = [m for m in self.responses.markers if m in self.added.ids]
    for kind, value in self.added.cut(turn[len(before) :], markers):
      if pieces and pieces[-1][0] == kind == "text":
        value = f"{pieces.pop()[1]}{value}"
      pieces.append((kind, value))
    return pieces

  # Rendering.

  def _plan(
    self, roles: tuple[str, ...], generate: bool = True
  ) -> tuple[Piece, ...]:
    """Renders `roles` with a hole for each content, and cuts up the text."""
    if (roles, generate) in self._plans:
      return self._plans[roles, generate]
    holes = [
      {"role": role, "content": rendering.HOLE.format(i)}
      for i, role in enumerate(roles)
    ]
    text = self.text.render(holes, generate)
    pieces: list[Piece] = []
    for i, part in enumerate(_HOLE_PATTERN.split(text)):
      pieces += [("content", int(part))] if i % 2 else self.added.cut(part)
    pieces = self._with_responses(pieces, roles)
    for i, role in enumerate(roles):
      if ("content", i) not in pieces and ("response", i) not in pieces:
        raise ValueError(
          f"The chat template of {self.name} leaves out the content of a "
          f"message of role {role!r}. Leave such messages out, or change the "
          "template."
        )
    self._plans[roles, generate] = tuple(pieces)
    return self._plans[roles, generate]

  def _with_responses(
    self, pieces: Sequence[Piece], roles: Sequence[str]
  ) -> list[Piece]:
    """Turns assistant contents and the space around them into responses.

    That is done where the template writes before them what a prompt ends with;
    other turns are not as a model writes them (Qwen3, DeepSeek-R1).
    """
    if self.responses is None:
      return list(pieces)
    lead, tail = self.responses.lead, self.responses.tail
    found: list[Piece] = []
    since = ""  # The text behind the last content.
    pieces = [*pieces, ("text", "")]
    for i, (kind, value) in enumerate(pieces[:-1]):
      if kind == "text" and tail and found and found[-1][0] == "response":
        continue  # The tail, which is part of the response.
      if kind != "content":
        since += self._piece_text((kind, value))
        found.append((kind, value))
        continue
      if (
        roles[value] == "assistant"
        and since.endswith(self.responses.opener + lead)
        and (not tail or pieces[i + 1] == ("text", tail))
      ):
        if lead:
          kept = str(found[-1][1])
          found[-1] = ("text", kept[: len(kept) - len(lead)])
        kind = "response"
      since = ""
      found.append((kind, value))
    return [piece for piece in found if piece != ("text", "")]

  def _piece_text(self, piece: Piece) -> str:
    kind, value = piece
    if kind == "token":
      return self.added.texts[value]
    return value if kind == "text" else ""

  # Properties of the template, found by rendering.

  def _find_stops(self, more_stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Returns the token that ends an assistant turn, eos and the others."""
    stops = []
    if self.text.exists:
      pieces = self._plan(("user", "assistant"), False)
      after = self.closing = pieces[pieces.index(("content", 1)) + 1 :]
      if after and after[0][0] == "text" and not after[0][1].strip():
        after = after[1:]
      if after and after[0][0] == "token":
        stops.append(after[0][1])
        self.ends_turn, self.closing = True, after[1:]
    stops += [self._tokenizer.eos_token_id, *more_stop_ids]
    stops = [id_ for id_ in stops if id_ is not None]
    if not stops:
      raise ValueError(
        f"The tokenizer {self.name} has no token that ends a response. Set "
        "eos_token in its tokenizer_config.json."
      )
    return tuple(dict.fromkeys(stops))

  def _find_start(self) -> None:
    """Finds what prompts begin with, as transformers encodes them.

    `apply_chat_template` encodes what the template renders and nothing else;
    what a tokenizer puts before a plain text is left out of conversations.
    """
    bos = self._tokenizer.bos_token_id
    if not self.text.exists:
      alone = self._tokenizer("a", add_special_tokens=False, verbose=False)
      ids = self._tokenizer("a", verbose=False)["input_ids"]
      self.prefix = self.beginning = _before(ids, alone["input_ids"])
      self.bos_id = bos if self.prefix[:1] == (bos,) else None
      return
    pieces = self._plan(("user",))
    if bos is None or pieces[0] != ("token", bos):
      return
    self.bos_id = bos
    after = pieces[pieces.index(("content", 0)) :]
    if ("token", bos) not in after or bos in self.stop_ids:
      self.beginning = (bos,)

  def _find_end(self) -> tuple[str, int | None]:
    """Returns `opening`, and the token at the end of prompts if it is ""."""
    last = (("content", 0), *self._plan(("user",)))[-2:]
    opening = {"text": last[1][1], "content": "\n"}.get(last[1][0], "")
    before = [value for kind, value in last if kind == "token"]
    if not before:
      return opening, None
    opening = self.added.strip(opening, before[-1], None)
    return opening, None if opening else before[-1]


def _before(ids: Sequence[int], part: Sequence[int]) -> tuple[int, ...]:
  """Returns what is before `part` in `ids`."""
  for start in range(len(ids) - len(part) + 1):
    if list(ids[start : start + len(part)]) == list(part):
      return tuple(ids[:start])
  return ()


def _written(content: str) -> Iterator[str]:
  """Yields what a template may make of a content."""
  yield content
  for characters in (None, "\n"):
    yield content.strip(characters)
    yield content.lstrip(characters)
    yield content.rstrip(characters)
  yield json.dumps(content, ensure_ascii=False)[1:-1]  # `tojson`

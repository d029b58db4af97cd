"""Chat templates as plans: the tokens and text around the contents.

A chat template is rendered once per sequence of roles, with placeholders for
the contents, into a plan: special tokens, literal text and holes.
`tokenization` fills the holes. The filled plan is compared with what the
template renders for the real messages, so that templates which trim or rewrite
contents are noticed.
"""

import json
import re
from collections.abc import Sequence

from perl_jax.data.records import Message
from perl_jax.data.text import rendering

# Matches `rendering.HOLE`.
_HOLE_PATTERN = re.compile(r"Xq7Zk(\d{5})kZ7qX")

# ("token", id) | ("text", literal) | ("content", index of the message) |
# ("response", index of an assistant message, with the space around it)
Piece = tuple[str, int | str]


class UnevenError(ValueError):
  """The template renders past assistant turns differently from new ones.

  A dialogue is then not the concatenation of a prompt and its responses.
  """


class ChatTemplate:
  """Plans of one tokenizer's chat template.

  Attributes:
    name: Name of the tokenizer in errors.
    special: Ids of the special tokens, by their text.
    special_pattern: Matches special tokens in text, the longest first.
    strips_left, strips_right: Ids of special tokens that remove the white
      space before or after them.
    stop_ids: The token that ends an assistant turn, if the template has one,
      then the other tokens that end a response.
    bos_id: The BOS token if every prompt starts with it, or None.
    prefix: What the tokenizer puts before a plain text, such as BOS; empty
      with a chat template, which says itself what a prompt begins with.
    beginning: What every prompt begins with and no new turn does: BOS or
      nothing. Where BOS also opens the turns of a conversation it is no sign of
      a beginning.
    text: Renders messages, and holds the white space around a response.
    ends_turn: Whether it writes the first of `stop_ids` after a response; also
      true without a template. Where it is false, a sampled response ends with a
      token that a conversation does not have.
    closing: What it writes after that token, or after the response if it writes
      none, when a conversation ends with the turn.
    opening: Literal text at the end of every prompt, which a response follows;
      "" if a prompt ends with a special token, and a line break if it ends with
      a content.
  """

  def __init__(
    self, tokenizer, name: str, more_stop_ids: Sequence[int]
  ) -> None:
    self.name = name
    self._tokenizer = tokenizer
    added = {
      id_: token
      for id_, token in tokenizer.added_tokens_decoder.items()
      # A template is not cut at added white space, which joins with contents.
      if token.special or token.content.strip()
    }
    self.special = {token.content: id_ for id_, token in added.items()}
    self._special_text = {id_: token.content for id_, token in added.items()}
    self._reserved = {id_ for id_, token in added.items() if token.special}
    self.strips_right = {id_ for id_, token in added.items() if token.rstrip}
    self.strips_left = {id_ for id_, token in added.items() if token.lstrip}
    longest_first = sorted(self.special, key=len, reverse=True)
    self.special_pattern = re.compile(
      f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})"
    )
    self._plans: dict[tuple[tuple[str, ...], bool], tuple[Piece, ...]] = {}
    self._even: set[tuple[tuple[str, ...], int]] = set()
    self.bos_id: int | None = None
    self.prefix: tuple[int, ...] = ()
    self.beginning: tuple[int, ...] = ()
    self.text = rendering.Rendering(tokenizer, name)
    self.ends_turn = not self.text.exists
    self.closing: tuple[Piece, ...] = ()
    self.stop_ids = self._find_stops(more_stop_ids)
    self.text.find_frame(self._special_text.get(self.stop_ids[0]))
    # Earlier plans were made without the text around responses.
    self._plans.clear()
    self._find_start()
    kind, value = self._plan(("user",))[-1]
    self.opening = {"text": value, "content": "\n"}.get(kind, "")

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
        for text in (content, content.strip(), _quoted(content)):
          if piece[0] == "response":
            text = self.text.lead + text + self.text.tail
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
    for message in messages:
      found = self.special_pattern.findall(message["content"])
      for token in found:
        id_ = self.special[token]
        # Others, such as <think>, are tokens wherever they occur in a text.
        if id_ not in self._reserved and id_ not in self.stop_ids:
          continue
        raise ValueError(
          f"The chat template of {self.name} rewrites contents, and one of "
          f"role {message['role']!r} has the special token {token!r} "
          "in its text, which would become a real one. Remove it from the row."
        )
    return tuple(self._literal(self.text.render(messages, True)))

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

  def split_closing(self) -> tuple[str, tuple[Piece, ...]]:
    """Returns the text at the beginning of `closing`, and the other pieces."""
    if self.closing and self.closing[0][0] == "text":
      return str(self.closing[0][1]), self.closing[1:]
    return "", self.closing

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
      pieces += [("content", int(part))] if i % 2 else self._literal(part)
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
    """Turns assistant contents and the space around them into responses."""
    found: list[Piece] = []
    pieces = [*pieces, ("text", "")]
    for i, (kind, value) in enumerate(pieces[:-1]):
      if (
        kind == "text"
        and found
        and found[-1][0] == "response"
        and self.text.tail
      ):
        continue  # The tail, which is part of the response.
      if kind != "content" or roles[value] != "assistant":
        found.append((kind, value))
        continue
      before = found[-1][1] if found and found[-1][0] == "text" else ""
      follows = not self.text.tail or pieces[i + 1] == ("text", self.text.tail)
      if not before.endswith(self.text.lead) or not follows:
        found.append((kind, value))
        continue
      if self.text.lead:
        found[-1] = ("text", before[: len(before) - len(self.text.lead)])
      found.append(("response", value))
    return [piece for piece in found if piece != ("text", "")]

  def _literal(self, text: str) -> list[Piece]:
    """Cuts text of a template into special tokens and literal text."""
    pieces: list[Piece] = []
    for i, part in enumerate(self.special_pattern.split(text)):
      if i % 2:
        pieces.append(("token", self.special[part]))
      elif part:
        pieces.append(("text", part))
    return pieces

  def _piece_text(self, piece: Piece) -> str:
    kind, value = piece
    if kind == "token":
      return self._special_text[value]
    return value if kind == "text" else ""

  # Properties of the template, found by rendering.

  def _find_stops(self, more_stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Returns the token that ends an assistant turn, eos and the others."""
    stops = []
    if self.text.exists:
      pieces = self._plan(("user", "assistant"), False)
      after = self.closing = pieces[pieces.index(("response", 1)) + 1 :]
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


def _before(ids: Sequence[int], part: Sequence[int]) -> tuple[int, ...]:
  """Returns what is before `part` in `ids`."""
  for start in range(len(ids) - len(part) + 1):
    if list(ids[start : start + len(part)]) == list(part):
      return tuple(ids[:start])
  return ()


def _quoted(text: str) -> str:
  """Returns what `tojson` of a chat template puts between the quotes."""
  return json.dumps(text, ensure_ascii=False)[1:-1]

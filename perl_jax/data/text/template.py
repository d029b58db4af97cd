"""Chat templates as plans: what stands around the contents of messages.

A chat template is rendered once per sequence of roles, with placeholders for
the contents, into a plan: special tokens, literal text and holes. `text.py`
fills the holes. What the plan gives is compared with what the template renders
for the real messages, so templates that trim or rewrite contents are noticed.
"""

import json
import re
from collections.abc import Sequence

from perl_jax.data.records import Message
from perl_jax.data.text import rendering

# A hole of a plan.
_HOLE_PATTERN = re.compile(r"Xq7Zk(\d{5})kZ7qX")

# ("token", id) | ("text", literal) | ("content", index of the message) |
# ("response", index of an assistant message, with the space around it)
Piece = tuple[str, int | str]


class UnevenError(ValueError):
  """A past assistant turn is not what a prompt and a response give."""


class ChatTemplate:
  """What one tokenizer's chat template puts around contents.

  Attributes:
    name: Names the tokenizer in errors.
    special: Id of each special token, by its text.
    special_pattern: Finds special tokens in text, the longest first.
    strips_left, strips_right: Ids of special tokens that swallow the white
      space before or after them.
    stop_ids: The token that ends an assistant turn, if the template has one,
      then the other tokens that end a response.
    bos_id: The token that starts every prompt, or None.
    prefix: BOS where the tokenizer, not the template, puts it; else empty.
    text: Renders; knows the white space around a response.
    opening: Literal text that every prompt ends with, so that a response comes
      after it; "" behind a special token. A line break stands for a content.
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
    self.text = rendering.Rendering(tokenizer, name)
    self.stop_ids = self._find_stops(more_stop_ids)
    self.text.find_frame(self._special_text.get(self.stop_ids[0]))
    # Plans made before those were known did not heed them.
    self._plans.clear()
    self._find_bos()
    kind, value = self._plan(("user",))[-1]
    self.opening = {"text": value, "content": "\n"}.get(kind, "")

  def fill(
    self, messages: Sequence[Message]
  ) -> tuple[tuple[Piece, ...], list[str]] | None:
    """The plan of a prompt, and the contents as the template has them.

    Returns None if the template does more to a content than to trim or quote
    it, so that it cannot be found in what is rendered.

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
    """Pieces of a prompt whose contents `fill` cannot find: all literal.

    Raises:
      ValueError: A content has a special token in its text.
    """
    for message in messages:
      found = self.special_pattern.findall(message["content"])
      for token in found:
        id_ = self.special[token]
        # Others, such as <think>, are tokens wherever they stand in a text.
        if id_ not in self._reserved and id_ not in self.stop_ids:
          continue
        raise ValueError(
          f"The chat template of {self.name} rewrites contents, and one of "
          f"role {message['role']!r} has the special token {token!r} "
          "in its text, which would become a real one. Remove it from the row."
        )
    return tuple(self._literal(self.text.render(messages, True)))

  def check_even(self, roles: tuple[str, ...], first: int) -> None:
    """Refuses templates that render past assistant turns in another way.

    Args:
      roles: Of the messages before the last target.
      first: Where targets begin.

    Raises:
      UnevenError: A turn in the middle is not what a prompt, a response and
        the stop token give.
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

  # Rendering.

  def _plan(
    self, roles: tuple[str, ...], generate: bool = True
  ) -> tuple[Piece, ...]:
    """What the template renders for `roles`, with holes for the contents."""
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
    if self.bos_id is not None:
      count = len(self.prefix) + pieces.count(("token", self.bos_id))
      # Where BOS is also the end of a turn it may well come again; and Llama 2
      # begins every turn of the user with it.
      allowed = {1, roles.count("user")}
      if count not in allowed and self.bos_id not in self.stop_ids:
        raise ValueError(
          f"The chat template of {self.name} gives {count} BOS tokens instead "
          f"of one for the roles {list(roles)}."
        )
    self._plans[roles, generate] = tuple(pieces)
    return self._plans[roles, generate]

  def _with_responses(
    self, pieces: Sequence[Piece], roles: Sequence[str]
  ) -> list[Piece]:
    """Makes responses of assistant contents, with the space around them."""
    found: list[Piece] = []
    pieces = [*pieces, ("text", "")]
    for i, (kind, value) in enumerate(pieces[:-1]):
      if (
        kind == "text"
        and found
        and found[-1][0] == "response"
        and self.text.tail
      ):
        continue  # It is the tail, which the response has now.
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
    """Cuts literal text of a template at its special tokens."""
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

  # What the template does, found out by trying.

  def _find_stops(self, more_stop_ids: Sequence[int]) -> tuple[int, ...]:
    """The end of an assistant turn in the template, then eos and the others."""
    stops = []
    if self.text.exists:
      pieces = self._plan(("user", "assistant"), False)
      after = pieces[pieces.index(("response", 1)) + 1 :]
      if after and after[0][0] == "text" and not after[0][1].strip():
        after = after[1:]
      if after and after[0][0] == "token":
        stops.append(after[0][1])
    stops += [self._tokenizer.eos_token_id, *more_stop_ids]
    stops = [id_ for id_ in stops if id_ is not None]
    if not stops:
      raise ValueError(
        f"The tokenizer {self.name} has no token that ends a response. Set "
        "eos_token in its tokenizer_config.json."
      )
    return tuple(dict.fromkeys(stops))

  def _find_bos(self) -> None:
    bos = self._tokenizer.bos_token_id
    if bos is None:
      return
    if self._plan(("user",))[0] == ("token", bos):
      self.bos_id = bos
    elif self._tokenizer("a", verbose=False)["input_ids"][:1] == [bos]:
      self.prefix = (bos,)
      self.bos_id = bos
    self._plans.clear()  # They did not count BOS.
    if self.text.exists:
      self._plan(("user", "assistant"), False)


def _quoted(text: str) -> str:
  """What `tojson` of a Hugging Face chat template puts between the quotes."""
  return json.dumps(text, ensure_ascii=False)[1:-1]

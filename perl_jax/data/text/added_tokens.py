"""Added tokens of a tokenizer: texts that become one token wherever they occur.

Control tokens such as BOS are among them, and so are others, such as <think>.
"""

import re
from collections.abc import Iterable
from typing import Any

# What `tokenizers` takes for white space beside a token that strips it.
_WHITE_SPACE = (
  "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
  + "".join(map(chr, range(0x2000, 0x200B)))
)

# ("token", id) | ("text", literal) | ("content", index of the message) |
# ("response", index of an assistant message, with the space around it) |
# ("call", (index of an assistant message, pieces of what it has besides text))
Piece = tuple[str, Any]


class AddedTokens:
  """The added tokens of one tokenizer.

  Attributes:
    ids: Ids of the tokens, by their text.
    texts: Texts of the tokens, by their id.
    reserved: Ids of those marked as special. In a text the others are tokens
      wherever they occur.
    strips_left, strips_right: Ids of tokens that remove the white space before
      or after them.
    pattern: Matches the tokens in text, the longest first.
  """

  def __init__(self, tokenizer: Any) -> None:
    added = {
      id_: token
      for id_, token in tokenizer.added_tokens_decoder.items()
      # A template is not cut at added white space, which joins with contents.
      if token.special or token.content.strip()
    }
    self.ids = {token.content: id_ for id_, token in added.items()}
    self.texts = {id_: token.content for id_, token in added.items()}
    self.reserved = {id_ for id_, token in added.items() if token.special}
    self.strips_right = {id_ for id_, token in added.items() if token.rstrip}
    self.strips_left = {id_ for id_, token in added.items() if token.lstrip}
    self.pattern = _any_of(self.ids)
    self._spaces = _any_of(
      token.content
      for token in tokenizer.added_tokens_decoder.values()
      if not token.content.strip() and not token.normalized
    )

  def cut(self, text: str, only: Iterable[str] | None = None) -> list[Piece]:
    """Cuts a text into tokens and literal text.

    Args:
      text: Text of a template or of a response.
      only: The texts that are tokens in it; None for those of all added tokens.
    """
    pattern = self.pattern if only is None else _any_of(only)
    pieces: list[Piece] = []
    for i, part in enumerate(pattern.split(text)):
      if i % 2:
        pieces.append(("token", self.ids[part]))
      elif part:
        pieces.append(("text", part))
    return pieces

  def strip(self, text: str, before: int | None, after: int | None) -> str:
    """Removes white space from a text as the tokens around it do.

    Args:
      text: Text between two tokens.
      before, after: Their ids; None if there is none.
    """
    # White space that is a token itself stays, and all text beyond it.
    if before in self.strips_right:
      first = self._spaces.search(text)
      start = len(text) - len(text.lstrip(_WHITE_SPACE))
      text = text[min(start, first.start()) if first else start :]
    if after in self.strips_left:
      end = max((m.end() for m in self._spaces.finditer(text)), default=0)
      text = text[:end] + text[end:].rstrip(_WHITE_SPACE)
    return text


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
  longest_first = sorted(texts, key=len, reverse=True)
  return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

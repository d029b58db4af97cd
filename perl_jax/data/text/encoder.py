"""Encodes pieces of text, in which special tokens stay text, and decodes."""

import copy
import json
from collections.abc import Callable, Sequence

from perl_jax.data.text import recent
from perl_jax.data.text.template import ChatTemplate, Piece

# Tells whether text at the beginning of a string is encoded differently from
# text after a special token.
_PROBE = "a b"
# What text is encoded behind where it would join with the end of a prompt.
_STARTS = ("\n", ".", "a")


class Encoder:
  """Encodes text with one tokenizer; equal texts are encoded once.

  Attributes:
    name: Name of the tokenizer in errors.
    rows: Rows of the model's embedding, or None.
  """

  def __init__(
    self, tokenizer, name: str, template: ChatTemplate, rows: int | None
  ) -> None:
    self.name = name
    self.rows = rows
    self._tokenizer = tokenizer
    self._template = template
    self._never_text = {*template.added.reserved, template.bos_id}
    self._never_text -= {tokenizer.unk_token_id}
    self._never_text |= {*template.stop_ids}
    self._anchor = self._find_anchor()
    self._inner = self._find_inner()
    self.text = recent.Recent(self._encode)
    self.response = recent.Recent(self._encode_response)
    self._check_template()
    # Whether a space is put before every text, also after a token of text.
    first, both = self._inner("a"), self._inner("a\n")
    self._puts_space = both[len(first) :] != self._inner("\n")

  def under(self, template: ChatTemplate) -> "Encoder":
    """Returns an encoder of the same texts for another variant of the template.

    Args:
      template: The chat template under other variables.
    """
    found = copy.copy(self)
    found._template = template
    found.response = recent.Recent(found._encode_response)
    found._check_template()
    return found

  def has_row(self, id_: int) -> bool:
    """Whether a token has a row in the model's embedding."""
    return self.rows is None or id_ < self.rows

  def check(self, ids: Sequence[int]) -> None:
    """Checks that the model has an embedding for every token.

    Raises:
      ValueError: It lacks one; names the token.
    """
    for id_ in ids:
      if not self.has_row(id_):
        raise ValueError(
          f"The token {self._token(id_)!r} of {self.name} has the id {id_}, "
          f"but the embedding of the model has {self.rows} rows. Remove it "
          "from the row. If most rows have such tokens, the tokenizer is "
          "another model's, or tokens were added without resizing the model."
        )

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of tokens that follow those of a prompt."""
    text = self._decode(ids)
    # Some tokenizers put a space after a token, and it stays in the text.
    before = self._template.responses.before_answer
    shown = self._decode(self.response(before))
    if shown and text.startswith(shown):
      return before + text[len(shown) :]
    return text

  def _decode(self, ids: Sequence[int]) -> str:
    before = [*self.text(self._template.opening())]
    if self._anchor is not None:
      before.insert(0, self._template.added.ids[self._anchor])
    return self._text([*before, *ids]).removeprefix(self._text(before))

  def _encode(self, text: str, first: bool = False) -> tuple[int, ...]:
    """Encodes text in which no special token is recognised.

    Unless it is the `first`, it is encoded as text after a special token.

    Raises:
      ValueError: The text is not Unicode, or gives a token that ends or begins
        a turn or has no embedding.
    """
    if not text:
      return ()
    _check_unicode(text)
    ids = self._outer(text) if first else self._inner(text)
    for id_ in self._never_text.intersection(ids):
      raise ValueError(
        f"The text has {self._token(id_)!r} in it, which {self.name} takes for"
        " a control token, such as the end or the beginning of a turn. Remove"
        " it."
      )
    self.check(ids)
    return tuple(ids)

  def whole(self, text: str) -> list[int]:
    """Encodes a text as the tokenizer does by itself, special tokens included.

    Raises:
      ValueError: The text is not Unicode, or has a token without an embedding.
    """
    _check_unicode(text)
    ids = self._tokenizer(text, verbose=False)["input_ids"]
    self.check(ids)
    return ids

  def _encode_response(
    self, turn: str, closed: bool = False
  ) -> tuple[int, ...]:
    """Encodes the text of a response, which follows the tokens of a prompt.

    Args:
      turn: The text.
      closed: Whether the prompt is without `Responses.unsaid`.
    """
    return self.turn(self._template.cut_response(turn, closed), closed)

  def turn(
    self, pieces: Sequence[Piece], closed: bool = False
  ) -> tuple[int, ...]:
    """Encodes tokens and literal text that follow the tokens of a prompt."""
    ids: list[int] = []
    tokens = [value if kind == "token" else None for kind, value in pieces]
    around = zip([None, *tokens], pieces, [*tokens[1:], None], strict=False)
    for i, (before, (kind, value), after) in enumerate(around):
      if kind == "token":
        self.check([value])
        ids.append(value)
        continue
      text = self._template.added.strip(value, before, after)
      start = self._template.opening(closed)
      ids += self.text(text) if i else self._encode_after(start, text)
    return tuple(ids)

  def after(self, said: str, text: str) -> tuple[int, ...]:
    """Encodes literal text that follows a response without a token between."""
    if not self._puts_space:
      return self.text(text)
    return self._encode_after(said, text)

  def _encode_after(self, start: str, text: str) -> tuple[int, ...]:
    """Encodes text that follows the literal text `start`.

    If the two would share a token, the text is encoded behind another one that
    it shares none with, since a sampled response also begins after the prompt's
    tokens. At the beginning of a string some tokenizers put a space before it.
    """
    for other in (start, *_STARTS):
      before, ids = self.text(other), self.text(other + text)
      if ids[: len(before)] == before:
        return ids[len(before) :]
    return self.text(text)

  def _check_template(self) -> None:
    needed = [*self._template.tokens(), self._template.stop_ids[0]]
    past = [id_ for id_ in needed if not self.has_row(id_)]
    if past:
      raise ValueError(
        f"With the tokenizer {self.name} every prompt has the token "
        f"{self._token(past[0])!r}, or a response ends with it. Its id is "
        f"{past[0]}, but the embedding of the model has {self.rows} rows. "
        "Tokens were added without resizing the model, or the tokenizer is "
        "another model's."
      )

  # The tokenizer.

  def _text(self, ids: list[int]) -> str:
    return self._tokenizer.decode(
      ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )

  def _token(self, id_: int) -> str:
    return self._tokenizer.convert_ids_to_tokens(id_)

  def _ids(self, text: str, **options) -> list[int]:
    return self._tokenizer(
      text, add_special_tokens=False, verbose=False, **options
    )["input_ids"]

  def _outer(self, text: str) -> list[int]:
    """Encodes text as at the beginning of a string."""
    return self._ids(text, split_special_tokens=True)

  def _find_anchor(self) -> str | None:
    """Returns a special token to put before text; None if none is needed.

    Some tokenizers put a space before text at the beginning of a string only.
    All pieces but the first follow a special token.
    """
    for token, id_ in self._template.added.ids.items():
      behind = self._ids(token + _PROBE)
      if behind[0] == id_:
        return None if behind[1:] == self._ids(_PROBE) else token
    return None

  def _find_inner(self) -> Callable[[str], list[int]]:
    """Returns a function that encodes text as after a special token."""
    if self._anchor is None:
      return self._outer
    backend = getattr(self._tokenizer, "backend_tokenizer", None)
    if backend is not None:
      pipeline = json.loads(backend.to_str())
      _never_put_spaces_first(pipeline)
      inner = type(backend).from_str(json.dumps(pipeline))
      inner.encode_special_tokens = True
      inner.no_truncation()
      inner.no_padding()
      if (
        inner.encode(_PROBE, add_special_tokens=False).ids
        == self._ids(self._anchor + _PROBE)[1:]
      ):
        return lambda text: inner.encode(text, add_special_tokens=False).ids
    return self._behind_anchor

  def _behind_anchor(self, text: str) -> list[int]:
    found = self._template.added.pattern.search(text)
    if found:
      raise ValueError(
        f"The text has the special token {found.group()!r} of {self.name} in "
        "it, which this tokenizer cannot take as text. Remove it."
      )
    return self._ids(self._anchor + text)[1:]


def _check_unicode(text: str) -> None:
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f"Text that is not valid Unicode: {error}") from error


def _never_put_spaces_first(pipeline: object) -> None:
  """Changes a tokenizer's description so that no space is put before text."""
  if isinstance(pipeline, dict):
    if pipeline.get("prepend_scheme") == "first":
      pipeline["prepend_scheme"] = "never"
    pipeline = list(pipeline.values())
  if isinstance(pipeline, list):
    for part in pipeline:
      _never_put_spaces_first(part)

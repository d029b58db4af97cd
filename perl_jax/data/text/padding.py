"""Chooses a token to pad with, for tools that recognise padding by its id.

`...ForSequenceClassification` of `transformers` scores at the last token that
is not the pad token. A token pads well if no conversation ends with it, whoever
trained with it before.
"""

from collections.abc import Collection
from typing import Any

# In the names of tokens that are there for this, or for nothing yet.
_MADE_FOR_IT = ("pad",)
_UNUSED = ("reserved", "unused", "extra", "dummy", "placeholder")


def candidates(
  tokenizer: Any,
  *,
  stop_ids: Collection[int],
  used: Collection[int],
  last: int,
) -> list[tuple[int, str]]:
  """Lists tokens that padding may be recognised by, the best first.

  Args:
    tokenizer: A tokenizer of `transformers`.
    stop_ids: Ids of tokens that end a response.
    used: Ids of tokens that the chat template writes.
    last: Id of the token that a conversation ends with.

  Returns:
    (id, text): the tokenizer's own pad token, tokens whose names say that they
    pad, its unknown token, reserved ones, other special tokens that the
    template does not write, BOS, and the others. Tokens that end a response
    come last, and the token `last` is not among them.
  """
  added = {
    id_: token.content
    for id_, token in tokenizer.added_tokens_decoder.items()
    if token.special or _named(token.content, (*_MADE_FOR_IT, *_UNUSED))
  }
  own, unknown = tokenizer.pad_token_id, tokenizer.unk_token_id
  for id_ in (own, unknown):
    if id_ is not None:
      added.setdefault(id_, tokenizer.convert_ids_to_tokens(id_))

  def rank(id_: int) -> tuple[bool, int, int]:
    tests = (
      id_ == own,
      _named(added[id_], _MADE_FOR_IT),
      id_ == unknown,
      id_ not in used and _named(added[id_], _UNUSED),
      id_ not in used and id_ != tokenizer.bos_token_id,
      id_ == tokenizer.bos_token_id,
      True,
    )
    return id_ in stop_ids, tests.index(True), id_

  return [(i, added[i]) for i in sorted(added, key=rank) if i != last]


def _named(text: str, parts: Collection[str]) -> bool:
  return any(part in text.lower() for part in parts)

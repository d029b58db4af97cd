"""Demonstrations: dialogues, with a mask of the tokens that are targets."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from perl_jax.data import records
from perl_jax.data.batches import common
from perl_jax.data.text.rendering import NotRenderedError
from perl_jax.data.text.template import UnevenError
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.data.unusable import Unusable


class TargetBatch(NamedTuple):
  """Packed dialogues for language modelling.

  Attributes:
    tokens: `[B, T]`, int32.
    positions: `[B, T]`, int32; counted from 0 in every segment.
    segments: `[B, T]`, int32; counted from 1 in every row, and 0 on padding. A
      token attends only inside its own segment.
    target_mask: `[B, T]`, bool; entry t is true if `tokens[:, t]` is a target,
      so that the loss is on predicting it. Never true on the first token of a
      segment.
  """

  tokens: np.ndarray
  positions: np.ndarray
  segments: np.ndarray
  target_mask: np.ndarray

  @property
  def num_tokens(self) -> int:
    """Number of tokens without padding."""
    return int((self.segments > 0).sum())


def collate_targets(
  rows: Sequence[TargetBatch], length: int, batch_size: int | None = None
) -> TargetBatch:
  """Stacks packed rows of `length` tokens, and pads to `batch_size` rows.

  Padding rows have segment 0 throughout.

  Raises:
    ValueError: A row has another length, or there are too many.
  """
  batch_size = common.padded_size(rows, batch_size)
  for row in rows:
    if row.tokens.shape != (length,):
      raise ValueError(
        f"A packed row has {row.tokens.shape[0]} tokens, the batch {length}."
      )
  shape = (batch_size, length)
  batch = TargetBatch(
    *(np.zeros(shape, np.int32) for _ in range(3)), np.zeros(shape, np.bool_)
  )
  for i, row in enumerate(rows):
    for stacked, values in zip(batch, row, strict=True):
      stacked[i] = values
  return batch


def encode_demonstrations(
  rows: Iterable[records.Demonstration | records.Text],
  tokenization: Tokenization,
  bad: Unusable | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Encodes every dialogue or text as tokens and a target mask.

  Of a text every token but the first is a target.

  Where the template writes a past assistant turn differently from one that is
  being written (Qwen3), each assistant turn becomes a sequence of its own,
  behind the prompt that a policy would be given for it.

  Args:
    rows: The dialogues and texts.
    tokenization: The tokenizer and its chat template.
    bad: Takes the rows that cannot be encoded. If None, they are errors.

  Returns:
    (tokens, target mask) of each sequence, int32 and bool of equal length, as
    `packing.pack_dialogues` takes them.

  Raises:
    NotRenderedError: The chat template leaves out what a row has.
    ValueError: Names the row that cannot be encoded.
  """
  encoded = []
  for row in rows:
    try:
      encoded += [
        (common.held(tokens), np.array(mask, np.bool_))
        for tokens, mask in _encode(row, tokenization)
      ]
    except ValueError as error:
      named = common.named(error, row.id)
      if bad is None or isinstance(error, NotRenderedError):
        raise named from error
      bad.add(str(named), common.REFUSED)
  return encoded


def parts(row: tuple[Sequence[int], Sequence[bool]]) -> list[common.Part]:
  """Returns the runs of tokens that are given and of those that are learned."""
  found = []
  tokens = zip(*(np.asarray(part).tolist() for part in row), strict=True)
  for learned, run in itertools.groupby(tokens, key=lambda pair: pair[1]):
    name = "target" if learned else "given"
    found.append((name, [token for token, _ in run], learned))
  return found


def _encode(
  row: records.Demonstration | records.Text, tokenization: Tokenization
) -> list[tuple[list[int], list[bool]]]:
  """Returns the dialogue, or its turns where the template asks for that."""
  if isinstance(row, records.Text):
    tokens = tokenization.encode_text(row.text)
    return [(tokens, [False] + [True] * (len(tokens) - 1))]
  with contextlib.suppress(UnevenError):
    return [tokenization.encode_dialog(row.prompt, row.turns)]
  return list(_encode_turns(row, tokenization))


def _encode_turns(
  row: records.Demonstration, tokenization: Tokenization
) -> Iterator[tuple[list[int], list[bool]]]:
  """Yields tokens and target mask of each assistant turn by itself."""
  messages = [*row.prompt, *row.turns]
  for i in range(len(row.prompt), len(messages)):
    if not records.is_target(messages[i]):
      continue
    prompt, _ = tokenization.encode_prompt(messages[:i])
    reply = records.reply_of(messages[i])
    response = tokenization.encode_response(messages[:i], reply)
    yield prompt + response, [False] * len(prompt) + [True] * len(response)

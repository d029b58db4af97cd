"""Packs dialogues into rows of one fixed length, with little padding.

A row is a concatenation of whole dialogues, or of windows of those that are too
long. Each of them is a segment that attends only inside itself, and every
target token of the data is a target in exactly one row.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from perl_jax.data.batches import row_plans
from perl_jax.data.batches.demonstrations import TargetBatch

# Tokens and target mask of a dialogue, or of a part of one.
Window = tuple[np.ndarray, np.ndarray]


class PackedRows(Sequence[TargetBatch]):
  """Rows of whole windows, each made when it is asked for.

  What is held are the windows, which are views of the dialogues: 5 bytes a
  token, where a row has 13.
  """

  def __init__(
    self,
    windows: Sequence[Window],
    plan: Sequence[Sequence[int]],
    length: int,
  ):
    """Takes the rows as they are to be.

    Args:
      windows: Parts of dialogues.
      plan: The numbers of the windows of each row.
      length: T, the number of tokens of a row.
    """
    self._windows, self._plan, self._length = windows, plan, length

  def __len__(self) -> int:
    return len(self._plan)

  def __getitem__(self, row: int) -> TargetBatch:
    windows = [self._windows[i] for i in self._plan[row]]
    return _packed_row(windows, self._length)


def pack_dialogues(
  encoded: Sequence[tuple[Sequence[int], Sequence[bool]]],
  length: int,
  prefix: Sequence[int] = (),
) -> PackedRows:
  """Packs whole dialogues into rows of `length` tokens (best fit decreasing).

  A dialogue that is longer than `length` is first cut into windows. A window
  starts at the end of an assistant turn if there is one within reach, keeps as
  much of the context of its targets as fits, and every target token is a target
  in exactly one window.

  Args:
    encoded: Tokens and target mask of each dialogue.
    length: T, the number of tokens of a row.
    prefix: Tokens to put before a window that does not begin its dialogue:
      `Tokenization.beginning`, with which a prompt truncated to whole turns
      begins as well.

  Returns:
    Rows, each a `TargetBatch` without the batch axis. They depend on the
    arguments alone.

  Raises:
    ValueError: The first token of a dialogue is a target, or `length` leaves no
      room for a target after the prefix.
  """
  windows = [
    window
    for tokens, mask in encoded
    for window in _windows(tokens, mask, length, prefix)
  ]
  plan = row_plans.best_fit([len(tokens) for tokens, _ in windows], length)
  return PackedRows(windows, plan, length)


def _packed_row(windows: Sequence[Window], length: int) -> TargetBatch:
  row = TargetBatch(
    *(np.zeros(length, np.int32) for _ in range(3)), np.zeros(length, np.bool_)
  )
  start = 0
  for segment, (tokens, mask) in enumerate(windows, 1):
    end = start + len(tokens)
    row.tokens[start:end] = tokens
    row.positions[start:end] = np.arange(len(tokens))
    row.segments[start:end] = segment
    row.target_mask[start:end] = mask
    start = end
  return row


def _windows(
  tokens: Sequence[int],
  mask: Sequence[bool],
  length: int,
  prefix: Sequence[int],
) -> list[Window]:
  """Cuts one dialogue so that each piece has at most `length` tokens."""
  tokens, mask = np.asarray(tokens, np.int32), np.asarray(mask, np.bool_)
  if mask[:1].any():
    raise ValueError("The first token of a dialogue cannot be a target.")
  if len(tokens) <= length:
    return [(tokens, mask)] if mask.any() else []
  room = length - len(prefix)
  if room < 2:
    raise ValueError(
      f"A row of {length} tokens has no room for a target after a prefix of "
      f"{len(prefix)}."
    )
  spans = _target_spans(mask, max(1, room // 2))
  turn_ends = [end for _, end in spans if end == len(mask) or not mask[end]]
  pieces = []
  done = 0
  while done < len(spans):
    begin, last = _extent(spans, done, turn_ends, length, room)
    end = spans[last][1]
    # Some templates begin every turn of the user with BOS.
    again = tokens[begin : begin + len(prefix)].tolist() == list(prefix)
    before = list(prefix) if begin and not again else []
    kept = np.zeros(len(before) + end - begin, np.bool_)
    for span in spans[done : last + 1]:
      kept[slice(*(place - begin + len(before) for place in span))] = True
    piece = tokens[begin:end]
    if before:
      piece = np.concatenate([np.array(before, np.int32), piece])
    pieces.append((piece, kept))
    done = last + 1
  return pieces


def _extent(
  spans: Sequence[tuple[int, int]],
  first: int,
  turn_ends: Sequence[int],
  length: int,
  room: int,
) -> tuple[int, int]:
  """Returns where the window of the spans from `first` on begins and its last.

  Half of the room is context of the first new target, if there is so much, and
  the rest takes as many targets as fit. `room` is the number of tokens that a
  prefix leaves of `length`; a window from the start of the dialogue has no
  prefix.
  """
  first_begin = spans[first][0]
  begin = max(0, first_begin - room // 2)
  last = first
  size = length if begin == 0 else room
  while last + 1 < len(spans) and spans[last + 1][1] - begin <= size:
    last += 1
  end = spans[last][1]
  begin = 0 if end <= length else end - room
  place = bisect.bisect_left(turn_ends, begin)
  if begin and place < len(turn_ends) and turn_ends[place] < first_begin:
    begin = turn_ends[place]
  return begin, last


def _target_spans(mask: np.ndarray, most: int) -> list[tuple[int, int]]:
  """Returns [begin, end) of each run of targets, cut into at most `most`."""
  padded = np.concatenate([[False], mask, [False]])
  edges = np.flatnonzero(padded[1:] != padded[:-1]).tolist()
  return [
    (j, min(j + most, end))
    for begin, end in zip(edges[::2], edges[1::2], strict=True)
    for j in range(begin, end, most)
  ]

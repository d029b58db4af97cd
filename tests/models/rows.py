"""Rows of sequences, padding and packing for the tests of the decoder."""

import numpy as np

from tests import toys

BATCH, TIME = 4, 14


def layout(pieces, time=TIME):
  """Rows out of pieces: each row a list of (first column, tokens).

  Columns that no piece covers hold token 0. Pieces of a row are segments 1, 2
  and so on; positions count from 0 in each.
  """
  tokens, positions, segments = np.zeros((3, len(pieces), time), np.int32)
  for row, parts in enumerate(pieces):
    for number, (start, ids) in enumerate(parts, start=1):
      columns = slice(start, start + len(ids))
      tokens[row, columns] = ids
      positions[row, columns] = np.arange(len(ids))
      segments[row, columns] = number
  return tokens, positions, segments


A, B, C, D = (
  toys.random_tokens(seed, n) for seed, n in enumerate([14, 9, 6, 8])
)

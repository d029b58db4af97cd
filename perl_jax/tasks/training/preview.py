"""Shows the first rows that a stage trains on, as the model reads them."""

import itertools
from collections.abc import Iterable

from perl_jax import hosts
from perl_jax.data.batches.common import Part
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.reporting import previews


def show(
  count: int, rows: Iterable[list[Part]], tokenization: Tokenization
) -> None:
  """Prints the text of the tokens of the first rows, from process 0.

  Args:
    count: `config.data.preview`, the number of rows; 0 shows nothing.
    rows: The parts of each row.
    tokenization: Decodes tokens.
  """
  if not count or not hosts.is_primary():
    return
  decode = tokenization.template.text.decode
  previews.show(
    [
      [
        (name, decode([*map(int, ids)]), learned)
        for name, ids, learned in parts
      ]
      for parts in itertools.islice(rows, count)
    ]
  )

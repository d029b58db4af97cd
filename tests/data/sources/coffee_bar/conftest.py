"""Coffee orders of every kind, generated once for each test file."""

import pytest

from perl_jax.data.sources.coffee_bar import rows as rows_lib
from tests.data.sources.coffee_bar import reading


@pytest.fixture(scope="module")
def splits():
  return {
    kind: rows_lib.load(
      kind, size=reading.ROWS, validation_size=reading.HELD_OUT
    )
    for kind in rows_lib.KINDS
  }

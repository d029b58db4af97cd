"""Draws of damaged input, and how what becomes of it is judged.

An input is used as it was meant, or refused with an error that `main` prints as
one line, names the file and, where one field is wrong, the field. What else is
raised is a fault of the reader.

In CI each property has 500 draws, always the same ones. `PERL_JAX_DRAWS=10000`
makes so many, other ones each time: `make nightly`.
"""

import contextlib
import os
from collections.abc import Iterator

import hypothesis
from hypothesis import strategies as st

from perl_jax import main

DRAWS = int(os.environ.get("PERL_JAX_DRAWS", 0))
# What a reader may raise: what `main` prints as one line.
REFUSALS = main.USER_ERRORS

_SLOW = (
  hypothesis.HealthCheck.too_slow,
  hypothesis.HealthCheck.function_scoped_fixture,
  hypothesis.HealthCheck.data_too_large,
)


def drawn(few: int = 500):
  """Settings of a property: `few` draws, or as many as the nightly run has."""
  return hypothesis.settings(
    max_examples=DRAWS or few,
    derandomize=not DRAWS,
    deadline=None,
    database=None,
    suppress_health_check=_SLOW,
    print_blob=False,
  )


# Values that a field does not expect: other types, edges, what JSON allows.
SCALARS = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**70), 10**400, 1e39, 1e308])
  | st.floats()
  | st.text(max_size=6)
  | st.sampled_from(
    ["", "true", "1", "16", "none", "..", "\0", "a\nb", "(", "é"]
  )
)
JSON = st.recursive(
  SCALARS,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=4,
)


@contextlib.contextmanager
def used_or_refused(*texts: object) -> Iterator[list[str]]:
  """Passes if the block ends, or refuses by name; yields a list for the words.

  Args:
    *texts: What every refusal has to name, such as the file.
  """
  said: list[str] = []
  try:
    yield said
  except REFUSALS as error:
    message = str(error)
    for text in texts:
      assert str(text) in message, (text, message)
    said.append(message)


def changed(base: dict, known: dict | None = None):
  """Mappings like `base` with some fields gone, new, or of another value.

  Args:
    base: The whole mapping.
    known: More fields that a draw may set.
  """
  names = sorted({**base, **(known or {})})
  changes = st.dictionaries(st.sampled_from(names), JSON, max_size=3)
  gone = st.sets(st.sampled_from(sorted(base)), max_size=2)
  more = st.dictionaries(st.text(max_size=8), JSON, max_size=1)
  return st.builds(
    lambda c, g, m: {k: v for k, v in base.items() if k not in g} | m | c,
    changes,
    gone,
    more,
  )


def damaged(content: bytes, head: int | None = None):
  """Bytes like `content`: some changed, a part gone, doubled or put in.

  Args:
    content: The whole file.
    head: How far from the beginning the damage may be; None is anywhere.
  """
  limit = len(content) if head is None else min(head, len(content))
  places = st.integers(0, limit - 1)

  def change(at, value):
    return content[:at] + bytes([value]) + content[at + 1 :]

  def flip(at, bit):
    return change(at, content[at] ^ (1 << bit))

  def number(at, value):
    return content[:at] + value.to_bytes(8, "little") + content[at + 8 :]

  def cut(at):
    return content[:at]

  def without(at, length):
    return content[:at] + content[at + length :]

  def insert(at, piece):
    return content[:at] + piece + content[at:]

  sizes = st.sampled_from([0, 1, 2, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
  return st.one_of(
    st.builds(flip, places, st.integers(0, 7)),
    st.builds(change, places, st.integers(0, 255)),
    st.builds(number, places, sizes | st.integers(0, 2**64 - 1)),
    st.builds(cut, places),
    st.builds(without, places, st.integers(1, 64)),
    st.builds(insert, places, st.binary(min_size=1, max_size=16)),
    st.binary(max_size=64),
  )

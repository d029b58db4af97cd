"""Remembers the tokens of the latest texts, up to a number of bytes."""

import collections
import sys
import threading
from collections.abc import Callable

# Bytes that the tokens of texts, and these, take at most.
MOST = 128 << 20
# Of a token in a tuple: the place of a number, and the number.
_TOKEN = 8 + sys.getsizeof(1 << 16)


class Recent:
  """A function of a text that is computed once for texts that come again.

  It is bounded by bytes and not by texts, as `functools.lru_cache` is: one text
  may be a word or a book.
  """

  def __init__(
    self, encode: Callable[[str, bool], tuple[int, ...]], most: int = MOST
  ) -> None:
    """Takes the function.

    Args:
      encode: Tokens of a text, which may depend on a flag.
      most: Bytes that may be held. What takes more by itself is not.
    """
    self._encode, self._most = encode, most
    self._lock = threading.Lock()
    self._known: collections.OrderedDict[tuple[str, bool], tuple[int, ...]] = (
      collections.OrderedDict()
    )
    self.held = 0

  def __call__(self, text: str, flag: bool = False) -> tuple[int, ...]:
    """Returns the tokens of a text."""
    key = text, flag
    with self._lock:
      if key in self._known:
        self._known.move_to_end(key)
        return self._known[key]
    ids = self._encode(text, flag)
    self._remember(key, ids)
    return ids

  def __contains__(self, key: tuple[str, bool]) -> bool:
    return key in self._known

  def _remember(self, key: tuple[str, bool], ids: tuple[int, ...]) -> None:
    with self._lock:
      if key in self._known or _size(key, ids) > self._most:
        return
      self._known[key] = ids
      self.held += _size(key, ids)
      while self.held > self._most:
        self.held -= _size(*self._known.popitem(last=False))


def _size(key: tuple[str, bool], ids: tuple[int, ...]) -> int:
  """Bytes of a text and its tokens, and of the entry that holds them."""
  return 300 + sys.getsizeof(key[0]) + _TOKEN * len(ids)

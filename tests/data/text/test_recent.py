"""Tokens of the latest texts are remembered, up to a number of bytes."""

import tracemalloc

import pytest

from perl_jax.data.text.recent import Recent


def counted(asked):
  def encode(text, flag):
    asked.append((text, flag))
    return tuple(range(1000, 1000 + len(text)))

  return encode


def test_a_text_that_comes_again_is_not_encoded_again():
  asked = []
  recent = Recent(counted(asked))
  for _ in range(3):
    assert recent("ab") == recent("ab", False) == recent("ab", flag=True)
  assert asked == [("ab", False), ("ab", True)]


def test_the_text_that_was_asked_for_longest_ago_is_forgotten():
  asked = []
  recent = Recent(counted(asked), most=2500)  # 1089 bytes each
  for letter in "abac":
    recent(letter * 20)
  assert [text[0] for text, _ in asked] == ["a", "b", "c"]
  assert ("a" * 20, False) in recent and ("b" * 20, False) not in recent
  recent("b" * 20)
  assert len(asked) == 4


def test_what_fails_is_asked_again():
  def encode(text, flag):
    raise ValueError(text)

  recent = Recent(encode)
  for _ in range(2):
    with pytest.raises(ValueError, match="ab"):
      recent("ab")
  assert recent.held == 0


@pytest.mark.parametrize("tokens", [1, 30, 3000])
def test_bytes_are_bounded_however_long_the_texts_are(tokens):
  most = 1 << 18

  def encode(text, flag):
    return tuple(range(100_000, 100_000 + tokens))

  recent = Recent(encode, most)
  tracemalloc.start()
  for n in range(4 * most // (300 + 36 * tokens)):
    recent(f"{n:09d}" * (tokens // 3 + 1))
  held, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most / 2 < recent.held <= most
  assert held < 1.1 * most
  before = recent.held
  recent("a" * most)
  assert recent.held == before  # as large as all of them

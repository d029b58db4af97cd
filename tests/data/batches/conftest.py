"""A small tokenizer for the tests of encoding."""

import pytest

from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import train_tokenizer


@pytest.fixture(scope="module")
def tokenization(tmp_path_factory):
  path = tmp_path_factory.mktemp("batches") / "tokenizer"
  return tokenization_lib.load_tokenizer(
    train_tokenizer.train_tokenizer(["hello there, 12 mochas"] * 4, 300, path)
  )

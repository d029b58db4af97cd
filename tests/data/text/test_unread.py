"""What a reward model takes for padding at the end of a conversation."""

import pytest

from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import unread
from perl_jax.interop import tokenizer_out
from tests.data.text import families
from tests.data.text.families import FAMILIES


def test_only_padding_at_the_end_is_taken_off():
  for ids, expected in (
    ([1, 2, 1, 1], [1, 2]),
    ([1, 1], []),
    ([1, 2], [1, 2]),
    ([], []),
  ):
    assert unread.strip(ids, (1, "<eos>")) == expected
  assert unread.strip([1, 1], None) == [1, 1]


def test_a_row_without_a_token_ends_no_conversation(tmp_path):
  """Embeddings are made longer than the vocabulary, and padded with a row."""
  directory = families.write(FAMILIES["qwen2"], tmp_path)
  plain = tokenization_lib.load_tokenizer(directory)
  rows = plain.vocab_size + 8
  padded = tokenization_lib.load_tokenizer(directory, rows, unread_id=rows - 3)
  assert padded.unread is None
  assert tokenizer_out.pad_token(padded, reward=True) == plain.pads[0]


@pytest.mark.parametrize(
  ("name", "pad", "keeps_stop", "count"),
  [
    ("qwen2", "<|im_end|>", True, 1),
    ("llama2", "</s>", False, 0),
    ("llama2", "<unk>", True, 0),
  ],
)
def test_the_end_that_is_read(tmp_path, name, pad, keeps_stop, count):
  directory = families.write(FAMILIES[name], tmp_path)
  found = tokenization_lib.load_tokenizer(directory)
  ids = {token: id_ for token, id_ in found.template.added.ids.items()}
  padded = tokenization_lib.load_tokenizer(directory, unread_id=ids[pad])
  assert padded.unread == (ids[pad], pad)
  kept, tokens = unread.ending(found, padded.unread)
  assert (kept, len(tokens)) == (keeps_stop, count)
  # As rows end that are scored.
  whole = found.encode_response((), "ok", closed=True)
  row = unread.strip(whole, padded.unread)
  end = [found.stop_ids[0], *tokens] if kept else [*tokens]
  assert row == found.encode_response((), "ok")[:-1] + end

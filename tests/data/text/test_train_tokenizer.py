"""The trained tokenizer: deterministic, lossless, cut where it should be."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest
import tokenizers

from perl_jax.data import records
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import train_tokenizer
from tests.data import shared_files

CALL = '{"add_order_item": {"menu_item_id": "mocha", "quantity": "12"}}'
TEXTS = [CALL, "Can I get 2 mochas, please?", "Make that 3 lattes."] * 20


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
  return train_tokenizer.train_tokenizer(TEXTS, 400, path)


def _tokens(directory, content):
  backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  return backend.encode(content, add_special_tokens=False).tokens


def test_special_tokens_come_first_and_have_their_roles(directory):
  loaded = tokenization_lib.load_tokenizer(directory)
  backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  assert [backend.id_to_token(i) for i in range(7)] == [
    "<|pad|>",
    "<|bos|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
  ]
  assert (loaded.pad_id, loaded.bos_id, loaded.stop_ids) == (0, 1, (2,))
  assert loaded.vocab_size == backend.get_vocab_size() <= 400


def test_pieces_are_cut_before_spaces_and_around_digits_only(directory):
  tokens = _tokens(directory, CALL)
  for token in tokens:
    assert "Ġ" not in token[1:]
    assert len(token) == 1 or not any(c.isdigit() for c in token)
  # The GPT-2 pattern would cut this at the quotes and the brace.
  assert '{"add_order_item":' in tokens
  assert 'Ġ"quantity":' in tokens  # A space belongs to what follows it.


def test_same_texts_give_the_same_bytes_in_another_process(directory, tmp_path):
  script = (
    "import sys; from perl_jax.data.text import train_tokenizer as tokenizer;"
    f"tokenizer.train_tokenizer({TEXTS!r}, 400, sys.argv[1])"
  )
  again = tmp_path / "again"
  subprocess.run(
    [sys.executable, "-c", script, str(again)],
    check=True,
    cwd=pathlib.Path(__file__).parents[3],
    env={**os.environ, "PYTHONHASHSEED": "7"},
  )
  for file in directory.iterdir():
    assert (again / file.name).read_bytes() == file.read_bytes()


def test_a_tokenizer_is_replaced_and_nothing_else_is(tmp_path):
  path = tmp_path / "tok"
  train_tokenizer.train_tokenizer(["aaaa bbbb"] * 4, 270, path)
  before = (path / "tokenizer.json").read_bytes()
  train_tokenizer.train_tokenizer(["cccc dddd"] * 4, 270, path)
  assert (path / "tokenizer.json").read_bytes() != before
  assert os.listdir(tmp_path) == ["tok"]  # No scratch folder is left.

  other = tmp_path / "other"
  other.mkdir()
  (other / "notes.txt").write_text("mine")
  with pytest.raises(ValueError, match="other is not empty"):
    train_tokenizer.train_tokenizer(["aaaa"], 270, other)
  assert (other / "notes.txt").read_text() == "mine"


def test_a_failed_training_leaves_nothing(tmp_path):
  def texts():
    yield "abc"
    raise RuntimeError("source broke")

  with pytest.raises(RuntimeError, match="source broke"):
    train_tokenizer.train_tokenizer(texts(), 270, tmp_path / "tok")
  assert not list(tmp_path.iterdir())


def test_bad_sizes_and_empty_text_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"vocab_size=262.*at least 263"):
    train_tokenizer.train_tokenizer(["abc"], 262, tmp_path / "tok")
  with pytest.raises(ValueError, match="no text"):
    train_tokenizer.train_tokenizer(["", ""], 300, tmp_path / "tok")
  path = train_tokenizer.train_tokenizer(["abc"], 9999, tmp_path / "tok")
  assert tokenization_lib.load_tokenizer(path).vocab_size == 263


def test_record_texts_yields_every_text():
  ask = ({"role": "user", "content": "ask"},)
  call = {"role": "assistant", "content": "I look."}
  call["tool_calls"] = [{"function": {"name": "look"}}]
  rows = [
    records.Demonstration(
      "", "", ask, ({"role": "assistant", "content": "turn"},)
    ),
    records.Preference("", "", ask, "good", "bad"),
    records.Labelled("", "", ask, "said", 1.0),
    records.Labelled("", "", ask, call, 1.0),
    records.Prompt("", "", ask, None),
  ]
  assert list(train_tokenizer.record_texts(rows)) == [
    *("ask", "turn"),
    *("ask", "good", "bad"),
    *("ask", "said"),
    *("ask", 'I look.\n[{"function": {"name": "look"}}]'),
    "ask",
  ]


@pytest.mark.shared_data
def test_real_json_turns_are_half_as_long_as_with_the_gpt2_pattern(tmp_path):
  path = shared_files.find("taskmaster_coffee/reward/reward_00.json.gz")
  with gzip.open(path, "rt") as file:
    texts = [row["generation"] for row in json.load(file)]
  ours = train_tokenizer.train_tokenizer(texts, 1024, tmp_path / "ours")
  length = sum(len(_tokens(ours, content)) for content in texts)

  gpt2 = tokenizers.ByteLevelBPETokenizer()
  gpt2.train_from_iterator(texts, 1024, show_progress=False)
  gpt2_length = sum(len(gpt2.encode(content).ids) for content in texts)
  assert length < 0.6 * gpt2_length

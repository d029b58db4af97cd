"""Tokenizers from the metadata of GGUF files: SmolLM2's, and added tokens."""

import json

import pytest
import transformers
from tokenizers import pre_tokenizers

pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax.data.text import gguf_tokenizer
from perl_jax.data.text.tokenization import load_tokenizer
from perl_jax.tasks.initial.manifest import copy_tokenizer
from tests.data.text import gguf_files
from tests.data.text.gguf_files import TEMPLATE, Kind

TEXTS = (
  "Hello there, what can I get you?",
  "don't I'LL they've  we'd",
  "日本語 ünïcode naïve Ελληνικά עברית 😀👩‍👩‍👧 e\u0301",
  "a 1 22 333 12,345.67 x2y Ⅻ ½ ٣",
  "def f(x):\n\treturn x  # 3 spaces\n\n\n  y = [1,2]\r\n",
  "   leading and trailing   ",
  "tabs\t\tand\n \n mixed \n\n",
  "\x00\x7f\u200b\ufeff\u3000",
  "<|im_start|>user\nhi<|im_end|>\n<repo_name>x",
)
MESSAGES = [
  {"role": "user", "content": "What is 12 + 3?"},
  {"role": "assistant", "content": "15"},
  {"role": "user", "content": "Thanks\n\n"},
]


@pytest.fixture(scope="session")
def built(smollm2):
  return gguf_tokenizer.build_tokenizer(smollm2)[0]


@pytest.mark.slow
def test_smollm2_as_transformers_builds_it(smollm2, built):
  pytest.importorskip("torch", reason="transformers reads GGUF with PyTorch")
  expected = transformers.AutoTokenizer.from_pretrained(
    str(smollm2.parent), gguf_file=smollm2.name
  )
  # Its conversion takes "smollm" for GPT-2's; the model's tokenizer.json, and
  # llama.cpp, have every digit by itself.
  expected.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  for text in TEXTS:
    assert built(text).input_ids == expected(text).input_ids, text
  for generate in (False, True):
    asked = {"add_generation_prompt": generate, "return_dict": False}
    assert built.apply_chat_template(
      MESSAGES, **asked
    ) == expected.apply_chat_template(MESSAGES, **asked)
  for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
    assert getattr(built, name) == getattr(expected, name)
  assert built.get_vocab() == expected.get_vocab()
  assert {
    i: (token.content, token.special)
    for i, token in built.added_tokens_decoder.items()
  } == {
    i: (token.content, token.special)
    for i, token in expected.added_tokens_decoder.items()
  }


@pytest.mark.slow
def test_smollm2_as_a_directory(smollm2, built, tmp_path):
  copy_tokenizer(smollm2, tmp_path)
  again = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in TEXTS:
    assert built(text).input_ids == again(text).input_ids, text
  assert built.chat_template == again.chat_template
  here, there = load_tokenizer(smollm2), load_tokenizer(tmp_path)
  assert here.stop_ids == there.stop_ids == (2,)
  assert here.bos_id == there.bos_id
  assert here.encode_prompt(MESSAGES) == there.encode_prompt(MESSAGES)
  assert here.encode_prompt(MESSAGES)[0] == built.apply_chat_template(
    MESSAGES, add_generation_prompt=True, return_dict=False
  )


# As in DeepSeek's files: not all of the letters that bytes are written with.
BEGIN, CALLS = "<｜begin▁of▁sentence｜>", "<｜tool▁calls▁begin｜>"
MARKED = {
  BEGIN: Kind.CONTROL, "<|im_start|>": Kind.CONTROL, "<|im_end|>": Kind.CONTROL,
  CALLS: Kind.USER_DEFINED, "<think>": Kind.USER_DEFINED,
  "  ": Kind.USER_DEFINED, "[PAD1]": Kind.UNUSED,
}  # fmt: skip


def write_marked(path, **fields):
  """Tokens of every kind behind the bytes; `<|im_end|>` and more end."""
  backend = gguf_files.byte_level(pre_tokenizers.ByteLevel(False))
  vocab, merges = gguf_files.vocabulary(backend)
  plain = [t for t in sorted(vocab, key=vocab.get) if t not in MARKED]
  tokens = [*plain, *MARKED]
  kinds = [Kind.NORMAL] * len(plain) + list(MARKED.values())
  fields = {
    "merges": [" ".join(merge) for merge in merges],
    "pre": "gpt-2",
    "bos_token_id": tokens.index(BEGIN),
    "eos_token_id": tokens.index("<|im_end|>"),
    "eot_token_id": tokens.index("<think>"),
  } | fields
  kinds = kinds if fields.pop("kinds", True) else None
  gguf_files.write(path, tokens, kinds=kinds, **fields)
  return {token: tokens.index(token) for token in MARKED}


def test_added_tokens_are_what_their_kinds_say(tmp_path):
  path = tmp_path / "m.gguf"
  ids = write_marked(path)
  ours = gguf_tokenizer.build_tokenizer(path)[0]
  added = ours.added_tokens_decoder
  for token, id_ in ids.items():
    if MARKED[token] == Kind.UNUSED:
      assert id_ not in added
      continue
    assert added[id_].content == token
    assert added[id_].special == (MARKED[token] == Kind.CONTROL)
    assert ours("x" + token + "y").input_ids[1:-1] == [id_]
  assert ids["[PAD1]"] not in ours("[PAD1]").input_ids
  assert len(ours) == max(ids.values()) + 1
  text = f"{BEGIN}{CALLS}<think>  x<|im_end|>"
  found = ours(text).input_ids
  assert ours.decode(found) == text
  kept = f"{CALLS}<think>  x"
  assert ours.decode(found, skip_special_tokens=True) == kept


def test_a_file_that_says_no_kinds(tmp_path):
  """Only tokens that it names are special."""
  path = tmp_path / "m.gguf"
  ids = write_marked(path, kinds=None)
  added = gguf_tokenizer.build_tokenizer(path)[0].added_tokens_decoder
  assert {id_ for id_, token in added.items() if token.special} == {
    ids[BEGIN], ids["<|im_end|>"],
  }  # fmt: skip


def test_every_end_ends_a_response(tmp_path):
  path = tmp_path / "m.gguf"
  ids = write_marked(path, keys={"tokenizer.chat_template": TEMPLATE})
  gguf_tokenizer.write_tokenizer(path, tmp_path / "directory")
  for where in (path, tmp_path / "directory"):
    loaded = load_tokenizer(where)
    assert loaded.stop_ids == (ids["<|im_end|>"], ids["<think>"])
    prompt = loaded.encode_prompt(MESSAGES)[0]
    assert prompt == load_tokenizer(path).encode_prompt(MESSAGES)[0]


def test_what_transformers_4_reads(tmp_path):
  """The class is one that it has."""
  write_marked(tmp_path / "m.gguf")
  gguf_tokenizer.write_tokenizer(tmp_path / "m.gguf", tmp_path)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("beside", [None, *gguf_tokenizer.TOKENIZER_FILES])
def test_a_tokenizer_beside_the_file_goes_first(beside, tmp_path):
  path = tmp_path / "m.gguf"
  if beside:
    (tmp_path / beside).touch()
  found = gguf_tokenizer.tokenizer_of(str(path))
  assert found == (tmp_path if beside else path)

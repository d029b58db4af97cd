"""Names of pre-tokenizers: the tokens are those of the families' tokenizers.

The references are the pipelines of the families' own tokenizer.json.
"""

import hypothesis
import pytest
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax.data.text import gguf_tokenizer
from perl_jax.data.text.gguf_pre_tokenizers import PRE_TOKENIZERS
from tests.data.text import gguf_files

Digits = pre_tokenizers.Digits


def split(pattern):
  return pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)


def letters(use_regex=False):
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s"
  r"\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}"
  r"\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}"
  r"\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_CODER = [
  split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(CJK),
  Digits(individual_digits=True), letters(),
]  # fmt: skip
# The letters of DeepSeek LLM are those with case, but for a few newer ones.
DEEPSEEK_LLM = [
  split(r"[\r\n]"), split(r"\s?[\p{Lu}\p{Ll}\p{Lt}]+"),
  split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"), split(r"\s+$"), split(CJK),
  Digits(individual_digits=True), letters(),
]  # fmt: skip
GPT2 = [letters(True)]
STARCODER = [Digits(individual_digits=True), letters(True)]
WHOLE = {"ignore_merges": True}
# Name -> (pre-tokenizer, options of the model, normalizer).
FAMILIES = {
  "gpt-2": (GPT2, {}, None),
  "smollm": (STARCODER, {}, None),
  "starcoder": (STARCODER, {}, None),
  "refact": (STARCODER, {}, None),
  "llama3": ([split(LLAMA3), letters()], WHOLE, None),
  "llama-v3": ([split(LLAMA3), letters()], WHOLE, None),
  "llama-bpe": ([split(LLAMA3), letters()], WHOLE, None),
  "falcon3": ([split(LLAMA3), letters()], WHOLE, None),
  "qwen2": ([split(QWEN2), letters()], {}, normalizers.NFC()),
  "megrez": ([split(QWEN2), letters()], {}, normalizers.NFC()),
  "deepseek-r1-qwen": ([split(QWEN2), letters()], {}, normalizers.NFC()),
  "tekken": ([split(TEKKEN), letters()], WHOLE, None),
  "deepseek-coder": (DEEPSEEK_CODER, {}, None),
  "deepseek-llm": (DEEPSEEK_LLM, {}, None),
}

texts = st.lists(
  st.one_of(
    st.sampled_from((*gguf_files.PARTS, " zebra")), st.text(max_size=2)
  ),
  max_size=12,
).map("".join)


def original(name):
  steps, options, normalizer = FAMILIES[name]
  backend = gguf_files.byte_level(pre_tokenizers.Sequence(steps), **options)
  if normalizer:
    backend.normalizer = normalizer
  return backend


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
  """A family's own tokenizer, and ours from a file."""
  backend = original(request.param)
  path = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
  gguf_files.write_byte_level(path, backend, pre=request.param)
  return backend, gguf_tokenizer.build_tokenizer(path)[0]


def test_tokens_are_the_family_s(family):
  backend, ours = family

  @hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
  @hypothesis.given(texts)
  @hypothesis.example("a zebra and a zebra")
  def check(text):
    ids = backend.encode(text).ids
    assert ours(text).input_ids == ids
    assert ours.decode(ids) == backend.decode(ids)

  check()


def test_every_name_is_tried():
  """The default is llama.cpp's own, and tried against llama.cpp."""
  assert FAMILIES.keys() == PRE_TOKENIZERS.keys() - {"default"}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_bos_before_plain_text(name, tmp_path):
  """As llama.cpp does where the file does not say."""
  alone = name in ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")
  for said, adds in ((None, alone), (False, False), (True, True)):
    path = gguf_files.write(
      tmp_path / f"{said}.gguf", ("<s>", "a", "b", "ab"), pre=name,
      merges=["a b"], bos_token_id=0, add_bos_token=said,
    )  # fmt: skip
    ids = gguf_tokenizer.build_tokenizer(path)[0]("ba").input_ids
    assert ids == [0] * adds + [2, 1]

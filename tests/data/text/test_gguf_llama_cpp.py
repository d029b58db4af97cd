"""Our tokens of a GGUF file are llama.cpp's own.

Left out is where it differs from the families' tokenizer.json on purpose: it
brings no text to a normal form (Qwen), and takes letters beyond ASCII for upper
and lower case at once (Tekken). A SentencePiece model's prefix it puts after
special tokens too, and before a text that begins with a space.
"""

import random
import unicodedata

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("xllamacpp", reason="needs llama.cpp, package xllamacpp")

from perl_jax.data.text.gguf_pre_tokenizers import PRE_TOKENIZERS
from perl_jax.data.text.gguf_tokenizer import build_tokenizer
from tests.data.text import gguf_files, test_gguf_sentence_piece
from tests.data.text.test_gguf_pre_tokenizers import FAMILIES, original
from tests.data.text.test_gguf_tokenizer import MESSAGES, TEXTS
from tests.interop.gguf.client import serving

pytestmark = pytest.mark.slow

WIDTH, HEADS = 32, 2


def model(vocab_size, architecture="llama"):
  """Keys and tensors of a model of one layer, which llama.cpp wants to see."""
  draw = np.random.default_rng(0).normal
  shapes = {
    "token_embd": (vocab_size, WIDTH),
    "output_norm": (WIDTH,), "blk.0.attn_norm": (WIDTH,),
    "blk.0.ffn_norm": (WIDTH,),
  }  # fmt: skip
  for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
    shapes[f"blk.0.{name}"] = (WIDTH, WIDTH)
  for name in ("ffn_gate", "ffn_up", "ffn_down"):
    shapes[f"blk.0.{name}"] = (WIDTH, WIDTH)
  keys = {
    "block_count": 1, "context_length": 256, "embedding_length": WIDTH,
    "feed_forward_length": WIDTH, "attention.head_count": HEADS,
    "attention.head_count_kv": HEADS, "vocab_size": vocab_size,
    "rope.dimension_count": WIDTH // HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
  }  # fmt: skip
  return {
    "keys": {f"{architecture}.{name}": value for name, value in keys.items()},
    "tensors": {
      f"{name}.weight": draw(size=shape).astype(np.float32)
      for name, shape in shapes.items()
    },
  }


def drawn(count=60):
  """Texts of a few parts, the same ones in every run."""
  rng = random.Random(0)
  parts = [part for part in gguf_files.PARTS if part != "\x00"]
  return [
    "".join(rng.choices(parts, k=rng.randint(1, 10))) for _ in range(count)
  ]


def compare(path, texts, special=False):
  ours = build_tokenizer(path)[0]
  with serving(path) as served:
    for text in texts:
      asked = {"content": text, "add_special": True, "parse_special": special}
      theirs = served.post("tokenize", asked)["tokens"]
      assert ours(text).input_ids == theirs, (path.name, text)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_byte_level(name, tmp_path):
  backend = original(name if name in FAMILIES else "gpt-2")
  path = gguf_files.write_byte_level(
    tmp_path / f"{name}.gguf", backend, pre=name,
    **model(backend.get_vocab_size()),
  )  # fmt: skip
  texts = [*drawn(), "a zebra", "don't  THEY'RE 12345 x\n\n y"]
  if PRE_TOKENIZERS[name].normal_form:
    texts = [unicodedata.normalize("NFC", text) for text in texts]
  if name == "tekken":
    texts = [text.encode("ascii", "ignore").decode() for text in texts]
  compare(path, texts)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece(prefix, tmp_path):
  size = len(test_gguf_sentence_piece.llama()[0])
  path = test_gguf_sentence_piece.write_llama(
    tmp_path / "m.gguf", add_space_prefix=prefix, add_bos_token=True,
    **model(size),
  )  # fmt: skip
  compare(path, [text.lstrip(" ") for text in drawn()])


def test_gemma(tmp_path):
  size = len(test_gguf_sentence_piece.gemma()[0])
  path = test_gguf_sentence_piece.write_gemma(
    tmp_path / "m.gguf", architecture="gemma", **model(size, "gemma")
  )
  compare(path, [*drawn(), "a" + " " * 9 + "b", "<start_of_turn>x"], True)


def test_smollm2(smollm2):
  compare(smollm2, [*TEXTS, "  12  3 ", "x\n\n 1"], special=True)
  ours = build_tokenizer(smollm2)[0]
  with serving(smollm2) as served:
    prompt = served.post("apply-template", {"messages": MESSAGES})["prompt"]
  assert prompt == ours.apply_chat_template(
    MESSAGES, add_generation_prompt=True, tokenize=False
  )

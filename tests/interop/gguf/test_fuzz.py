"""GGUF files with damaged heads: used as they say, or refused by name."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax.data.text import gguf_tokenizer
from perl_jax.interop.gguf import config, reading
from tests import fuzzing
from tests.interop.gguf import models

FAMILIES = ("llama_tiny", "gemma2_tiny", "gemma3_tiny", "qwen3_tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """{preset: (bytes, place of the first tensor)}, and a file to write to."""
  root = tmp_path_factory.mktemp("fuzz")
  found = {}
  for preset in FAMILIES:
    path = root / f"{preset}.gguf"
    models.write(path, preset)
    start = min(t.start for t in reading.File(path).tensors.values())
    found[preset] = path.read_bytes(), start
  return found, root / "drawn.gguf"


def use(path, tokenizer):
  """Reads all that a file says, as a run does."""
  file = reading.File(path)
  made = config.model_config(file)
  for field in dataclasses.fields(made):
    value = getattr(made, field.name)
    if isinstance(value, float):
      least = 0 if field.name == "norm_eps" else 1e-45
      assert least <= value < 3.5e38, field.name
  for name, info in file.tensors.items():
    if math.prod(info.shape) < 10_000:
      assert file.read(name).shape == info.shape
  if tokenizer:
    gguf_tokenizer.build_tokenizer(path)


@pytest.mark.slow
@fuzzing.drawn()
@given(st.data(), st.sampled_from(FAMILIES))
def test_bytes_of_the_head(files, data, preset):
  found, path = files
  content, start = found[preset]
  path.write_bytes(data.draw(fuzzing.damaged(content, start)))
  with fuzzing.used_or_refused(path), np.errstate(all="ignore"):
    use(path, tokenizer=True)


def values(value):
  """Values that a writer of GGUF could have put in place of one."""
  lists = st.lists(st.integers(-2, 9) | st.booleans(), max_size=3)
  names = st.lists(st.text(max_size=3), max_size=3)
  numbers = st.integers(0, 2**32 - 1) | st.floats(width=32)
  edges = st.sampled_from([0, 1, -1, 0.0, -1.0, 2**31, math.nan, math.inf])
  same = st.just(value)
  return (
    same | numbers | edges | st.booleans() | st.text(max_size=5) | lists | names
  )


@pytest.mark.slow
@fuzzing.drawn()
@given(st.data(), st.sampled_from(FAMILIES))
def test_values_of_the_metadata(files, monkeypatch, data, preset):
  """In the metadata as it was read: every key may hold a value of any type."""
  found, path = files
  path.write_bytes(found[preset][0])
  whole = reading.gguf_metadata.read_head(path)
  keys = sorted(whole.metadata)
  architecture = models.ARCHITECTURES[preset]
  more = (
    "rope.scaling.type", "rope.scaling.factor", "attention.sliding_window",
    "attention.sliding_window_pattern", "final_logit_softcapping",
    "attn_logit_softcapping", "rope.freq_base_swa", "rope.scale_linear",
  )  # fmt: skip
  keys += [f"{architecture}.{name}" for name in more]
  keys += ["split.count", "general.type", "general.alignment"]
  drawn = data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2))
  changes = {k: data.draw(values(whole.metadata.get(k))) for k in drawn}
  gone = data.draw(st.sets(st.sampled_from(keys), max_size=1))
  metadata = {k: v for k, v in whole.metadata.items() if k not in gone}
  head = whole._replace(metadata=metadata | changes)
  with monkeypatch.context() as patched:
    patched.setattr(reading.gguf_metadata, "read_head", lambda _: head)
    with fuzzing.used_or_refused(path):
      use(path, tokenizer=True)

"""Files of other libraries, damaged: used as they say, or refused by name."""

import json
import math
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from perl_jax.interop import hf_config, hf_files, hf_names, peft_config
from tests import fuzzing
from tests.interop.tiny import REFERENCES

ADAPTER = json.loads(
  (REFERENCES / "llama2" / "adapter" / peft_config.CONFIG).read_text()
)
MORE = {
  name: None
  for name in (
    *peft_config.HONOURED, *peft_config.HARMLESS, *peft_config.REFUSED
  )
}  # fmt: skip
# What a reader of patterns has to bear, beside any other text.
PATTERNS = st.sampled_from(
  ["q_proj", "(?i)q_proj", "(a)", "a{99999999999}", "((", "[", "\\1", ".*"]
)
WITH_PATTERNS = st.fixed_dictionaries(
  {},
  optional={
    "rank_pattern": st.dictionaries(PATTERNS, st.integers(-1, 4), max_size=2),
    "alpha_pattern": st.dictionaries(PATTERNS, fuzzing.SCALARS, max_size=2),
    "target_modules": PATTERNS | st.lists(PATTERNS, max_size=2),
    "exclude_modules": PATTERNS | st.lists(PATTERNS, max_size=2),
    "layers_pattern": PATTERNS | st.lists(PATTERNS, max_size=2),
    "layers_to_transform": st.integers(-1, 3) | st.lists(st.integers(0, 3)),
    "modules_to_save": st.lists(fuzzing.JSON, max_size=2),
    "lora_alpha": st.integers() | st.floats(),
    "init_lora_weights": fuzzing.JSON,
  },
)
MODULES = [
  f"model.layers.{i}.{module}"
  for i in range(2)
  for module in hf_names.PROJECTIONS.values()
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return tmp_path_factory.mktemp("fuzz")


@pytest.mark.slow
@fuzzing.drawn()
@given(fuzzing.changed(ADAPTER, MORE), WITH_PATTERNS)
def test_adapter_config(place, fields, patterns):
  fields |= patterns
  path = place / peft_config.CONFIG
  path.write_text(json.dumps(fields))
  with fuzzing.used_or_refused(path) as said:
    config = peft_config.read(place)
    for module in MODULES:
      assert config.targets(module) in (True, False)
      assert type(config.rank_of(module)) is int and config.rank_of(module) > 0
      assert 0 < config.alpha_of(module) < 3.4e38
    assert 0 <= config.dropout < 1 and config.alpha > 0
    assert isinstance(config.base, str) and isinstance(config.rslora, bool)
    # Of the patterns, this one alone matches the end of that name.
    ranks = fields.get("rank_pattern") or {}
    assert config.rank_of("x") == ranks.get(".*", fields.get("r", 8))
    assert config.alpha == fields.get("lora_alpha", 8)
  assert not said or any(name in said[0] for name in {"peft_type", *fields})


@fuzzing.drawn()
@given(fuzzing.damaged(json.dumps(ADAPTER, indent=1).encode()))
def test_bytes_of_an_adapter_config(place, content):
  path = place / peft_config.CONFIG
  path.write_bytes(content)
  with fuzzing.used_or_refused(path):
    peft_config.read(place)


FAMILIES = ("llama3", "mistral", "qwen2", "gemma2", "gemma3")
CHECKPOINTS = {
  name: json.loads(
    (REFERENCES / name / "checkpoint" / "config.json").read_text()
  )
  for name in FAMILIES
}
ROPE = st.fixed_dictionaries(
  {"rope_type": st.sampled_from(["default", "linear", "llama3"])},
  optional={
    name: fuzzing.SCALARS
    for name in ("rope_theta", "factor", "low_freq_factor",
                 "high_freq_factor", "original_max_position_embeddings")
  },
)  # fmt: skip
FIELDS = st.fixed_dictionaries(
  {}, optional={"rope_parameters": ROPE, "rope_scaling": ROPE}
)
# Field of config.json, and where its number ends up.
SIZES = {
  "vocab_size": "vocab_size",
  "hidden_size": "width",
  "intermediate_size": "mlp_width",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "max_position_embeddings": "max_len",
  "rms_norm_eps": "norm_eps",
}
ROPE_FIELDS = {"rope_theta": 10_000.0, "rope_scaling": None}


@pytest.mark.slow
@fuzzing.drawn()
@given(st.data(), st.sampled_from(FAMILIES), FIELDS)
def test_hugging_face_config(place, data, family, rope):
  base = CHECKPOINTS[family]
  fields = data.draw(fuzzing.changed(base, ROPE_FIELDS)) | rope
  path = place / "config.json"
  path.write_text(json.dumps(fields))
  with fuzzing.used_or_refused(path):
    found = hf_config.model_config(hf_config.load_hf_config(place), str(path))
    for name, ours in SIZES.items():
      if name in fields:
        assert getattr(found, ours) == fields[name], name
        assert type(fields[name]) is not bool
    for name in ("rope_theta", "rope_factor", "rope_low_freq_factor",
                 "rope_high_freq_factor", "query_scale", "attn_softcap",
                 "final_softcap", "rope_local_theta"):  # fmt: skip
      value = getattr(found, name)
      assert value is None or (type(value) is float and 0 < value < math.inf)
      assert value is None or value < 3.4e38, name
    if found.rope_type == "llama3":
      assert found.rope_low_freq_factor < found.rope_high_freq_factor


@pytest.fixture(scope="module")
def weights(place):
  """Bytes of a small checkpoint in one file."""
  tensors = {
    "model.embed_tokens.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "model.norm.weight": np.ones(3, np.float16),
  }
  return safetensors.numpy.save(tensors)


@pytest.mark.slow
@fuzzing.drawn()
@given(st.data())
def test_safetensors_header(place, weights, data):
  """Bytes of the header, and its JSON as a whole."""
  size = int.from_bytes(weights[:8], "little")
  header = json.loads(weights[8 : 8 + size])
  entry = header["model.norm.weight"]
  mended = st.builds(
    lambda e: {**header, "model.norm.weight": e}, fuzzing.changed(entry)
  ) | fuzzing.changed(header)
  content = data.draw(
    fuzzing.damaged(weights, 8 + size)
    | mended.map(
      lambda h: (
        len(json.dumps(h)).to_bytes(8, "little")
        + json.dumps(h).encode()
        + weights[8 + size :]
      )
    )
  )
  path = place / hf_files.SINGLE
  path.write_bytes(content)
  with fuzzing.used_or_refused(path):
    checkpoint = hf_files.Checkpoint(place)
    for name, shape in checkpoint.shapes.items():
      if checkpoint.dtypes[name] in hf_files.FLOATS:
        read = checkpoint.read(name, tuple(slice(None) for _ in shape))
        assert read.shape == shape


@pytest.mark.slow
@fuzzing.drawn()
@given(st.data())
def test_index_of_shards(place, weights, data):
  directory = pathlib.Path(place) / "shards"
  directory.mkdir(exist_ok=True)
  (directory / "a.safetensors").write_bytes(weights)
  index = {
    "metadata": {"total_size": 54},
    "weight_map": {
      "model.embed_tokens.weight": "a.safetensors",
      "model.norm.weight": "a.safetensors",
    },
  }
  weight_map = fuzzing.changed(index["weight_map"])
  drawn = fuzzing.changed(index) | weight_map.map(lambda m: {"weight_map": m})
  path = directory / hf_files.INDEX
  path.write_text(json.dumps(data.draw(drawn)))
  with fuzzing.used_or_refused(directory):
    assert hf_files.Checkpoint(directory).shapes

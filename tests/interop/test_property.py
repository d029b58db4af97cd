"""Checkpoints drawn at random: the same logits and scores as transformers'.

A draw takes one of a few models (so that few programs are compiled) and writes
it as others do: old or new spellings of config.json, fields left out that have
their default, fields that say nothing; tensors in other dtypes, files and
names. Some draws have a fault, and the error has to name it.
"""

import functools
import json
import pathlib
import re
import tempfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from perl_jax.models.lora import LoraSpec
from tests.interop import rewriting, torch_side
from tests.interop.tiny import load, logits, scores

TOLERANCE = 2e-4
_LLAMA3 = torch_side.FAMILIES["llama3"][1]["rope_parameters"]
_LINEAR = {"rope_type": "linear", "rope_theta": 9000.0, "factor": 4.0}
_MIXED = torch_side.FAMILIES["gemma3"][1]
# Name -> (config class, fields).
MODELS = {
  "llama": ("LlamaConfig", {}),
  "llama3": (
    "LlamaConfig",
    dict(rope_parameters=_LLAMA3, tie_word_embeddings=True),
  ),
  "biases": (
    "LlamaConfig",
    dict(attention_bias=True, mlp_bias=True, rope_parameters=_LINEAR),
  ),
  "mistral": ("MistralConfig", dict(sliding_window=5)),
  "mistral_global": ("MistralConfig", dict(sliding_window=None)),
  "qwen2": ("Qwen2Config", dict(tie_word_embeddings=True)),
  "qwen2_windows": (
    "Qwen2Config",
    dict(use_sliding_window=True, sliding_window=5, max_window_layers=0),
  ),
  "qwen3": ("Qwen3Config", {}),
  "gemma": ("GemmaConfig", {}),
  "gemma2": torch_side.FAMILIES["gemma2"],
  "gemma3": (
    "Gemma3TextConfig",
    _MIXED
    | dict(
      rope_parameters={
        "full_attention": _LINEAR,
        "sliding_attention": {"rope_type": "default", "rope_theta": 77.0},
      }
    ),
  ),
  "gemma3_vision": ("Gemma3Config", _MIXED),
  "mistral3": torch_side.FAMILIES["mistral3"],
  "llava": torch_side.FAMILIES["llava"],
}
IGNORED = {
  "attention_dropout": 0.3, "use_cache": False, "pretraining_tp": 2,
  "transformers_version": "4.40.0", "temperature": 0.2, "qk_layernorm": True,
  "auto_map": {"AutoConfig": "configuration_x.X"}, "embd_pdrop": 0.1,
}  # fmt: skip
# Field of config.json -> a value that has to be refused by the field's name.
FAULTS = {
  "is_causal": False,
  "hidden_size": "16",
  "num_hidden_layers": 0,
  "rms_norm_eps": None,
  "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
  "tie_word_embeddings": 3,
  "per_layer_config": {"0": {"intermediate_size": 8}},
  "quantization_config": {"quant_method": "awq"},
  "dtype": "bf16",
}


@functools.cache
def model(name, reward):
  """(fields of config.json, tensors) of a model, as transformers saves it."""
  import transformers

  config = torch_side.config_of(*MODELS[name])
  auto = torch_side.causal_class(config)
  if reward:
    config = torch_side.scoring_config(config)
    auto = transformers.AutoModelForSequenceClassification
  made = auto.from_config(config)
  torch_side.randomise(made, seed=len(name))
  with tempfile.TemporaryDirectory() as directory:
    made.save_pretrained(directory)
    path = pathlib.Path(directory)
    fields = json.loads((path / "config.json").read_text())
    return fields, rewriting.tensors_of(path)


def spelled(draw, fields):
  """The fields of a config.json, spelled in one of the ways there are."""
  fields = dict(fields)
  if "text_config" in fields:
    return fields | {"text_config": spelled(draw, fields["text_config"])}
  import transformers

  default = transformers.AutoConfig.for_model(fields["model_type"]).to_dict()
  needed = ("model_type", "architectures", "id2label", "label2id", "dtype")
  for field in sorted(set(fields) - set(needed)):
    same = field in default and fields[field] == default[field]
    if same and draw(st.booleans()):
      del fields[field]
  if draw(st.booleans()) and "dtype" in fields:
    fields["torch_dtype"] = fields.pop("dtype")
  rope = fields.get("rope_parameters")
  if rope and draw(st.booleans()):
    del fields["rope_parameters"]
    if "full_attention" in rope:
      local, rope = rope["sliding_attention"], rope["full_attention"]
      fields["rope_local_base_freq"] = local["rope_theta"]
    fields["rope_theta"] = rope["rope_theta"]
    kind = draw(st.sampled_from(["type", "rope_type"]))
    rest = {
      k: v for k, v in rope.items() if k not in ("rope_type", "rope_theta")
    }
    fields["rope_scaling"] = {kind: rope["rope_type"]} | rest if rest else None
  return fields


def renamed(draw, tensors, fields, reward):
  """The tensors under names that transformers takes for the same."""
  tensors = dict(tensors)
  nested = "text_config" in fields
  tied = "lm_head.weight" not in tensors and not reward
  if tied and draw(st.booleans()):
    name = next(n for n in tensors if n.endswith("embed_tokens.weight"))
    head = draw(st.sampled_from(["lm_head.weight", "model.lm_head.weight"]))
    copy = draw(st.booleans())
    tensors[head] = tensors[name] if copy else tensors.pop(name)
  prefix, others = "model.", ["", "model."]
  if nested:
    prefix = "language_model.model."
    others = [prefix, "language_model.", "model.language_model."]
  other = draw(st.sampled_from(others))
  found = {
    other + n.removeprefix(prefix)
    if n.startswith(prefix) and not n.startswith("model.lm_head")
    else n: v
    for n, v in tensors.items()
  }
  if draw(st.booleans()):
    found[f"{other}layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, "f4")
  if draw(st.booleans()) and not reward:
    found["v_head.summary.weight"] = np.ones((1, 16), "f4")
  return found


def write(draw, directory, fields, tensors):
  """The files of a checkpoint."""
  import ml_dtypes

  dtypes = st.sampled_from(["f4", "f2", "f8", ml_dtypes.bfloat16])
  tensors = {n: np.asarray(v, draw(dtypes)) for n, v in tensors.items()}
  rewriting.write(directory, tensors, metadata={"format": "pt"})
  form = draw(st.sampled_from(["single", "shards", "folder", "named"]))
  if form in ("shards", "folder"):
    listed = {"lm_head.weight": "model-1.safetensors"}
    folder = "parts/" if form == "folder" else ""
    listed = {n: folder + f for n, f in listed.items()}
    rewriting.shards(directory, folder, listed)
  (directory / "config.json").write_text(json.dumps(fields))
  if form == "named":
    rewriting.named_in_config(directory)


def spoil(draw, fields, tensors):
  """Puts a fault into a checkpoint; returns what the error has to name."""
  inner = fields.get("text_config", fields)
  fault = draw(st.sampled_from([*FAULTS, "missing", "shape", "quantised"]))
  if fault in FAULTS:
    inner[fault] = FAULTS[fault]
    return fault.removesuffix("_scaling")  # or as rope_type
  projections = [
    n for n in tensors if n.endswith("layers.1.self_attn.q_proj.weight")
  ]
  chosen = next(n for n in projections if "vision" not in n)
  if fault == "quantised":
    tensors[f"{chosen}_scale"] = np.ones(1, "f4")
    return "q_proj.weight_scale"
  cut = tensors.pop(chosen)
  if fault == "shape":
    tensors[chosen] = cut[:-1]
  return "layers.1.self_attn.q_proj.weight"


def theirs_of(directory, reward, seed):
  """What transformers says of a checkpoint."""
  import torch
  import transformers

  load_theirs = torch_side.load_causal
  if reward:
    auto = transformers.AutoModelForSequenceClassification
    load_theirs = auto.from_pretrained
  made = load_theirs(
    directory, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  measure = torch_side.scores_of if reward else torch_side.logits_of
  return measure(made, *torch_side.batch(seed))


@pytest.mark.slow
@hypothesis.settings(
  max_examples=40,
  deadline=None,
  derandomize=True,
  phases=[hypothesis.Phase.generate],  # a smaller example takes minutes to find
)
@hypothesis.given(st.data())
def test_the_same_numbers_or_an_error_that_names_the_field(data):
  pytest.importorskip("torch", reason="compares with PyTorch")
  draw = data.draw
  reward = draw(st.integers(0, 2)) == 0
  name = draw(st.sampled_from(sorted(MODELS)))
  whole, tensors = model(name, reward)
  fields = spelled(draw, whole)
  for field in draw(st.lists(st.sampled_from(sorted(IGNORED)), max_size=3)):
    fields[field] = IGNORED[field]
  tensors = renamed(draw, tensors, fields, reward)
  fault = spoil(draw, fields, tensors) if draw(st.integers(0, 3)) == 0 else ""
  with tempfile.TemporaryDirectory() as directory:
    write(draw, pathlib.Path(directory), fields, tensors)
    if fault:
      with pytest.raises(ValueError, match=re.escape(fault)) as caught:
        load(directory)
      assert str(directory) in str(caught.value)
      return
    seed = draw(st.integers(0, 3))
    theirs = theirs_of(directory, reward, seed)
    found = load(directory)
    measure = scores if reward else logits
    ours = measure(
      found.config,
      LoraSpec(),
      found.frozen | (found.head or {}),
      *torch_side.batch(seed),
    )
  np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)

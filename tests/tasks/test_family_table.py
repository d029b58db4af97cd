"""Every cell of the table in docs/models.md, beside transformers and PEFT.

A family has its own tokenizer, chat template and kind of model; shapes are tiny
and weights random. What PyTorch says is made anew; see `family_side.py`.
"""

import functools
import json
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from configs import export as export_config
from perl_jax import params
from perl_jax.data.text import unread
from perl_jax.data.text.hugging_face import import_transformers
from perl_jax.interop import hf_config
from perl_jax.tasks.initial import restore
from perl_jax.tasks.initial.model import ReadOptions
from tests.archives import read_arrays
from tests.interop import tiny as interop
from tests.interop import torch_side
from tests.tasks import family_side, tiny

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "models.md"
FAMILIES = family_side.FAMILIES
TOLERANCE = 2e-4
# Families that see images too.
SEEING = [
  family
  for family, (_, kind, _) in FAMILIES.items()
  if kind in torch_side.NESTED
]
# Families that are refused, and the model_type of their config.json.
REFUSED = {
  "Command R": "cohere",
  "DeepSeek-V3, DeepSeek-R1": "deepseek_v3",
  "Falcon": "falcon",
  "Gemma 3n": "gemma3n",
  "GPT-2": "gpt2",
  "GPT-NeoX, Pythia": "gpt_neox",
  "gpt-oss": "gpt_oss",
  "Granite": "granite",
  "Llama 4": "llama4",
  "Mamba": "mamba",
  "Ministral": "ministral",
  "Mixtral": "mixtral",
  "OLMo 2": "olmo2",
  "PaliGemma": "paligemma",
  "Phi-2": "phi",
  "Phi-3, Phi-4": "phi3",
  "Qwen2-VL": "qwen2_vl",
  "Qwen2.5-VL": "qwen2_5_vl",
  "Qwen3-MoE": "qwen3_moe",
  "Qwen3-Next": "qwen3_next",
  "SmolLM3": "smollm3",
}


def family_side_runs(what, root):
  done = subprocess.run(
    [sys.executable, "-m", "tests.tasks.family_side", what, str(root)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  for library in ("torch", "peft"):
    pytest.importorskip(library, reason="makes and judges the models")
  directory = tmp_path_factory.mktemp("families")
  family_side_runs("make", directory)
  return directory


@functools.cache
def start_of(directory, init, role):
  options = ReadOptions(base=str(directory / "base"))
  return restore.load(directory / init, "best", role, "init", options=options)


def logits(directory, init):
  """Ours on the prompt, as our tokenizer writes it; and PyTorch's of both."""
  start = start_of(directory, init, "policy")
  ids, _ = start.load_tokenizer().encode_prompt(family_side.PROMPT)
  expected = read_arrays(directory / "expected.npz")
  assert ids == expected["prompt"].tolist()
  weights = start.role.frozen
  if start.role.adapter is not None:
    weights = params.combine(start.role.adapter, weights)
  backbone = start.role.backbone
  ours = interop.logits(
    backbone.config,
    backbone.lora,
    weights,
    jnp.array([ids]),
    jnp.array([len(ids)]),
  )
  return np.asarray(ours), expected


def base_in(directory):
  ours, expected = logits(directory, "base")
  np.testing.assert_allclose(ours, expected["logits"], atol=TOLERANCE, rtol=0)


def adapter_in(directory):
  ours, expected = logits(directory, "adapter")
  name = "adapter_logits"
  np.testing.assert_allclose(ours, expected[name], atol=TOLERANCE, rtol=0)
  assert np.abs(expected[name] - expected["logits"]).max() > 0.1


def reward_in(directory):
  start = start_of(directory, "reward", "reward")
  assert start.score_at == "template"
  tokenization = start.load_tokenizer()
  rows = []
  for *prompt, last in family_side.CONVERSATIONS:
    ids, _ = tokenization.encode_prompt(prompt, closed=True)
    rows.append(
      ids + tokenization.encode_response(prompt, last["content"], closed=True)
    )
  theirs = json.loads((directory / "conversations.json").read_text())
  assert rows == theirs
  rows = [unread.strip(row, tokenization.unread) for row in rows]
  lengths = np.array([len(row) for row in rows])
  tokens = np.zeros((len(rows), max(lengths)), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  backbone = start.role.backbone
  ours = interop.scores(
    backbone.config,
    backbone.lora,
    start.role.frozen | start.role.head,
    tokens,
    lengths,
  )
  expected = read_arrays(directory / "expected.npz")["scores"]
  np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


CELLS_IN = {
  "base in": base_in,
  "adapter in": adapter_in,
  "reward in": reward_in,
}
# Cell -> what is exported, as which role and in which format, and what users
# of the export should see.
CELLS_OUT = {
  "adapter out": ("adapter", "policy", "adapter", "adapter_logits"),
  "merged out": ("adapter", "policy", "merged", "adapter_logits"),
  "reward out": ("reward", "reward", "merged", "scores"),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cell", CELLS_IN)
def test_in(cell, family, root):
  CELLS_IN[cell](root / family)


@pytest.fixture(scope="module")
def judged(root):
  """Errors of the exports by (family, cell); the others have been judged."""
  failed = {}
  for family in FAMILIES:
    for cell, (init, role, form, _) in CELLS_OUT.items():
      directory = root / family
      values = {
        "init": str(directory / init),
        "role": role,
        "format": form,
        "base": str(directory / "base"),
      }
      config = tiny.override(export_config.get_config(), values)
      try:
        tiny.tasks.run(config, directory / f"{role}-{form}")
      except Exception as error:
        failed[family, cell] = error
  family_side_runs("judge", root)
  return failed


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cell", CELLS_OUT)
def test_out(cell, family, root, judged):
  if (family, cell) in judged:
    raise judged[family, cell]
  _, role, form, expected = CELLS_OUT[cell]
  found = np.load(root / family / f"judged-{role}-{form}.npy")
  expected = read_arrays(root / family / "expected.npz")[expected]
  np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
  if cell != "adapter out":
    stops = family_side.text_family(family).stops
    require_one_voice(root / family / f"{role}-{form}", role, stops)


@pytest.fixture(scope="module")
def cards(root, judged):
  """What the code of model cards gives, by the family of a policy's adapter."""
  assert not judged
  found = {family: root / family / "policy-adapter" for family in SEEING}
  done = subprocess.run(
    [sys.executable, "-m", "tests.interop.card_side", *found.values()],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return {
    family: json.loads((directory / "card.json").read_text())
    for family, directory in found.items()
  }


@pytest.mark.slow
@pytest.mark.parametrize("family", SEEING)
def test_the_card_of_an_adapter_loads_a_model_with_vision(family, cards):
  """On two prompts at once, which changes no response."""
  found = cards[family]
  assert len(found["batch"]) == 2 and all(found["batch"])
  assert found["batch"] == found["alone"]


def require_one_voice(directory, role, stops):
  """Token ids of an export are the same in all of its files."""
  tokenizer = import_transformers().AutoTokenizer.from_pretrained(directory)
  settings = json.loads((directory / "config.json").read_text())
  assert settings["bos_token_id"] == tokenizer.bos_token_id
  assert tokenizer.pad_token_id in (None, settings["pad_token_id"])
  ends = {*tokenizer.convert_tokens_to_ids(list(stops))}
  assert tokenizer.eos_token_id in ends
  if role == "policy":
    path = directory / "generation_config.json"
    generation = json.loads(path.read_text())
    for name in ("bos_token_id", "pad_token_id"):
      assert generation[name] == settings[name]
    assert {*generation["eos_token_id"]} == ends
  eos = settings["eos_token_id"]
  assert {*(eos if isinstance(eos, list) else [eos])} <= ends


@pytest.mark.parametrize("family", REFUSED)
def test_other_families_are_refused_by_name(family, tmp_path):
  kind = REFUSED[family]
  known = import_transformers().AutoConfig.for_model(kind)
  (tmp_path / "config.json").write_text(known.to_json_string())
  with pytest.raises(ValueError, match=f"model_type='{kind}'") as caught:
    hf_config.load_hf_config(tmp_path)
  for name in (*hf_config.FAMILIES, *hf_config.NESTED):
    assert name in str(caught.value)


def test_the_page_has_these_families_and_cells():
  rows = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("|") and not re.match(r"\|[\s:|-]+$", line)
  ]
  header, *rest = rows
  assert header == ["family", "`model_type`", *CELLS_IN, *CELLS_OUT]
  table = {family: (kind.strip("`"), cells) for family, kind, *cells in rest}
  assert len(table) == len(rest)
  refused = {f: kind for f, (kind, cells) in table.items() if "no" in cells}
  assert refused == REFUSED
  supported = {f: kind for f, (kind, _) in table.items() if f not in refused}
  transformers = import_transformers()
  assert supported == {
    family: getattr(transformers, kind).model_type
    for family, (_, kind, _) in FAMILIES.items()
  }
  for family, (_, cells) in table.items():
    assert set(cells) == {"no" if family in refused else "yes"}, family

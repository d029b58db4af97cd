"""Adapters of every kind as PEFT writes them: the same logits, or a way out.

What PEFT says is made anew, in a process of its own; see `peft_side.py`.
"""

import json
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax.interop import peft, peft_config
from perl_jax.models.lora import LoraSpec
from tests.interop import peft_side, torch_side
from tests.interop.test_parity import TOLERANCE, logits
from tests.interop.tiny import load

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  for library in ("torch", "peft"):
    pytest.importorskip(library, reason="what PEFT makes of its own adapters")
  directory = tmp_path_factory.mktemp("kinds")
  done = subprocess.run(
    [sys.executable, "-m", "tests.interop.peft_side", str(directory)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return directory


def require_logits(base, expected, adapter=None):
  """Base, or base + adapter, gives the logits in a file."""
  found, spec = load(base), LoraSpec()
  params = found.frozen
  if adapter is not None:
    role = peft.load_adapter(adapter, found.config)
    spec, params = role.lora, params_lib.combine(role.adapter, params)
  batch = map(jnp.asarray, torch_side.batch(0))
  ours = logits(found.config, spec, params, *batch)
  np.testing.assert_allclose(ours, np.load(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", [*peft_side.LOADED, "vision"])
def test_what_peft_loads_loads_here_to_the_same_logits(root, kind):
  name = "gemma3" if kind == "vision" else peft_side.family(kind)
  base = root / "bases" / name
  expected = root / kind / "expected.npy"
  require_logits(base, expected, root / kind)
  with pytest.raises(AssertionError):  # the adapter does something
    require_logits(base, expected)


@pytest.mark.parametrize("kind", peft_side.MERGED)
def test_what_is_more_than_a_and_b_is_refused_and_merging_helps(root, kind):
  base = load(root / "bases" / peft_side.family(kind))
  start = kind in ("pissa", "olora")
  text = f"init_lora_weights='{kind}'" if start else kind
  with pytest.raises(ValueError, match=re.escape(text)) as caught:
    peft.load_adapter(root / kind, base.config)
  assert "merge_and_unload" in str(caught.value)
  require_logits(root / kind / "merged", root / kind / "expected.npy")


@pytest.mark.parametrize("kind", peft_side.STARTED)
def test_a_start_taken_off_the_base_is_refused_and_both_ways_out_help(
  root, kind, tmp_path
):
  base, expected = root / "bases/llama2", root / kind / "expected.npy"
  with pytest.raises(ValueError, match=f"init_lora_weights='{kind}'") as caught:
    peft.load_adapter(root / kind, load(base).config)
  assert "path_initial_model_for_weight_conversion" in str(caught.value)
  assert '"init_lora_weights": true' in str(caught.value)
  require_logits(base, expected, root / kind / "converted")
  edited = tmp_path / "edited"
  shutil.copytree(root / kind, edited)
  settings = json.loads((edited / peft.CONFIG).read_text())
  settings["init_lora_weights"] = True
  (edited / peft.CONFIG).write_text(json.dumps(settings))
  require_logits(root / kind / "started", expected, edited)
  with pytest.raises(AssertionError):  # it is another model on the base itself
    require_logits(base, expected, edited)


def test_a_pickle_is_refused_and_can_be_converted(root):
  base = root / "bases/llama2"
  with pytest.raises(FileNotFoundError, match=r"torch\.load\('adapter_model"):
    peft.load_adapter(root / "pickle", load(base).config)
  require_logits(base, root / "plain/expected.npy", root / "safe")


def test_every_field_of_peft_is_classed(root):
  """A field that a new PEFT adds has to be put into one of the tables."""
  fields = json.loads((root / "fields.json").read_text())
  classed = (
    *peft_config.HONOURED, *peft_config.HARMLESS, *peft_config.REFUSED
  )  # fmt: skip
  assert set(fields) <= set(classed)
  assert set(classed) - set(fields) == {"merge_weights"}

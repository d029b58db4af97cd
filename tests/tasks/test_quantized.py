"""Stages on a base of few bits: every role runs on it, adapters stay wide."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import export as export_config
from perl_jax import params, tasks
from perl_jax.models import quantization
from perl_jax.tasks.initial import manifest, restore
from perl_jax.tasks.initial.model import ReadOptions
from tests.tasks import tiny


@pytest.fixture(scope="module")
def nf4(sft_run, tmp_path_factory):
  """Reward model and policy on the fine-tuned base, kept in nf4."""
  root = tmp_path_factory.mktemp("nf4")
  tiny.run(
    root / "reward", "reward", base_dtype="nf4", reward__init=str(sft_run)
  )
  tiny.run(
    root / "rl",
    "rl",
    base_dtype="nf4",
    policy__init=str(sft_run),
    reward__init=str(root / "reward"),
  )
  return root


def test_all_roles_stand_on_the_one_quantised_base(nf4, sft_run):
  policy, reward = (
    restore.load(nf4 / name, "last", role, "init")
    for name, role in (("rl", "policy"), ("reward", "reward"))
  )
  assert params.is_quantized(policy.role.frozen)
  assert policy.fingerprint == reward.fingerprint
  assert policy.source["dtype"] == reward.source["dtype"] == "nf4"
  assert policy.role.frozen["embedding"].dtype == jnp.bfloat16
  exact = restore.load(sft_run, "best", "policy", "init")
  assert params.nbytes(policy.role.frozen) < 0.5 * params.nbytes(
    exact.role.frozen
  )
  for leaf in params.flatten(policy.role.adapter).values():
    assert leaf.dtype == jnp.float32
  assert tiny.summary(nf4 / "rl")["kl_at_step_0"] == 0.0


def test_evaluation_takes_the_base_as_it_was_trained_on(nf4, tmp_path):
  found = tiny.run(
    tmp_path / "evaluate",
    "evaluate",
    policy__init=str(nf4 / "rl"),
    reward__init=str(nf4 / "reward"),
  )
  trained = tiny.summary(nf4 / "rl")
  # Their anchor is the quantised base: before the first step the KL was 0.
  assert np.isfinite(found["policy.kl"])
  assert found["policy.kl"] < 10 * abs(trained["kl"]) + 0.1


def export(directory, **values):
  config = export_config.get_config()
  return tasks.run(
    tiny.override(config, {"format": "merged"} | values), directory
  )


def test_a_merged_export_holds_what_was_trained(nf4, tmp_path):
  found = export(tmp_path / "out", init=str(nf4 / "rl"), checkpoint="last")
  assert found["largest_logit_change"] <= 2e-4


def test_a_checkpoint_is_quantised_as_it_is_read(sft_run, tmp_path):
  export(tmp_path / "hf", init=str(sft_run))
  whole, few = (
    restore.load(
      tmp_path / "hf", "", "policy", "base", options=ReadOptions(dtype=dtype)
    ).role.frozen
    for dtype in ("bfloat16", "int8")
  )
  kernel = whole["layers"]["mlp"]["down"]["kernel"]
  expected = quantization.quantize(kernel, "int8")
  found = few["layers"]["mlp"]["down"]["kernel"]
  np.testing.assert_array_equal(found.qvalue, expected.qvalue)
  np.testing.assert_array_equal(found.scale, expected.scale)


@pytest.mark.parametrize(
  ("task", "overrides", "texts"),
  [
    ("reward", {"base_dtype": "int4"}, ("base_dtype='int4'", "nf4")),
    (
      "reward",
      {"base_dtype": "nf4", "tuning": "full"},
      ("config.tuning='full'", "nf4", "base_dtype"),
    ),
    (
      "rl",
      {"base_dtype": "int8", "reward__init": "reward"},
      ("reward.init", "nf4", "config.base_dtype='int8'"),
    ),
  ],
)
def test_bases_that_do_not_fit(nf4, sft_run, tmp_path, task, overrides, texts):
  if "reward__init" in overrides:
    overrides = overrides | {"reward__init": str(nf4 / "reward")}
  init = {"rl": "policy__init", "reward": "reward__init"}[task]
  with pytest.raises(ValueError) as caught:
    tiny.run(tmp_path / "run", task, **{init: str(sft_run)} | overrides)
  for found in texts:
    assert found in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_records_say_what_the_base_is_kept_in(nf4):
  described = json.loads((nf4 / "rl" / manifest.MODEL_FILE).read_text())
  assert described["base"]["dtype"] == "nf4"

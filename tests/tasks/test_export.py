"""Out as a checkpoint, in as a base; out as an adapter, in as a role."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params, tasks
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks.initial import manifest, restore
from perl_jax.tasks.initial.model import ReadOptions
from perl_jax.tasks.training import lock
from tests.tasks import tiny


def export(directory, init, **overrides):
  module = __import__("configs.export", fromlist=["get_config"])
  values = {"init": str(init)} | {
    k.replace("__", "."): v for k, v in overrides.items()
  }
  return tasks.run(tiny.override(module.get_config(), values), directory)


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
  """Directories by name, each made when first asked for."""
  root = tmp_path_factory.mktemp("outside")

  @functools.cache
  def make(name):
    target = root / name
    if name == "hf":
      export(target, finished / "sft", format="merged")
    elif name == "reward":
      tiny.run(target, "reward", base=str(make("hf")))
    elif name == "rl":
      tiny.run(
        target, "rl", base=str(make("hf")), reward__init=str(make("reward"))
      )
    elif name == "policy_adapter":
      export(target, make("rl"), checkpoint="last")
    elif name == "reward_adapter":
      export(target, make("reward"), role="reward")
    elif name == "policy_merged":
      export(target, make("rl"), checkpoint="last", format="merged")
    elif name == "reward_merged":
      export(target, make("reward"), role="reward", format="merged")
    else:
      of, policy, reward = {
        "judged": ("rl", "rl", "reward"),
        "judged_adapters": ("hf", "policy_adapter", "reward_adapter"),
        "judged_merged": ("hf", "policy_merged", "reward_merged"),
      }[name]
      del of
      tiny.run(
        target,
        "evaluate",
        base=str(make("hf")),
        policy__init=str(make(policy)),
        reward__init=str(make(reward)),
      )
    return target

  return make


def test_a_checkpoint_out_is_the_base_in(made, sft_run):
  sft = restore.load(sft_run, "best", "policy", "policy.init")
  found = restore.load(made("hf"), "", "policy", "policy.init")
  assert found.role.adapter is None and found.role.head is None
  assert found.fingerprint == sft.fingerprint
  ours, theirs = map(
    tokenization_lib.load_tokenizer, (sft.tokenizer, made("hf"))
  )
  assert ours.stop_ids == theirs.stop_ids and ours.bos_id == theirs.bos_id
  messages = [{"role": "user", "content": "two oat lattes, please"}]
  assert ours.encode_prompt(messages) == theirs.encode_prompt(messages)
  generation = json.loads((made("hf") / "generation_config.json").read_text())
  assert generation["eos_token_id"] == list(ours.stop_ids)


def test_stages_go_on_from_a_checkpoint(made):
  """One base for all roles: that of the directory, by its fingerprint."""
  hf = restore.load(made("hf"), "", "policy", "policy.init")
  for name in ("reward", "rl"):
    described = json.loads((made(name) / manifest.MODEL_FILE).read_text())
    assert described["fingerprint"] == hf.fingerprint
    assert described["base"] == {
      "kind": "huggingface", "path": str(made("hf")), "dtype": "float32",
    }  # fmt: skip
    copied = {p.suffix for p in (made(name) / manifest.TOKENIZER).iterdir()}
    assert ".safetensors" not in copied
  assert tiny.summary(made("rl"))["kl_at_step_0"] == 0.0


def test_the_anchor_of_a_policy_on_a_checkpoint_is_the_checkpoint(made):
  found = tiny.summary(made("judged"))
  assert found["policy.kl"] != 0.0
  assert found["anchor.entropy"] != found["policy.entropy"]


@pytest.mark.parametrize("kind", ["judged_adapters", "judged_merged"])
def test_what_goes_out_comes_in_the_same(made, kind):
  """The policy's responses and the reward model's scores are as they were."""
  expected, found = tiny.summary(made("judged")), tiny.summary(made(kind))
  for name, value in expected.items():
    known = name.startswith(("policy.", "reward_model."))
    # No anchor is known, and no step.
    if known and not name.startswith("policy.kl") and "_step" not in name:
      assert found[name] == pytest.approx(value, abs=1e-4), name
  samples = [
    [row["policy"] for row in tiny.lines(made(name), "samples.jsonl")]
    for name in ("judged", kind)
  ]
  assert samples[0] == samples[1]


def test_merging_into_float32_changes_nothing_that_shows(finished, tmp_path):
  exact = export(tmp_path / "f32", finished / "rl", format="merged")
  assert exact["largest_logit_change"] <= 2e-4
  rounded = export(
    tmp_path / "bf16", finished / "rl", format="merged", dtype="bfloat16"
  )
  assert 2e-4 < rounded["largest_logit_change"] < 0.2
  assert "largest_logit_change" in (tmp_path / "bf16/README.md").read_text()
  start = restore.load(finished / "rl", "last", "policy", "policy.init")
  merged = params.merge(start.role.frozen, start.role.adapter, start.role.lora)
  read = restore.load(tmp_path / "f32", "", "policy", "policy.init").role.frozen
  jax.tree.map(np.testing.assert_array_equal, dict(merged), dict(read))
  half = restore.load(
    tmp_path / "bf16", "", "policy", "policy.init",
    options=ReadOptions(dtype="bfloat16"),
  ).role.frozen  # fmt: skip
  assert half["embedding"].dtype == jnp.bfloat16


def test_a_base_of_ours_goes_with_its_adapter(finished, tmp_path):
  """Nobody else has it: it lies beside the adapter, which names it."""
  target = tmp_path / "policy"
  export(target, finished / "rl")
  described = json.loads((target / "adapter_config.json").read_text())
  assert described["base_model_name_or_path"] == str(target / "base")
  ours = restore.load(finished / "rl", "last", "policy", "policy.init")
  theirs = restore.load(target, "", "policy", "policy.init")
  assert (
    theirs.fingerprint == ours.fingerprint
    and theirs.role.lora == ours.role.lora
  )
  jax.tree.map(
    np.testing.assert_array_equal, ours.role.adapter, theirs.role.adapter
  )


@pytest.mark.parametrize(
  ("overrides", "texts"),
  [
    ({"format": "onnx"}, ("config.format='onnx'", "merged")),
    ({"role": "value"}, ("config.role='value'", "reward")),
    ({"dtype": "int4"}, ("config.dtype='int4'",)),
    ({"init": ""}, ("config.init is empty",)),
    ({"shard_bytes": 0}, ("config.shard_bytes=0",)),
    ({"role": "reward"}, ("no scalar head", "'policy'")),
  ],
)
def test_exports_that_cannot_be(finished, tmp_path, overrides, texts):
  with pytest.raises(ValueError) as caught:
    export(tmp_path / "out", **{"init": finished / "rl"} | overrides)
  for found in texts:
    assert found in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_an_adapter_of_a_full_tuning_is_refused(finished, tmp_path):
  with pytest.raises(ValueError, match=r"tuned in full.*'merged'"):
    export(tmp_path / "out", finished / "sft")
  assert not list(tmp_path.iterdir())


def test_a_directory_that_exists_is_left_alone(finished, tmp_path):
  (tmp_path / "out").mkdir()
  with pytest.raises(ValueError, match=r"exists"):
    export(tmp_path / "out", finished / "rl")
  assert not list((tmp_path / "out").iterdir())


def test_a_link_that_leads_nowhere_is_refused_first(tmp_path):
  """Its name is taken: the export could not have it in the end."""
  (tmp_path / "out").symlink_to(tmp_path / "gone")
  with pytest.raises(ValueError, match=r"out exists"):
    export(tmp_path / "out", tmp_path / "no_run")
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_export_that_writes_there_is_not_disturbed(finished, tmp_path):
  partial = tmp_path / ".out.partial"
  with lock.held(partial):
    (partial / "half").write_text("theirs")
    with pytest.raises(ValueError, match=r"\.out\.partial"):
      export(tmp_path / "out", finished / "sft", format="merged")
    assert (partial / "half").read_text() == "theirs"
  # What a killed one has left is in nobody's way.
  export(tmp_path / "out", finished / "sft", format="merged")
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  assert not (tmp_path / "out" / "half").exists()
  assert not (tmp_path / "out" / lock.LOCK_FILE).exists()


def test_a_head_with_a_bias_is_not_exported_silently(tmp_path, finished):
  """Pairwise training leaves the bias at 0; pointwise does not."""
  run = tmp_path / "pointwise"
  tiny.run(run, "reward", reward__init=str(finished / "sft"), loss="pointwise")
  with pytest.raises(ValueError, match=r"bias of .*drop_bias"):
    export(tmp_path / "out", run, role="reward")
  export(tmp_path / "out", run, role="reward", drop_bias=True)
  assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_likelihood_head_is_refused_by_name(tmp_path, finished):
  run = tmp_path / "likelihood"
  tiny.run(run, "reward", reward__init=str(finished / "sft"), head="likelihood")
  with pytest.raises(ValueError, match=r"likelihood head.*config\.head=scalar"):
    export(tmp_path / "out", run, role="reward")
  assert not (tmp_path / "out").exists()

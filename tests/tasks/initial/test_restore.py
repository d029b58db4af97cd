"""What a stage leaves for the next: found again, and never mistaken."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from perl_jax import checkpoint, params, roles, steps
from perl_jax.models import presets
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import manifest, model, restore
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.initial.model import ReadOptions
from perl_jax.tasks.training import standing
from tests import toys
from tests.interop.tiny import REFERENCES


def leaves_equal(first, second):
  first, second = params.flatten(first), params.flatten(second)
  return first.keys() == second.keys() and all(
    np.array_equal(first[path], second[path]) for path in first
  )


def test_full_tuning_leaves_a_base_of_its_own(sft_run):
  start = restore.load(sft_run, "best", "policy", "policy.init")
  assert (start.role.adapter, start.role.head) == (None, None)
  assert start.role.lora == LoraSpec()
  assert start.fingerprint == params.fingerprint(start.role.frozen)
  assert start.source["kind"] == "workdir"
  assert start.tokenizer == sft_run / "tokenizer"
  described = json.loads((sft_run / "model.json").read_text())
  assert described["tuning"] == "full" and described["trained"] == ["policy"]
  assert described["base"] == {
    "kind": "random",
    "seed": 0,
    "dtype": "float32",
  }
  assert described["fingerprint"] != start.fingerprint  # it was trained


def test_lora_leaves_an_adapter_on_a_base_by_reference(sft_run, reward_run):
  sft = restore.load(sft_run, "best", "policy", "policy.init")
  start = restore.load(reward_run, "best", "reward", "reward.init")
  assert start.fingerprint == sft.fingerprint
  assert leaves_equal(start.role.frozen, sft.role.frozen)
  assert start.role.lora == LoraSpec(rank=2)
  assert all(map(params.is_adapter, params.flatten(start.role.adapter)))
  assert np.any(np.asarray(start.role.head["head"]["kernel"]))


def test_where_a_score_is_read_is_that_of_the_training(reward_run, tmp_path):
  """Older workdirs, which do not say it, read it at the end of the turn."""
  start = restore.load(reward_run, "best", "reward", "reward.init")
  assert start.score_at == "template"
  described = json.loads((reward_run / "model.json").read_text())
  del described["score_at"]
  (tmp_path / "model.json").write_text(json.dumps(described))
  assert manifest.read_model(tmp_path, "reward.init")["score_at"] == "turn"


def test_known_base_is_shared_not_loaded_again(sft_run, reward_run, rl_run):
  sft = restore.load(sft_run, "best", "policy", "policy.init")
  for run, role in ((reward_run, "reward"), (rl_run, "policy")):
    start = restore.load(run, "best", role, "x.init", shared_with=sft)
    assert start.role.frozen is sft.role.frozen


def test_roles_of_an_rl_run_are_told_apart(rl_run):
  policy = restore.load(rl_run, "last", "policy", "policy.init")
  value = restore.load(rl_run, "last", "value", "value.init")
  assert policy.role.head is None and value.role.head is not None
  assert not leaves_equal(policy.role.adapter, value.role.adapter)


@pytest.mark.parametrize(
  "field, way_out",
  [("init", "config.role='reward'"), ("policy.init", "that it began with")],
)
def test_a_reward_model_is_no_policy(reward_run, field, way_out):
  with pytest.raises(ValueError, match="is a reward model") as caught:
    restore.load(reward_run, "last", "policy", field)
  assert f"config.{field}=" in str(caught.value)
  assert way_out in str(caught.value)


def test_an_anchor_that_has_been_trained_again(finished, tmp_path):
  """It is not what the policy was trained from, and the KL not its own."""
  copy = tmp_path / "moved"
  shutil.copytree(finished, copy)
  policy = restore.load(copy / "rl", "last", "policy", "policy.init")
  config = ConfigDict({"policy": {"init": str(copy / "rl")}})
  anchor = restore.load_anchor(config, policy, ReadOptions())
  standing.require_anchor(str(copy / "rl"), policy, anchor)
  frozen = jax.tree.map(lambda x: x + 1e-6, anchor.role.frozen)
  moved = dataclasses.replace(
    anchor,
    role=dataclasses.replace(anchor.role, frozen=frozen),
    fingerprint=params.fingerprint(frozen),
  )
  with pytest.raises(ValueError, match="from another model") as caught:
    standing.require_anchor(str(copy / "rl"), policy, moved)
  assert "config.policy.init=" in str(caught.value)


def test_best_and_last_are_different_files(rl_run):
  """Which one is asked for reaches the checkpointer (best may be last)."""
  with checkpoint.Checkpointer(rl_run, metric="m", mode="max") as saver:
    best, last = saver.best_step, saver.latest_step
  first = restore.load(rl_run, "best", "policy", "policy.init").role.adapter
  second = restore.load(rl_run, "last", "policy", "policy.init").role.adapter
  assert leaves_equal(first, second) == (best == last)


def test_runs_can_be_moved_as_a_whole(finished, tmp_path):
  """References are relative: the base comes from the copy, not the original."""
  copy = tmp_path / "moved"
  shutil.copytree(finished, copy)
  start = restore.load(copy / "rl", "best", "policy", "policy.init")
  assert start.source["path"] == str(copy / "sft")
  shutil.rmtree(copy / "sft")
  with pytest.raises(FileNotFoundError, match=str(copy / "sft")):
    restore.load(copy / "rl", "best", "policy", "policy.init")


def test_a_description_that_lacks_a_field_is_refused(reward_run, tmp_path):
  copy = tmp_path / "reward"
  shutil.copytree(reward_run, copy)
  path = copy / manifest.MODEL_FILE
  described = json.loads(path.read_text())
  del described["head"]
  path.write_text(json.dumps(described))
  with pytest.raises(ValueError, match=r"has no head.*run that stage again"):
    restore.load(copy, "best", "reward", "reward.init")


def test_base_that_was_trained_further_is_refused(finished, tmp_path):
  """An adapter on other weights than its own gives rubbish without an error."""
  copy = tmp_path / "moved"
  shutil.copytree(finished, copy)
  base = restore.load(copy / "sft", "best", "policy", "policy.init").role.frozen
  moved = jax.tree.map(lambda x: x + 1e-6, base)
  state = steps.TrainState({"policy": moved}, (), np.int32(9))
  with checkpoint.Checkpointer(
    copy / "sft", metric="loss", mode="min"
  ) as saver:
    saver.save(9, jax.tree.map(jax.numpy.asarray, state), {}, {"loss": -1.0})
  with pytest.raises(ValueError) as caught:
    restore.load(copy / "reward", "best", "reward", "reward.init")
  message = str(caught.value)
  assert "config.reward.init=" in message and "fingerprint" in message
  assert str(copy / "sft") in message and "train this stage again" in message


def test_random_base_follows_the_seed(tmp_path):
  config = presets.preset("tiny", vocab_size=7)
  first = model.random_start(config, 3, tmp_path, "float32")
  assert first.source == {
    "kind": "random",
    "seed": 3,
    "dtype": "float32",
  }
  same = model.random_start(config, 3, tmp_path, "float32")
  assert first.fingerprint == same.fingerprint
  assert (
    model.random_start(config, 4, tmp_path, "float32").fingerprint
    != same.fingerprint
  )


def start_of(adapter=None, lora=None, head=None):
  config = toys.config("tiny")
  base = toys.random_params(config)
  role = roles.Role(
    roles.Backbone(config, lora or LoraSpec()),
    (adapter or {}) | (head or {}),
    base,
  )
  source = {"kind": "random", "seed": 0}
  return model.Start(role, source, params.fingerprint(base), None)


def split(start, **options):
  """(trainable, frozen) of the role that is trained from a start."""
  role = trainable_lib.trainable_role(start, **options)
  return role.trainable, role.frozen


def drawn_adapter(spec):
  tree = toys.random_params(toys.config("tiny"), spec, head=True)
  trainable, _ = params.partition(tree, "lora")
  head = {"head": trainable.pop("head")}
  return trainable, head


def test_new_adapter_changes_nothing_and_follows_the_seed():
  spec = LoraSpec(rank=2)
  start = start_of()
  trainable, frozen = split(
    start, lora=spec, tuning="lora", seed=1, head="scalar"
  )
  assert leaves_equal(frozen, start.role.frozen)
  leaves = params.flatten(trainable)
  assert not any(np.any(x) for p, x in leaves.items() if p.endswith("lora_b"))
  assert not any(np.any(x) for p, x in leaves.items() if params.is_head(p))
  other, _ = split(start, lora=spec, tuning="lora", seed=2, head="")
  assert "head" not in other
  path = "layers/attention/q/lora_a"
  assert np.any(leaves[path] != params.flatten(other)[path])


def test_earlier_adapter_and_head_are_gone_on_with():
  spec = LoraSpec(rank=2)
  adapter, head = drawn_adapter(spec)
  start = start_of(adapter, spec, head)
  trainable, _ = split(start, lora=spec, tuning="lora", seed=0, head="scalar")
  assert leaves_equal(trainable, adapter | head)
  dropping, _ = split(
    start, lora=LoraSpec(2, dropout=0.1), tuning="lora", seed=0, head="scalar"
  )
  assert leaves_equal(dropping, adapter | head)
  with pytest.raises(ValueError, match=r"rank=2.*asks for.*rank=4"):
    split(start, lora=LoraSpec(rank=4), tuning="lora", seed=0, head="scalar")


def test_a_head_grows_a_likelihood_and_does_not_lose_one():
  spec = LoraSpec(rank=2)
  adapter, head = drawn_adapter(spec)
  grown, _ = split(
    start_of(adapter, spec, head),
    lora=spec,
    tuning="lora",
    seed=0,
    head="likelihood",
  )
  likelihood = {"likelihood": np.zeros(2, np.float32)}
  assert leaves_equal(grown["head"], head["head"] | likelihood)
  with pytest.raises(ValueError, match=r"Set config.head to 'likelihood'"):
    split(
      start_of(adapter, spec, {"head": grown["head"]}),
      lora=spec,
      tuning="lora",
      seed=0,
      head="scalar",
    )


def test_full_tuning_merges_an_earlier_adapter():
  spec = LoraSpec(rank=2)
  adapter, _ = drawn_adapter(spec)
  start = start_of(adapter, spec)
  trainable, frozen = split(
    start, lora=LoraSpec(), tuning="full", seed=0, head="scalar"
  )
  assert not frozen
  expected = params.merge(start.role.frozen, adapter, spec)
  assert leaves_equal(trainable, expected | roles.init_head(start.config))
  assert not leaves_equal(expected, start.role.frozen)


@pytest.mark.parametrize("kind", ["adapter", "checkpoint"])
def test_a_folder_of_the_hubs_cache_names_its_snapshot(tmp_path, kind):
  references = REFERENCES / "llama2"
  cache = tmp_path / "models--org--name"
  shutil.copytree(references / kind, cache / "snapshots" / "0123abcd")
  with pytest.raises(FileNotFoundError, match="lie below it") as caught:
    restore.load(cache, "best", "policy", "policy.init")
  assert f"below it: {Path('snapshots/0123abcd')}." in str(caught.value)


def test_a_name_on_the_hub_is_to_be_downloaded():
  with pytest.raises(
    FileNotFoundError, match=r"config\.policy\.init"
  ) as caught:
    restore.load("org/name", "best", "policy", "policy.init")
  assert "`hf download org/name --local-dir DIR`" in str(caught.value)

"""Stages after one another, in each way that tuning can be mixed.

The anchor of a policy is what the policy started from, whatever that was; a
reward model may stand on the policy's base or be a model of its own.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from perl_jax import checkpoint, files, params, steps
from perl_jax.tasks.initial import restore, sealed
from tests.tasks import tiny

pytestmark = pytest.mark.slow
SHORT = {"steps": 2, "eval_every": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory, sft_run, reward_run):
  """Returns `made(name)`: the workdir of a run that is made when first used."""
  directory = tmp_path_factory.mktemp("chain")
  runs = {"sft": sft_run, "reward": reward_run}
  recipes = {
    # Fast enough that an anchor without the adapter would be another.
    "sft_lora": ("sft", {"policy": "sft"}, {
      "tuning": "lora", "optimizer__learning_rate": 0.1,
      "optimizer__warmup_steps": 0}),
    "reward_full": ("reward", {"reward": "sft"}, {"tuning": "full"}),
    "rl_after_lora": ("rl", {"policy": "sft_lora", "reward": "reward"}, {}),
    "rl_full": ("rl", {"policy": "sft", "reward": "reward"},
                {"tuning": "full"}),
    "rl_two_models": ("rl", {"policy": "sft", "reward": "reward_full"}, {}),
    "judged_sft": ("evaluate", {"policy": "sft_lora"}, {}),
    "judged_rl": ("evaluate", {"policy": "rl_after_lora", "reward": "reward"},
                  {}),
    "judged_full": ("evaluate", {"policy": "rl_full",
                                 "reward": "reward_full"}, {}),
  }  # fmt: skip

  def make(name):
    if name not in runs:
      task, earlier, fields = recipes[name]
      inits = {f"{role}__init": str(make(x)) for role, x in earlier.items()}
      length = {} if task == "evaluate" else SHORT
      tiny.run(directory / name, task, **inits | fields | length)
      runs[name] = directory / name
    return runs[name]

  return make


def model_of(workdir):
  return json.loads((workdir / "model.json").read_text())


def test_policy_after_a_lora_sft_is_anchored_to_its_adapter(made):
  """The anchor is not the base: turning adapters off would make it so."""
  run = made("rl_after_lora")
  assert tiny.summary(run)["kl_at_step_0"] == 0.0
  assert (
    model_of(run)["fingerprint"] == model_of(made("sft_lora"))["fingerprint"]
  )
  anchor, policy = (
    tiny.summary(made("judged_sft")),
    tiny.summary(made("judged_rl")),
  )
  for name in ("gold", "length", "stop_rate", "entropy", "repetition"):
    assert policy[f"anchor.{name}"] == anchor[f"policy.{name}"], name
  # It would show: the base has another entropy than its adapter.
  assert anchor["anchor.entropy"] != anchor["policy.entropy"]
  assert anchor["policy.kl"] != 0.0
  samples = [
    {r["prompt"]: r[side] for r in tiny.lines(made(name), "samples.jsonl")}
    for name, side in (("judged_sft", "policy"), ("judged_rl", "anchor"))
  ]
  assert samples[0] == samples[1]


def test_full_tuning_of_the_policy(made):
  run = made("rl_full")
  summary = tiny.summary(run)
  assert summary["kl_at_step_0"] == 0.0 and summary["kl"] != 0.0
  assert summary["trainable_share"] == 1.0 and summary["frozen_bytes"] == 0
  start = restore.load(run, "last", "policy", "policy.init")
  sft = restore.load(made("sft"), "best", "policy", "policy.init")
  assert start.role.adapter is None and start.fingerprint != sft.fingerprint
  assert model_of(run)["tuning"] == "full"


def test_full_tuning_of_the_reward_model(made):
  summary = tiny.summary(made("reward_full"))
  assert summary["trainable_share"] == 1.0
  start = restore.load(made("reward_full"), "best", "reward", "reward.init")
  assert start.role.adapter is None and start.role.head is not None


def test_reward_model_may_be_a_model_of_its_own(made):
  """With LoRA for the policy: two bases, and the KL still begins at 0."""
  summary = tiny.summary(made("rl_two_models"))
  assert summary["kl_at_step_0"] == 0.0
  assert summary["trainable_share"] < 0.05


def test_evaluation_of_full_models(made):
  summary = tiny.summary(made("judged_full"))
  assert summary["policy.kl"] != 0.0
  own = tiny.summary(made("reward_full"))
  assert summary["reward_model.auroc"] == own["auroc"]
  assert summary["reward_model.log_loss"] == pytest.approx(
    own["log_loss"], rel=1e-5
  )


def refused(tmp_path, sft_run, reward, *texts):
  workdir = tmp_path / "run"
  with pytest.raises(ValueError) as caught:
    tiny.run(workdir, "rl", policy__init=str(sft_run), reward__init=str(reward))
  for text in texts:
    assert text in str(caught.value)
  assert not workdir.exists()


def test_reward_model_on_another_base_brings_it(
  tmp_path, placed_bases, finished, sft_run
):
  """A sound pair of runs beside the policy's, from an SFT that went further."""
  other = tmp_path / "other"
  shutil.copytree(finished, other)
  mine = restore.load(sft_run, "best", "policy", "x")
  moved = jax.tree.map(lambda x: jnp.asarray(x) * 1.01, mine.role.frozen)
  moved = steps.TrainState({"policy": moved}, (), jnp.int32(9))
  with checkpoint.Checkpointer(other / "sft", metric="m", mode="min") as saver:
    saver.save(9, moved, {}, {"m": -1.0})
  theirs = params.fingerprint(moved.trainable["policy"])
  files.write_json(
    other / "reward" / "model.json",
    model_of(other / "reward") | {"fingerprint": theirs},
  )
  sealed.write(other / "reward")
  inits = {
    "policy__init": str(sft_run), "reward__init": str(other / "reward"),
  }  # fmt: skip
  summary = tiny.run(tmp_path / "run", "rl", **inits | SHORT)
  found = [params.fingerprint(base) for base in placed_bases]
  assert found == [mine.fingerprint, theirs]
  assert summary["kl_at_step_0"] == 0.0
  near = tiny.run(
    tmp_path / "near", "rl", policy__init=str(sft_run),
    reward__init=str(finished / "reward"), **SHORT,
  )  # fmt: skip
  # The same responses, which other weights score.
  assert summary["gold_before"] == near["gold_before"]
  assert summary["reward_before"] != near["reward_before"]
  with pytest.raises(ValueError, match=r"value\.init='reward' needs a reward"):
    tiny.run(tmp_path / "value", "rl", value__init="reward", **inits)


def test_reward_model_with_another_tokenizer_is_refused(
  tmp_path, finished, sft_run
):
  other = tmp_path / "other"
  shutil.copytree(finished, other)
  path = other / "reward" / "tokenizer" / "tokenizer.json"
  vocabulary = json.loads(path.read_text())
  vocabulary["model"]["merges"].pop()
  path.write_text(json.dumps(vocabulary))
  refused(tmp_path, sft_run, other / "reward", "tokenizer.json is not")
  sealed.write(other / "reward")
  refused(
    tmp_path, sft_run, other / "reward", "different tokenizers", "same start"
  )

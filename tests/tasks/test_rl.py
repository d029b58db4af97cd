"""The RL stage: whole runs, from their files."""

import numpy as np
import pytest

from perl_jax import params
from perl_jax.tasks.initial import restore
from perl_jax.tasks.initial import roles as initial_roles
from tests.marks import by_night
from tests.tasks import tiny


def test_a_value_model_from_a_policy_knows_nothing_yet(reward_run):
  """Even if what the policy starts from had a head of its own."""
  start = restore.load(reward_run, "best", "reward", "policy.init")
  assert np.any(start.role.head["head"]["kernel"])
  config = tiny.config("rl")
  found = initial_roles.initial_value(config, start, None)
  assert set(found["head"]) == {"kernel", "bias"}
  assert not any(np.any(leaf) for leaf in found["head"].values())


# A whole run, from its files.


def lines_with(workdir, key):
  return {row["step"]: row for row in tiny.lines(workdir) if key in row}


def test_kl_is_0_at_step_0_and_then_it_is_not(rl_run):
  """Exactly 0 on the held-out prompts: one program reads both.

  On the first rollout the policy is read by the pass that learns from it, and
  the anchor by another program: 0 but for rounding. Where the policy is
  measured beside the anchor it is exactly 0 there too; see below.
  """
  judged = lines_with(rl_run, "validation/kl")
  assert sorted(judged) == [0, 2, 4]
  assert judged[0]["validation/kl"] == judged[0]["validation/kl_per_token"] == 0
  assert judged[0]["validation/responses"] == 8
  assert judged[2]["validation/kl"] != 0.0
  rollouts = lines_with(rl_run, "rollout/kl")
  assert sorted(rollouts) == [1, 2, 3, 4]
  assert abs(rollouts[1]["rollout/kl"]) < 1e-5
  assert abs(rollouts[1]["rollout/kl_k3"]) < 1e-10
  assert rollouts[2]["rollout/kl"] != 0.0 and rollouts[2]["rollout/kl_k3"] > 0
  summary = tiny.summary(rl_run)
  assert summary["kl_at_step_0"] == 0.0
  assert summary["kl"] == judged[4]["validation/kl"]
  assert summary["reward_before"] == judged[0]["validation/reward"]
  assert summary["reward_after"] == judged[4]["validation/reward"]


def test_every_step_learns_on_policy(rl_run):
  """Trainer and sampler agree at each step, also after updates."""
  rows = lines_with(rl_run, "train/ratio")
  assert sorted(rows) == [1, 2, 3, 4]
  for row in rows.values():
    assert row["train/ratio"] == 1.0
    assert 0.0 < row["rollout/sampler_difference"] < 1e-5
    assert row["train/update_norm"] > 0
  # The value model starts at 0 and has moved by the second step.
  assert rows[1]["train/value"] == 0.0 and rows[2]["train/value"] != 0.0


def test_sampler_follows_the_policy(rl_run):
  """Same prompts and key at both evaluations: a change is the policy's."""
  rows = tiny.lines(rl_run, "samples.jsonl")
  two = [row for row in rows if row["step"] == 2]
  four = [row for row in rows if row["step"] == 4]
  assert len(two) == len(four) == 8 == len(rows) / 2
  for key in ("prompt", "reference", "anchor", "anchor_reward", "anchor_gold"):
    assert [row[key] for row in two] == [row[key] for row in four]
  assert [r["policy_kl"] for r in two] != [r["policy_kl"] for r in four]


def test_all_that_was_trained_moved_and_nothing_else(rl_run, sft_run):
  sft = restore.load(sft_run, "best", "policy", "policy.init")
  for role in ("policy", "value"):
    start = restore.load(rl_run, "last", role, "policy.init")
    assert start.fingerprint == sft.fingerprint
    for path, leaf in params.flatten(start.role.adapter).items():
      if path.endswith("lora_b"):
        assert np.any(leaf), f"{role}: {path} is as it began"
  assert np.any(start.role.head["head"]["kernel"])
  names = tiny.checkpoints(rl_run)
  base = set(params.flatten(sft.role.frozen))
  assert not [n for n in names if any(n.endswith(path) for path in base)]


@pytest.mark.slow
def test_one_step_moves_the_adapters_and_not_the_base(
  tmp_path, placed_bases, sft_run, reward_run
):
  """The base that was on the devices has the same bits after the run.

  The value model starts from the reward model here: its head predicts a
  reward from the first step on.
  """
  workdir = tmp_path / "run"
  tiny.run(
    workdir,
    "rl",
    policy__init=str(sft_run),
    reward__init=str(reward_run),
    value__init="reward",
    steps=1,
  )
  assert len(placed_bases) == 1, "one base for four roles"
  expected = restore.load(sft_run, "best", "policy", "policy.init").fingerprint
  assert params.fingerprint(placed_bases[0]) == expected
  reward = restore.load(reward_run, "best", "reward", "reward.init")
  value = restore.load(workdir, "last", "value", "policy.init")
  moved = params.flatten(value.role.adapter)
  for path, leaf in params.flatten(reward.role.adapter).items():
    assert np.any(moved[path] != leaf), path
  assert lines_with(workdir, "train/value")[1]["train/value"] != 0.0


@pytest.mark.nightly
def test_eight_devices_run_the_same_iterations(
  tmp_path, rl_run, sft_run, reward_run
):
  """Data and parameters spread over a mesh: same rollouts, same metrics.

  Up to float reassociation, which may not change a token that was drawn.
  """
  tiny.run(
    tmp_path / "run",
    "rl",
    policy__init=str(sft_run),
    reward__init=str(reward_run),
    mesh__data=4,
    mesh__fsdp=2,
  )
  assert tiny.summary(tmp_path / "run")["kl_at_step_0"] == 0.0
  texts = [
    [(row["anchor"], row["policy"]) for row in tiny.lines(run, "samples.jsonl")]
    for run in (tmp_path / "run", rl_run)
  ]
  assert texts[0] == texts[1]
  found, expected = tiny.lines(tmp_path / "run"), tiny.lines(rl_run)
  for mine, theirs in zip(found, expected, strict=True):
    for key, value in mine.items():
      # A ratio of two variances, both of about 1e-6 here.
      close = 1e-2 if key == "train/explained_variance" else 1e-4
      assert value == pytest.approx(theirs[key], rel=1e-3, abs=close), key


# The other estimators, from their files.

ESTIMATORS = {
  "ppo": {
    "ppo__epochs": 2, "ppo__minibatches": 2, "whiten": True,
    "microbatches": 2,
  },
  "rloo": {"samples_per_prompt": 2, "rollouts__slots": 4},
  # As published, with a weight of the KL that follows it.
  "grpo": {
    "samples_per_prompt": 2, "kl__estimator": "k3", "kl__place": "loss",
    "reduction": "sequence_mean", "kl__target": 1e-3, "kl__horizon": 32,
  },
  "dr_grpo": {
    "samples_per_prompt": 2, "kl__estimator": "exact", "kl__place": "loss",
    "ppo__epochs": 2, "entropy_coef": 0.01, "score_microbatches": 2,
    "microbatches": 2,
  },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  [by_night(name) if name == "grpo" else name for name in ESTIMATORS],
)
def test_every_estimator_runs_from_its_files(
  tmp_path, name, sft_run, reward_run
):
  """KL 0 at first, the policy moves, and the next stage finds it."""
  workdir = tmp_path / "run"
  tiny.run(
    workdir,
    "rl",
    estimator=name,
    policy__init=str(sft_run),
    reward__init=str(reward_run),
    steps=2,
    **ESTIMATORS[name],
  )
  assert tiny.summary(workdir)["kl_at_step_0"] == 0.0
  rows = lines_with(workdir, "train/loss")
  assert sorted(rows) == [1, 2]
  if "ppo__epochs" in ESTIMATORS[name]:
    assert rows[1]["rollout/kl"] == rows[1]["rollout/kl_k3"] == 0.0
  assert abs(rows[1]["rollout/kl"]) < 1e-5 < abs(rows[2]["rollout/kl"])
  assert rows[1]["rollout/sampler_difference"] < 1e-5
  for row in rows.values():
    assert row["train/update_norm"] > 0
    several = ESTIMATORS[name].get("ppo__epochs", 1) > 1
    assert (row["train/ratio"] != 1.0) == several
    assert ("train/value" in row) == (name == "ppo")
    assert ("train/kl_loss" in row) == ("kl__place" in ESTIMATORS[name])
  moved = rows[2]["train/beta"] != rows[1]["train/beta"]
  assert moved == ("kl__target" in ESTIMATORS[name])
  sft = restore.load(sft_run, "best", "policy", "policy.init")
  start = restore.load(workdir, "last", "policy", "policy.init")
  assert start.fingerprint == sft.fingerprint and start.role.head is None
  assert any(
    np.any(leaf)
    for path, leaf in params.flatten(start.role.adapter).items()
    if path.endswith("lora_b")
  )
  if name == "rloo":
    found = tiny.run(
      tmp_path / "evaluate", "evaluate", policy__init=str(workdir)
    )
    assert found["policy.kl"] != 0.0  # to the anchor that it started from

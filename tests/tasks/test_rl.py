"""The RL stage: what an iteration is made of, and what a run may not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params, sampling, sharding
from perl_jax.data.batches import PromptBatch
from perl_jax.tasks import iteration, judging, rewarding, rl, stage
from tests.tasks import tiny

# An iteration with stand-ins: every number can be followed.

MASK = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]], bool)
STOPPED = np.array([False, True, True])
SCORES = np.array([2.0, -1.0, 0.5], np.float32)


class Engine:
  """Answers by the role that it is given, and remembers who asked."""

  def __init__(self):
    self.calls = []

  def sample(self, trainable, frozen, prompts, lengths, row_ids, key):
    self.calls.append(("sample", trainable, frozen, key))
    tokens = jnp.asarray(prompts[:, :3] + trainable)
    return sampling.Samples(tokens, jnp.asarray(MASK), jnp.asarray(STOPPED))

  def logprobs(self, trainable, frozen, prompts, lengths, responses, mask):
    self.calls.append(("logprobs", trainable, frozen, None))
    found = jnp.where(mask, -0.1 * trainable, 0.0).astype(jnp.float32)
    return found, jnp.where(mask, 0.7, 0.0)

  def rewards(self, trainable, frozen, prompts, lengths, responses, mask):
    self.calls.append(("rewards", trainable, frozen, None))
    return jnp.asarray(SCORES)


def iterate(shift=0.25, penalty=3.0):
  """(metrics of two iterations, engine, what was learnt from)."""
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
  engine, learnt = Engine(), []

  def learn(state, frozen, rollout, key):
    learnt.append((rollout, frozen, key))
    trainable = {"policy": state.trainable["policy"] + 1}
    state = state._replace(trainable=trainable)
    return state, {"loss": jnp.float32(4.0)}

  reward = rewarding.Rewarder(
    rewarding.Model(None, 20, "reward base", members=1),
    engine.rewards,
    None,
    unstopped_penalty=penalty,
  )
  reward.shift = shift
  run = iteration.make_iteration(
    mesh,
    engine,
    learn,
    judging.Role(10, "base"),
    reward,
    "base",
    jax.random.key(8),
    rows=(),
  )
  state = rl.steps.TrainState({"policy": 11}, (), jnp.int32(0))
  batch = PromptBatch(
    np.arange(12, dtype=np.int32).reshape(3, 4),
    np.array([4, 2, 3], np.int32),
    np.ones(3, bool),
    np.arange(3, dtype=np.int32),
  )
  metrics = []
  for step in (1, 2):
    state, found = run(state, batch, step)
    metrics.append(found)
  return metrics, engine, learnt


def test_every_role_is_asked_with_its_own_trees():
  """The policy of the second iteration is the one that learnt in the first."""
  _, engine, learnt = iterate()
  asked = [(name, who, base) for name, who, base, _ in engine.calls]
  one = [("sample", 11, "base"), ("logprobs", 11, "base"),
         ("logprobs", 10, "base"), ("rewards", 20, "reward base")]  # fmt: skip
  two = [(n, 12 if who == 11 else who, base) for n, who, base in one]
  assert asked == one + two
  assert [frozen for _, frozen, _ in learnt] == ["base", "base"]


def test_every_step_draws_a_key_of_its_own():
  _, engine, learnt = iterate()
  keys = [key for name, *_, key in engine.calls if name == "sample"]
  data = [jax.random.key_data(key).tolist() for key in keys]
  expected = [
    jax.random.key_data(jax.random.fold_in(jax.random.key(8), step)).tolist()
    for step in (1, 2)
  ]
  assert data == expected and data[0] != data[1]
  assert [jax.random.key_data(k).tolist() for *_, k in learnt] == expected


def test_rollout_holds_what_was_measured():
  """Reward: the score, less the anchor's mean, less a fine for no stop."""
  _, _, learnt = iterate(shift=0.25, penalty=3.0)
  rollout = learnt[0][0]
  np.testing.assert_allclose(rollout.rewards, [2 - 0.25 - 3, -1.25, 0.25])
  assert rollout.rewards.dtype == jnp.float32
  np.testing.assert_allclose(rollout.policy_logprobs, np.where(MASK, -1.1, 0))
  np.testing.assert_allclose(rollout.anchor_logprobs, np.where(MASK, -1.0, 0))
  np.testing.assert_array_equal(rollout.response_mask, MASK)
  np.testing.assert_array_equal(rollout.prompt_lengths, [4, 2, 3])
  np.testing.assert_array_equal(
    rollout.responses, np.arange(12).reshape(3, 4)[:, :3] + 11
  )


def test_metrics_of_a_rollout_by_hand():
  """The reward that is shown is the model's own, neither centred nor fined."""
  (found, _), _, _ = iterate()
  per_token = -0.1
  expected = {
    "train/loss": 4.0,
    "rollout/reward": SCORES.mean(),
    "rollout/reward_std": SCORES.std(),
    "rollout/kl": per_token * 6 / 3,
    "rollout/kl_per_token": per_token,
    "rollout/kl_k3": np.exp(-per_token) - 1 + per_token,
    "rollout/entropy": 0.7,
    "rollout/length": 2.0,
    "rollout/stop_rate": 2 / 3,
  }
  for name, value in expected.items():
    assert float(found[name]) == pytest.approx(value, rel=1e-5), name
  timed = set(found) - set(expected)
  assert timed == {"seconds/sample", "seconds/score", "seconds/learn"}
  assert all(found[name] > 0 for name in timed)


def test_comparison_of_before_and_after():
  before = {"kl": 0.0, "kl_per_token": 0.0, "reward": 1.0, "gold": 0.25}
  after = {"validation/kl": 0.5, "validation/kl_per_token": 0.1,
           "validation/reward": 2.0, "validation/gold": 0.5}  # fmt: skip
  assert rl.compare(before, after) == {
    "kl": 0.5, "kl_per_token": 0.1, "kl_at_step_0": 0.0,
    "reward_before": 1.0, "reward_after": 2.0,
    "gold_before": 0.25, "gold_after": 0.5,
  }  # fmt: skip


# The optimiser: one chain for each role.


def test_the_policy_waits_for_the_value_model():
  """SGD, gradients of ones: the rates of both roles, step by step."""
  config = tiny.config(
    "rl", optimizer__name="sgd", optimizer__b1=0.0, optimizer__clip_norm=0.0,
    optimizer__learning_rate=0.5, optimizer__schedule="constant",
    optimizer__warmup_steps=0, value__learning_rate=0.25,
    value__warmup_steps=2,
  )  # fmt: skip
  trees = {name: {"w": jnp.ones(3)} for name in ("policy", "value")}
  optimizer = rl.make_optimizer(config)
  state, moved = optimizer.init(trees), []
  for _ in range(4):
    updates, state = optimizer.update(trees, state, trees)
    moved.append([-float(updates[n]["w"][0]) for n in ("policy", "value")])
  assert moved == [[0.0, 0.25], [0.0, 0.25], [0.5, 0.25], [0.5, 0.25]]


def test_a_large_gradient_of_the_value_does_not_clip_the_policy():
  config = tiny.config(
    "rl", optimizer__name="sgd", optimizer__b1=0.0, optimizer__clip_norm=2.0,
    optimizer__learning_rate=1.0, optimizer__warmup_steps=0,
    value__learning_rate=1.0,
  )  # fmt: skip
  trees = {"policy": jnp.float32(1.0), "value": jnp.float32(100.0)}
  optimizer = rl.make_optimizer(config)
  updates, _ = optimizer.update(trees, optimizer.init(trees), trees)
  assert float(updates["policy"]) == -1.0
  assert float(updates["value"]) == pytest.approx(-2.0)


def test_a_value_model_from_a_policy_knows_nothing_yet(reward_run):
  """Even if what the policy starts from had a head of its own."""
  start = stage.load(reward_run, "best", "reward", "policy.init")
  assert np.any(start.head["head"]["kernel"])
  config = tiny.config("rl")
  found = rl.initial_value(config, start, None, start.lora)
  assert set(found["head"]) == {"kernel", "bias"}
  assert not any(np.any(leaf) for leaf in found["head"].values())


# A whole run, from its files.


def lines_with(workdir, key):
  return {row["step"]: row for row in tiny.lines(workdir) if key in row}


def test_kl_is_0_at_step_0_and_then_it_is_not(rl_run):
  """Exactly 0, on the held-out prompts and on the first rollout alike."""
  judged = lines_with(rl_run, "validation/kl")
  assert sorted(judged) == [0, 2, 4]
  assert judged[0]["validation/kl"] == judged[0]["validation/kl_per_token"] == 0
  assert judged[2]["validation/kl"] != 0.0
  rollouts = lines_with(rl_run, "rollout/kl")
  assert sorted(rollouts) == [1, 2, 3, 4]
  assert rollouts[1]["rollout/kl"] == rollouts[1]["rollout/kl_k3"] == 0.0
  assert rollouts[2]["rollout/kl"] != 0.0 and rollouts[2]["rollout/kl_k3"] > 0
  summary = tiny.summary(rl_run)
  assert summary["kl_at_step_0"] == 0.0
  assert summary["kl"] == judged[4]["validation/kl"]
  assert summary["reward_before"] == judged[0]["validation/reward"]
  assert summary["reward_after"] == judged[4]["validation/reward"]


def test_every_step_learns_on_policy(rl_run):
  """The ratio of trainer to sampler is 1 at each step, also after updates."""
  rows = lines_with(rl_run, "train/ratio")
  assert sorted(rows) == [1, 2, 3, 4]
  for row in rows.values():
    assert row["train/ratio"] == pytest.approx(1.0, abs=1e-5)
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
  sft = stage.load(sft_run, "best", "policy", "policy.init")
  for role in ("policy", "value"):
    start = stage.load(rl_run, "last", role, "policy.init")
    assert start.fingerprint == sft.fingerprint
    for path, leaf in params.flatten(start.adapter).items():
      if path.endswith("lora_b"):
        assert np.any(leaf), f"{role}: {path} is as it began"
  assert np.any(start.head["head"]["kernel"])
  names = tiny.checkpoints(rl_run)
  base = set(params.flatten(sft.base))
  assert not [n for n in names if any(n.endswith(path) for path in base)]


@pytest.mark.slow
def test_one_step_moves_the_adapters_and_not_the_base(
  tmp_path, monkeypatch, sft_run, reward_run
):
  """The base that was on the devices has the same bits after the run.

  The value model starts from the reward model here: its head predicts a
  reward from the first step on.
  """
  placed = []
  real = sharding.place

  def spy(mesh, tree, **options):
    found = real(mesh, tree, **options)
    if isinstance(tree, dict) and "embedding" in tree:
      placed.append(found)
    return found

  monkeypatch.setattr(sharding, "place", spy)
  workdir = tmp_path / "run"
  tiny.run(
    workdir,
    "rl",
    policy__init=str(sft_run),
    reward__init=str(reward_run),
    value__init="reward",
    steps=1,
  )
  assert len(placed) == 1, "one base for four roles"
  expected = stage.load(sft_run, "best", "policy", "policy.init").fingerprint
  assert params.fingerprint(placed[0]) == expected
  reward = stage.load(reward_run, "best", "reward", "reward.init")
  value = stage.load(workdir, "last", "value", "policy.init")
  moved = params.flatten(value.adapter)
  for path, leaf in params.flatten(reward.adapter).items():
    assert np.any(moved[path] != leaf), path
  assert lines_with(workdir, "train/value")[1]["train/value"] != 0.0


@pytest.mark.slow
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
      assert value == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), key

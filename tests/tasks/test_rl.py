"""The RL stage: what an iteration is made of, and what a run may not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params, sampling, sharding, steps
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.objectives import kl
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.initial import restore
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.rollouts import build, iteration, rewards
from perl_jax.tasks.rollouts import metrics as rollout_metrics
from perl_jax.tasks.settings import rl as rl_settings
from tests.tasks import tiny

# An iteration with stand-ins: every number can be followed.

PROMPTS, LENGTH, BETA = 4, 3, 0.4
REINFORCE = steps.Estimator()
PPO = steps.Estimator(name="ppo", epochs=2, minibatches=2)
DR_GRPO = steps.Estimator(name="dr_grpo", group=2, kl="exact", kl_place="loss")


def sampled(group):
  """(tokens, mask, stopped, scores) of the responses, `[B * G, ...]`."""
  rows = np.arange(PROMPTS * group)
  mask = np.arange(LENGTH) <= rows[:, None] % LENGTH
  scores = np.where(rows % 2, -0.5, 0.25 * rows).astype(np.float32)
  return 10 * rows[:, None] + np.arange(LENGTH), mask, rows % 3 > 0, scores


class Standins:
  """Functions of an iteration that remember what they were asked.

  A policy is a number, and so are value and reward model.
  """

  def __init__(self, estimator):
    self.sampled, self.scored, self.learnt = [], [], []
    self._group, prepare = estimator.group, None
    if estimator.needs_measures:
      prepare = functools.partial(steps.prepare, estimator)
    self.functions = build.Functions(
      self.sample, self.score, prepare, self.learn
    )

  def sample(self, trainable, frozen, prompts, lengths, row_ids, key):
    self.sampled.append((trainable, frozen, np.asarray(row_ids), key))
    tokens, mask, stopped, _ = map(jnp.asarray, sampled(self._group))
    return sampling.Samples(
      tokens, mask, stopped, jnp.where(mask, -0.25, 0.0), jnp.int32(7)
    )

  def score(self, trees, bases, prompts, lengths, responses, mask):
    self.scored.append((trees, bases))
    found = {
      name: jnp.where(mask, -0.1 * tree, 0.0).astype(jnp.float32)
      for name, tree in trees.items()
      if name != "reward"
    }
    scores = jnp.asarray(sampled(self._group)[3])
    return found | {"reward": scores.reshape(mask.shape[:2])}

  def learn(self, state, standing, experience, key):
    self.learnt.append((experience, standing, key))
    trainable = jax.tree.map(lambda x: x + 1, state.trainable)
    found = {
      "loss": jnp.float32(len(self.learnt)),
      "kl": jnp.float32(6.0),
      "entropy": jnp.float32(0.75),
    }
    return state._replace(trainable=trainable, step=state.step + 1), found


def iterate(estimator=REINFORCE, shift=0.25, penalty=3.0, **control):
  """(metrics of two iterations, stand-ins, last state)."""
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
  asked = Standins(estimator)
  model = rewards.Model(None, 20, "other base", members=1, shares_base=False)
  reward = rewards.Rewarder(model, None, None, unstopped_penalty=penalty)
  reward.shift = shift
  run = iteration.Iteration(
    estimator,
    asked.functions,
    mesh=mesh,
    base="base",
    anchor=10,
    reward=reward,
    rows=(),
    key=jax.random.key(8),
    control=iteration.Control(**control),
  )
  trainable = {"policy": 11, "value": 30} if estimator.uses_value else 11
  state = steps.TrainState(
    trainable, (), jnp.int32(0), {"beta": jnp.float32(BETA)}
  )
  batch = PromptBatch(
    np.arange(PROMPTS * 4, dtype=np.int32).reshape(PROMPTS, 4),
    np.array([4, 2, 3, 1], np.int32),
    np.ones(PROMPTS, bool),
    np.arange(PROMPTS, dtype=np.int32),
  )
  metrics = []
  for step in (1, 2):
    state, found = run(state, batch, step)
    metrics.append(found)
  return metrics, asked, state


@pytest.mark.parametrize(
  "estimator, first, second, exact",
  [
    (REINFORCE, {}, {}, False),
    # After four updates; what it needs before them is measured.
    (PPO, {"policy": 11, "value": 30}, {"policy": 15, "value": 34}, False),
    (DR_GRPO, {}, {}, True),
  ],
  ids=("reinforce", "ppo", "dr_grpo"),
)
def test_every_role_is_asked_with_its_own_trees(
  estimator, first, second, exact
):
  """The policy of the second iteration is the one that learnt in the first."""
  _, asked, _ = iterate(estimator)
  after = 11 + estimator.updates
  policies = [(policy, base) for policy, base, *_ in asked.sampled]
  assert policies == [(11, "base"), (after, "base")]
  always = {"anchor": 10, "reward": 20}
  assert [trees for trees, _ in asked.scored] == [
    always | first, always | second,
  ]  # fmt: skip
  bases = {"": "base", "reward": "other base"}
  assert all(found == bases for _, found in asked.scored)
  standing = steps.Standing("base", 10 if exact else {})
  assert all(found == standing for _, found, _ in asked.learnt)


def test_every_step_draws_a_key_of_its_own():
  _, asked, _ = iterate()
  expected = [
    jax.random.key_data(jax.random.fold_in(jax.random.key(8), step)).tolist()
    for step in (1, 2)
  ]
  for found in (asked.sampled, asked.learnt):
    data = [jax.random.key_data(key).tolist() for *_, key in found]
    assert data == expected and data[0] != data[1]


@pytest.mark.parametrize("estimator", [REINFORCE, DR_GRPO])
def test_experience_holds_what_was_measured(estimator):
  """Reward: the score, less the anchor's mean, less a fine for no stop."""
  _, asked, _ = iterate(estimator)
  found, group = asked.learnt[0][0], estimator.group
  tokens, mask, stopped, scores = sampled(group)
  shape = (PROMPTS, group)
  fine = np.where(stopped, 0.0, 3.0)
  np.testing.assert_allclose(
    found.rewards, (scores - 0.25 - fine).reshape(shape)
  )
  assert found.rewards.dtype == jnp.float32
  mask = mask.reshape(*shape, LENGTH)
  np.testing.assert_array_equal(found.response_mask, mask)
  np.testing.assert_array_equal(found.responses, tokens.reshape(mask.shape))
  np.testing.assert_array_equal(found.sampled_logprobs, -0.25 * mask)
  np.testing.assert_array_equal(found.anchor_logprobs, -1.0 * mask)
  np.testing.assert_array_equal(found.prompt_lengths, [4, 2, 3, 1])
  np.testing.assert_array_equal(found.beta, np.full(PROMPTS, BETA, np.float32))
  assert found.policy_logprobs is None and found.advantages is None


def test_metrics_of_an_iteration_by_hand():
  """The reward that is shown is the model's own, neither centred nor fined."""
  (found, _), _, _ = iterate()
  _, mask, stopped, scores = sampled(1)
  expected = {
    "train/loss": 1.0,
    "train/beta": BETA,
    "rollout/kl": 6.0,
    "rollout/entropy": 0.75,
    "rollout/reward": scores.mean(),
    "rollout/reward_std": scores.std(),
    "rollout/length": mask.sum() / PROMPTS,
    "rollout/stop_rate": stopped.mean(),
    "rollout/repetition": 0.0,
    "rollout/decode_steps": 7,
  }
  for name, value in expected.items():
    assert float(found[name]) == pytest.approx(value, rel=1e-6), name
  timed = set(found) - set(expected)
  assert timed == {
    f"{kind}/{phase}"
    for kind in ("seconds", "rate")
    for phase in ("sample", "score", "learn")
  }
  for phase in ("sample", "score", "learn"):
    seconds = found[f"seconds/{phase}"]
    assert seconds > 0
    assert found[f"rate/{phase}"] == pytest.approx(mask.sum() / seconds)


def test_explained_variance_is_of_all_tokens():
  """1 - var(Z - V) / var(Z), from means of squares over a batch."""
  rng = np.random.default_rng(0)
  returns, values = rng.normal(1.0, 2.0, 50), rng.normal(size=50)
  residual = returns - values
  found = rollout_metrics.update_metrics(
    {
      "return": returns.mean(),
      "return_square": np.mean(returns**2),
      "residual": residual.mean(),
      "residual_square": np.mean(residual**2),
      "kl": 0.5,
    }
  )
  assert found["train/explained_variance"] == pytest.approx(
    1 - residual.var() / returns.var()
  )
  assert set(found) == {
    "train/explained_variance", "train/return", "rollout/kl",
  }  # fmt: skip
  same = {"return": 2.0, "return_square": 4.0, "residual": 1.0,
          "residual_square": 2.0}  # fmt: skip
  assert rollout_metrics.update_metrics(same)["train/explained_variance"] == 0.0


def test_a_rollout_is_learnt_from_in_parts_and_passes():
  """Two passes of two minibatches: all prompts once a pass, in another order.

  The loop counts iterations, and what is shown is the mean of four updates.
  """
  metrics, asked, state = iterate(PPO)
  assert int(state.step) == 2 and state.trainable["policy"] == 11 + 8
  assert len(asked.learnt) == 8
  orders, mask = [], sampled(1)[1]
  for start in range(0, 8, 2):
    parts = [found for found, *_ in asked.learnt[start : start + 2]]
    assert [part.rewards.shape for part in parts] == [(2, 1), (2, 1)]
    rows = [int(x) // 10 for part in parts for x in part.responses[:, 0, 0]]
    assert sorted(rows) == [0, 1, 2, 3]
    orders.append(rows)
    for part, row in zip(
      parts, np.split(np.array(rows), 2), strict=True
    ):  # every field is of the same prompts
      np.testing.assert_array_equal(
        part.prompt_lengths, np.array([4, 2, 3, 1])[row]
      )
      np.testing.assert_array_equal(part.response_mask[:, 0], mask[row])
      assert part.advantages.shape == part.returns.shape == (2, 1, LENGTH)
      np.testing.assert_allclose(part.policy_logprobs[0, 0, 0], (
        -1.1 if start < 4 else -1.5
      ), rtol=1e-6)  # fmt: skip
  assert orders[0] != orders[1] and orders[2] != orders[3]
  assert metrics[0]["train/loss"] == pytest.approx((1 + 2 + 3 + 4) / 4)
  assert metrics[1]["train/loss"] == pytest.approx((5 + 6 + 7 + 8) / 4)


@pytest.mark.parametrize("estimator", [REINFORCE, PPO, DR_GRPO])
def test_beta_follows_the_kl(estimator):
  """Once an iteration, after its updates; 0 leaves it as it is."""
  metrics, asked, state = iterate(estimator, target=4.0, horizon=40)
  expected = [jnp.float32(BETA)]
  for _ in range(2):
    expected.append(
      kl.adapt_beta(
        expected[-1], 6.0, target=4.0, horizon=40,
        batch_size=PROMPTS * estimator.group,
      )
    )  # fmt: skip
  assert expected[1] > BETA
  assert [m["train/beta"] for m in metrics] == expected[:2]
  assert state.controls["beta"] == expected[2]
  betas = [set(np.asarray(e.beta).tolist()) for e, *_ in asked.learnt]
  half = estimator.updates
  assert betas == [{float(expected[0])}] * half + [{float(expected[1])}] * half
  metrics, _, state = iterate(estimator)
  assert state.controls["beta"] == metrics[1]["train/beta"] == np.float32(BETA)


def test_comparison_of_before_and_after():
  before = {"kl": 0.0, "kl_per_token": 0.0, "reward": 1.0, "gold": 0.25}
  after = {"validation/kl": 0.5, "validation/kl_per_token": 0.1,
           "validation/reward": 2.0, "validation/gold": 0.5}  # fmt: skip
  assert policy_evaluation.compare(before, after) == {
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
  optimizer = rl_settings.make_optimizer(config)
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
  optimizer = rl_settings.make_optimizer(config)
  updates, _ = optimizer.update(trees, optimizer.init(trees), trees)
  assert float(updates["policy"]) == -1.0
  assert float(updates["value"]) == pytest.approx(-2.0)


def test_a_value_model_from_a_policy_knows_nothing_yet(reward_run):
  """Even if what the policy starts from had a head of its own."""
  start = restore.load(reward_run, "best", "reward", "policy.init")
  assert np.any(start.head["head"]["kernel"])
  config = tiny.config("rl")
  found = initial_roles.initial_value(config, start, None, start.lora)
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
    for path, leaf in params.flatten(start.adapter).items():
      if path.endswith("lora_b"):
        assert np.any(leaf), f"{role}: {path} is as it began"
  assert np.any(start.head["head"]["kernel"])
  names = tiny.checkpoints(rl_run)
  base = set(params.flatten(sft.base))
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
@pytest.mark.parametrize("name", ESTIMATORS)
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
  assert start.fingerprint == sft.fingerprint and start.head is None
  assert any(
    np.any(leaf)
    for path, leaf in params.flatten(start.adapter).items()
    if path.endswith("lora_b")
  )
  if name == "rloo":
    found = tiny.run(
      tmp_path / "evaluate", "evaluate", policy__init=str(workdir)
    )
    assert found["policy.kl"] != 0.0  # to the anchor that it started from

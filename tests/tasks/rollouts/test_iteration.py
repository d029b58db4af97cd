"""One iteration of RL: its arguments, its updates, its metrics."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import roles, sampling, sharding, steps
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.rollouts import build, iteration, rewards
from perl_jax.tasks.rollouts import metrics as rollout_metrics
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.training import watch
from tests import toys
from tests.tasks import tiny
from tests.tasks.training.test_loop import watch_of

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


class Recorder:
  """In place of a compiled function: keeps its arguments, compiles nothing."""

  compile_seconds = 0.0

  def __init__(self, function):
    self.calls, self._function = [], function

  def __call__(self, *args):
    self.calls.append(args)
    return self._function(*args)


def sample(group):
  def run(trainable, frozen, prompts, lengths, row_ids, key):
    tokens, mask, stopped, _ = map(jnp.asarray, sampled(group))
    return sampling.Samples(
      tokens, mask, stopped, jnp.where(mask, -0.25, 0.0), jnp.int32(7)
    )

  return Recorder(run)


def score(group):
  """The log-prob of every token under a role is -0.1 times its tree."""

  def run(trees, bases, prompts, lengths, responses, mask):
    found = {
      name: jnp.where(mask, -0.1 * tree, 0.0).astype(jnp.float32)
      for name, tree in trees.items()
      if name != "reward"
    }
    scores = jnp.asarray(sampled(group)[3])
    return found | {"reward": scores.reshape(mask.shape[:2])}

  return Recorder(run)


def learn():
  """Adds 1 to every tree, and says how often it was called as the loss."""

  def run(state, frozen, experience, key):
    trainable = jax.tree.map(lambda x: x + 1, state.trainable)
    found = {
      "loss": jnp.float32(len(recorder.calls)),
      "kl": jnp.float32(6.0),
      "entropy": jnp.float32(0.75),
      "fault": jnp.int32(0),
    }
    return state._replace(trainable=trainable, step=state.step + 1), found

  recorder = Recorder(run)
  return recorder


def programs_of(estimator, **control):
  """An iteration in which a role is a number, with recorders for functions."""
  config = tiny.config("rl", samples_per_prompt=estimator.group)
  backbone = roles.Backbone(
    toys.config("tiny", vocab_size=64), LoraSpec(rank=2, alpha=2.0)
  )
  if estimator.group > 1:
    config.estimator = "rloo"
  settings = dataclasses.replace(
    rl_settings.read(config),
    estimator=estimator,
    beta=BETA,
    kl_target=control.get("target", 0.0),
    kl_horizon=control.get("horizon", 1),
    kl_waits=control.get("waits", 0),
  )
  built = build.build(
    settings,
    roles.Role(backbone, 10, {"base": 1}),
    roles.Role(backbone, 20, {"another": 1}),
  )
  prepare = None
  if estimator.needs_measures:
    prepare = Recorder(functools.partial(steps.prepare, estimator))
  group = estimator.group
  functions = {"sample": sample(group), "score": score(group)}
  functions |= {"prepare": prepare, "learn": learn()}
  return dataclasses.replace(built, **functions)


def batch():
  return PromptBatch(
    np.arange(PROMPTS * 4, dtype=np.int32).reshape(PROMPTS, 4),
    np.array([4, 2, 3, 1], np.int32),
    np.ones(PROMPTS, bool),
    np.arange(PROMPTS, dtype=np.int32),
  )


def trainable_of(estimator):
  return {"policy": 11} | ({"value": 30} if estimator.uses_value else {})


def iterate(
  estimator=REINFORCE, shift=0.25, penalty=3.0, clock=None, of=None, **control
):
  """(metrics of two iterations, programs, last state)."""
  programs = of or programs_of(estimator, **control)
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
  reward = rewards.Rewarder(
    programs.reward, None, None, unstopped_penalty=penalty
  )
  reward.shift = shift
  run = iteration.Iteration(
    programs,
    reward,
    mesh=mesh,
    rows=(),
    key=jax.random.key(8),
    **({} if clock is None else {"clock": clock}),
  )
  state = steps.TrainState(
    trainable_of(estimator), (), jnp.int32(0), {"beta": jnp.float32(BETA)}
  )
  metrics = []
  for step in (1, 2):
    state, found = run(state, batch(), step)
    metrics.append(found)
  return metrics, programs, state


@pytest.mark.parametrize(
  ("estimator", "measured", "exact"),
  [
    (REINFORCE, {}, False),
    (PPO, {"policy": 11, "value": 30}, False),
    (DR_GRPO, {}, True),
  ],
  ids=("reinforce", "ppo", "dr_grpo"),
)
def test_arguments_hold_the_trees_of_the_roles(estimator, measured, exact):
  """A reward model on a base of its own is given that base."""
  programs, trainable = programs_of(estimator), trainable_of(estimator)
  policy, base, *_ = programs.sample_args(trainable, batch(), None)
  assert (policy, base) == (11, {"base": 1})
  trees, bases, *_ = programs.score_args(trainable, batch(), (None,) * 3)
  assert trees == {"anchor": 10, "reward": 20} | measured
  assert bases == {"": {"base": 1}, "reward": {"another": 1}}
  assert programs.frozen() == steps.Frozen({"base": 1}, 10 if exact else {})


def test_a_reward_model_on_the_policys_base_is_given_it_once():
  programs = programs_of(REINFORCE)
  role = dataclasses.replace(programs.reward, frozen=programs.base)
  programs = dataclasses.replace(programs, reward=role)
  _, bases, *_ = programs.score_args({"policy": 11}, batch(), (None,) * 3)
  assert bases == {"": {"base": 1}}


def test_the_updated_policy_samples_next():
  _, programs, state = iterate(PPO)
  first, second = (args[0] for args in programs.sample.calls)
  assert (first, second) == (11, 11 + PPO.updates)
  assert state.trainable == {"policy": 11 + 8, "value": 30 + 8}


def test_every_step_has_a_key_of_its_own():
  _, programs, _ = iterate()
  expected = [
    jax.random.key_data(jax.random.fold_in(jax.random.key(8), step)).tolist()
    for step in (1, 2)
  ]
  for function in (programs.sample, programs.learn):
    data = [jax.random.key_data(args[-1]).tolist() for args in function.calls]
    assert data == expected and data[0] != data[1]


@pytest.mark.parametrize("estimator", [REINFORCE, DR_GRPO])
def test_experience_holds_what_was_measured(estimator):
  """Reward: the score, less the shift, less the penalty for no stop."""
  _, programs, _ = iterate(estimator)
  found, group = programs.learn.calls[0][2], estimator.group
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
  """The reward in the metrics is before the shift and the penalty."""
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
  assert found["rollout/tokens"] == mask.sum() + 4 + 2 + 3 + 1
  assert found.pop("faults").codes == (0,)
  timed = set(found) - set(expected) - {"rollout/tokens"}
  assert timed == {
    f"{kind}/{phase}"
    for kind in ("seconds", "rate")
    for phase in ("sample", "score", "learn")
  }
  for phase in ("sample", "score", "learn"):
    seconds = found[f"seconds/{phase}"]
    assert seconds > 0
    assert found[f"rate/{phase}"] == pytest.approx(mask.sum() / seconds)


def test_phases_are_timed_without_compilation():
  """A clock that moves a second a reading; what compiles says so."""
  readings = iter(range(100))

  def clock():
    return float(next(readings))

  (found, _), _, _ = iterate(clock=clock)
  seconds = [found[f"seconds/{p}"] for p in ("sample", "score", "learn")]
  assert seconds == [1.0, 1.0, 1.0]


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


def test_updates_are_on_minibatches_in_another_order_each_epoch():
  """Two epochs of two minibatches: each has all prompts once, in another order.

  The loop counts iterations, and metrics are means over four updates.
  """
  metrics, programs, state = iterate(PPO)
  assert int(state.step) == 2 and state.trainable["policy"] == 11 + 8
  assert len(programs.learn.calls) == 8
  orders, mask = [], sampled(1)[1]
  for start in range(0, 8, 2):
    parts = [args[2] for args in programs.learn.calls[start : start + 2]]
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


def test_a_rollout_whose_learning_has_begun_is_learned_to_its_end(monkeypatch):
  """Also where an update compiles: the first one takes the old state away."""
  programs, told = programs_of(PPO), []
  real = programs.learn._function

  def learn(*args):
    watch.finished(lambda: None)  # as a program that compiles
    told.append("SIGTERM")
    return real(*args)

  programs.learn._function = learn
  monkeypatch.setattr(watch.signals, "told", lambda: told[0] if told else "")
  with watch.kept_by(watch_of()), pytest.raises(watch.Stop):
    iterate(PPO, of=programs)
  assert len(programs.learn.calls) == 4

"""One iteration of RL: sample, score, learn; and what it looked like."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perl_jax import hosts, sharding, steps
from perl_jax import params as params_lib
from perl_jax.data import records
from perl_jax.objectives import kl as kl_lib
from perl_jax.tasks.rollouts import build
from perl_jax.tasks.rollouts import metrics as rollout_metrics
from perl_jax.tasks.rollouts import rewards as rewards_lib

PHASES = ("sample", "score", "learn")

# Row ids are int32, and -1 where a row only fills up: 2^32 - 1.
_ORDER = 2**31


@dataclasses.dataclass(frozen=True)
class Control:
  """How the weight of the KL follows the KL; `objectives.kl.adapt_beta`.

  Attributes:
    target: Nats per response, 0 for a fixed weight.
    horizon: Responses in which it may change by a fifth.
  """

  target: float = 0.0
  horizon: int = 1


class Iteration:
  """`iterate(state, batch, step) -> (state, metrics)` of the training loop."""

  def __init__(
    self,
    estimator: steps.Estimator,
    functions: build.Functions,
    *,
    mesh: Mesh,
    base: params_lib.Params,
    anchor: params_lib.Params,
    reward: rewards_lib.Rewarder,
    rows: Sequence[records.Prompt],
    key: jax.Array,
    control: Control,
  ):
    """Binds what no iteration changes.

    Args:
      estimator: What is learned by.
      functions: Compiled.
      mesh: Where batches go.
      base: What policy, value and anchor stand on; empty with full tuning.
      anchor: Trainable tree of the anchor.
      reward: Of the run.
      rows: Training records, which a batch's `index` points into.
      key: Of the run; each iteration folds in its number.
      control: Of the weight of the KL.
    """
    self._estimator, self._functions = estimator, functions
    self._mesh, self._base, self._anchor = mesh, base, anchor
    self._reward, self._rows, self._key = reward, rows, key
    self._control = control
    self._bases = {"": base}
    if reward.model is not None and reward.model.frozen is not base:
      self._bases["reward"] = reward.model.frozen
    exact = anchor if estimator.kl == "exact" else {}
    self._standing = steps.Standing(base, exact)

  def __call__(self, state: steps.TrainState, batch: Any, step: int):
    """One iteration; `metrics` also has the seconds of each phase."""
    key = jax.random.fold_in(self._key, step)
    device = sharding.place_batch(self._mesh, batch)
    policy = steps.policy_of(self._estimator, state.trainable)
    clock = [time.perf_counter()]

    def lap(arrays):
      jax.block_until_ready(arrays)
      clock.append(time.perf_counter())

    samples = self._functions.sample(
      policy, self._base, device.tokens, device.lengths, device.index, key
    )
    lap(samples)
    experience, parts = self._score(state, batch, device, samples)
    lap((experience, parts))
    state, found = self._learn(state, experience, key)
    lap(state)
    seconds = dict(zip(PHASES, np.diff(clock)))
    samples, parts, found = hosts.to_host((samples, parts, found))
    metrics = rollout_metrics.update_metrics(
      found
    ) | rollout_metrics.rollout_metrics(samples, parts)
    metrics["train/beta"] = found["beta"]
    tokens = int(samples.mask.sum())
    for phase, spent in seconds.items():
      metrics[f"seconds/{phase}"] = spent
      metrics[f"rate/{phase}"] = tokens / spent
    return state, metrics

  def _score(self, state, batch, device, samples):
    """(experience, parts of the reward) of sampled responses."""
    group = self._estimator.group
    shape = (device.tokens.shape[0], group, samples.tokens.shape[-1])
    responses, mask, sampled = (
      array.reshape(shape)
      for array in (samples.tokens, samples.mask, samples.logprobs)
    )
    trees = {"anchor": self._anchor}
    if self._estimator.needs_measures:
      trees["policy"] = steps.policy_of(self._estimator, state.trainable)
      if self._estimator.uses_value:
        trees["value"] = state.trainable["value"]
    if self._reward.model is not None:
      trees["reward"] = self._reward.model.trainable
    args = (device.tokens, device.lengths, responses, mask)
    scores = self._functions.score(trees, self._bases, *args)
    measured = self._reward.measure(
      (device.tokens, device.lengths, samples.tokens, samples.mask),
      np.repeat(batch.index, group),
      self._rows,
      scores=_flat(scores.get("reward")),
    )
    parts = self._reward.parts(measured)
    rewards = self._reward.learnt(parts["reward"], samples.stopped)
    experience = steps.Experience(
      *args,
      sampled_logprobs=sampled,
      anchor_logprobs=scores["anchor"],
      rewards=rewards.reshape(shape[:2]),
      beta=jnp.broadcast_to(state.controls["beta"], shape[:1]),
      policy_logprobs=scores.get("policy"),
      values=scores.get("value"),
    )
    if self._functions.prepare is not None:
      experience = self._functions.prepare(experience)
    return experience, parts

  def _learn(self, state, experience, key):
    """All updates on a rollout, and the mean of what they measured."""
    estimator, found = self._estimator, []
    # Copies: the first update donates the state.
    following, beta = state.step + 1, state.controls["beta"] + 0.0
    for epoch in range(estimator.epochs):
      parts = [experience]
      if estimator.minibatches > 1:
        # Rows draw from smaller numbers: see `sampling.make_sampler`.
        order = jax.random.permutation(
          jax.random.fold_in(key, _ORDER + epoch), experience.rewards.shape[0]
        )
        parts = [
          _take(experience, rows)
          for rows in np.split(np.asarray(order), estimator.minibatches)
        ]
      for part in parts:
        state, measured = self._functions.learn(
          state, self._standing, part, key
        )
        found.append(measured)
    mean = jax.tree.map(lambda *values: sum(values) / len(values), *found)
    mean["beta"] = beta
    if self._control.target:
      beta = kl_lib.adapt_beta(
        beta,
        mean["kl"],
        target=self._control.target,
        horizon=self._control.horizon,
        batch_size=experience.rewards.size,
      )
    # A step of the loop is an iteration, however many updates it has.
    return state._replace(step=following, controls={"beta": beta}), mean


def _flat(scores: jax.Array | None) -> jax.Array | None:
  """`[..., B, G]` as `[..., B * G]`."""
  return None if scores is None else scores.reshape(*scores.shape[:-2], -1)


def _take(experience: steps.Experience, rows: np.ndarray) -> steps.Experience:
  """Some prompts of an experience, laid out as the whole."""

  def take(array):
    return jax.device_put(array[rows], array.sharding)

  return jax.tree.map(take, experience)

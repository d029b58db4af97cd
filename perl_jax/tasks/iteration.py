"""One iteration of RL: sample, score, learn; and what it looked like."""

import time

import jax
import numpy as np

from perl_jax import rollout as rollout_lib
from perl_jax import sharding
from perl_jax.tasks import rewarding


def make_iteration(mesh, engine, learn, anchor, reward, frozen, key, rows):
  """Returns `iterate(state, batch, step) -> (state, metrics)`.

  `reward` is the run's `Rewarder`, `rows` the training records.
  """

  def iterate(state, batch, step):
    step_key = jax.random.fold_in(key, step)
    device = sharding.place_batch(mesh, batch)
    policy = state.trainable["policy"]
    clock = [time.perf_counter()]

    def lap(arrays):
      jax.block_until_ready(arrays)
      clock.append(time.perf_counter())

    samples = engine.sample(
      policy, frozen, device.tokens, device.lengths, device.index, step_key
    )
    lap(samples)
    args = (device.tokens, device.lengths, samples.tokens, samples.mask)
    logprobs, entropy = engine.logprobs(policy, frozen, *args)
    anchor_logprobs, _ = engine.logprobs(anchor.trainable, anchor.frozen, *args)
    parts = reward.parts(reward.measure(args, batch.index, rows))
    rewards = reward.learnt(parts["reward"], samples.stopped)
    rollout = rollout_lib.Rollout(*args, logprobs, anchor_logprobs, rewards)
    lap(rollout)
    state, found = learn(state, frozen, rollout, step_key)
    lap(state)
    metrics = {f"train/{k}": v for k, v in found.items()}
    metrics |= rollout_metrics(
      *jax.device_get((samples, parts, logprobs - anchor_logprobs, entropy))
    )
    for name, seconds in zip(("sample", "score", "learn"), np.diff(clock)):
      metrics[f"seconds/{name}"] = seconds
    return state, metrics

  return iterate


def rollout_metrics(samples, parts, kl, entropy) -> dict[str, float]:
  """What a batch of rollouts looked like; the reward is before shift and fine.

  `parts` is from `Rewarder.parts`.
  """
  lengths = samples.mask.sum(axis=1)
  tokens = lengths.sum()
  rewards = {
    f"rollout/{name}": parts[name].mean()
    for name in rewarding.PARTS
    if name in parts
  }
  return rewards | {
    "rollout/reward_std": parts["reward"].std(),
    "rollout/kl": kl.sum(axis=1).mean(),
    "rollout/kl_per_token": kl.sum() / tokens,
    "rollout/kl_k3": (np.expm1(-kl) + kl).sum() / tokens,
    "rollout/entropy": entropy.sum() / tokens,
    "rollout/length": lengths.mean(),
    "rollout/stop_rate": samples.stopped.mean(),
  }

"""One iteration of RL: sample, score, learn; and what it looked like."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax import rollout as rollout_lib
from perl_jax import sharding


def make_iteration(
  config, mesh, engine, learn, anchor, reward, frozen, key, shift
):
  """Returns `iterate(state, batch, step) -> (state, metrics)`."""

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
    scores = engine.rewards(reward.trainable, reward.frozen, *args)
    rewards = rollout_lib.penalise_unstopped(
      scores - jnp.float32(shift), samples.stopped, config.unstopped_penalty
    )
    rollout = rollout_lib.Rollout(*args, logprobs, anchor_logprobs, rewards)
    lap(rollout)
    state, found = learn(state, frozen, rollout, step_key)
    lap(state)
    metrics = {f"train/{k}": v for k, v in found.items()}
    metrics |= rollout_metrics(
      *jax.device_get((samples, scores, logprobs - anchor_logprobs, entropy))
    )
    for name, seconds in zip(("sample", "score", "learn"), np.diff(clock)):
      metrics[f"seconds/{name}"] = seconds
    return state, metrics

  return iterate


def rollout_metrics(samples, scores, kl, entropy) -> dict[str, float]:
  """What a batch of rollouts looked like; the reward is the model's own."""
  lengths = samples.mask.sum(axis=1)
  tokens = lengths.sum()
  return {
    "rollout/reward": scores.mean(),
    "rollout/reward_std": scores.std(),
    "rollout/kl": kl.sum(axis=1).mean(),
    "rollout/kl_per_token": kl.sum() / tokens,
    "rollout/kl_k3": (np.expm1(-kl) + kl).sum() / tokens,
    "rollout/entropy": entropy.sum() / tokens,
    "rollout/length": lengths.mean(),
    "rollout/stop_rate": samples.stopped.mean(),
  }

"""What a batch of responses, and an update, looked like."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perl_jax.tasks.rollouts import rewards as rewards_lib

# What the loss measures of the rollouts, not of the update.
OF_ROLLOUTS = (
  "kl", "kl_per_token", "kl_k3", "objective", "entropy", "sampler_difference",
)  # fmt: skip
_MOMENTS = ("return_square", "residual", "residual_square")


def update_metrics(found: Mapping[str, Any]) -> dict[str, float]:
  """What the step measured, by "train/..." and "rollout/...".

  `train/explained_variance` is 1 - var(Z - V) / var(Z) over the tokens of the
  batch, V before the update.
  """
  metrics = {}
  for name, value in found.items():
    if name in OF_ROLLOUTS:
      metrics[f"rollout/{name}"] = value
    elif name not in _MOMENTS:
      metrics[f"train/{name}"] = value
  if "return_square" in found:
    total = found["return_square"] - found["return"] ** 2
    left = found["residual_square"] - found["residual"] ** 2
    metrics["train/explained_variance"] = 1 - left / total if total > 0 else 0.0
  return metrics


def rollout_metrics(
  samples: Any, parts: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """What a batch of responses looked like; the reward is before shift and fine.

  Args:
    samples: From the sampler, on the host.
    parts: From `Rewarder.parts`, on the host.
  """
  ids = [row[mask].tolist() for row, mask in zip(samples.tokens, samples.mask)]
  rewards = {
    f"rollout/{name}": parts[name].mean()
    for name in rewards_lib.PARTS
    if name in parts
  }
  return rewards | {
    "rollout/reward_std": parts["reward"].std(),
    "rollout/length": samples.mask.sum(axis=1).mean(),
    "rollout/stop_rate": samples.stopped.mean(),
    "rollout/repetition": np.mean([repetition(row) for row in ids]),
    "rollout/decode_steps": samples.steps,
  }


def repetition(ids: list[int], n: int = 4) -> float:
  """Share of n-grams of a response that occurred earlier in it, in [0, 1]."""
  grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
  return 1.0 - len(set(grams)) / len(grams) if grams else 0.0

"""Metrics of an RL iteration: of the rollout and of the update.

`rollout/kl` is the mean over responses of sum_t (log pi - log pi_anchor) on the
sampled tokens, in nats (k1). Its two log-probs come from two programs, `learn`
and `score`, which round differently: at equal weights it is within 1e-5 nats of
0. `validation/kl` takes both from one program and is exactly 0 there; see
`scoring`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perl_jax.tasks.rollouts import rewards as rewards_lib

# What the loss measures of the rollout and not of the update.
OF_ROLLOUTS = (
  "kl", "kl_per_token", "kl_k3", "objective", "entropy", "sampler_difference",
  "signal", "equal_rewards",
)  # fmt: skip
_MOMENTS = ("return_square", "residual", "residual_square")


def update_metrics(found: Mapping[str, Any]) -> dict[str, float]:
  """What the loss measured, by "train/..." and "rollout/...".

  `train/explained_variance` is 1 - var(Z - V) / var(Z) over the tokens of the
  batch, with returns Z and the values V before the update.

  Args:
    found: Metrics of the train step, on the host.
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
  """Rewards, lengths and repetition of a batch of responses.

  Rewards are before the shift and the penalty for unstopped responses; lengths
  are in tokens.

  Args:
    samples: Sampled responses, on the host.
    parts: From `Rewarder.parts`, on the host.
  """
  ids = [row[mask].tolist() for row, mask in zip(samples.tokens, samples.mask)]
  rewards = {
    f"rollout/{name}": parts[name].mean()
    for name in rewards_lib.part_names(parts)
  }
  return rewards | {
    "rollout/reward_std": parts["reward"].std(),
    "rollout/length": samples.mask.sum(axis=1).mean(),
    "rollout/stop_rate": samples.stopped.mean(),
    "rollout/repetition": np.mean([repetition(row) for row in ids]),
    "rollout/decode_steps": samples.steps,
  }


def repetition(ids: list[int], n: int = 4) -> float:
  """Share of the n-grams of a response that occurred earlier in it, 0 to 1."""
  grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
  return 1.0 - len(set(grams)) / len(grams) if grams else 0.0

"""Pure training steps: one way to train, and a loss for each stage."""

from perl_jax.steps.dpo import AnchoredPairs, dpo_loss, pair_logprobs
from perl_jax.steps.language_model import language_model_loss
from perl_jax.steps.policy import reinforce_loss
from perl_jax.steps.reward import (
  pairwise_loss,
  pointwise_loss,
  reward_scores,
)
from perl_jax.steps.train import (
  LossFn,
  Sums,
  TrainState,
  init_state,
  make_train_step,
  masked_sums,
  means,
)

__all__ = [
  "AnchoredPairs",
  "LossFn",
  "Sums",
  "TrainState",
  "dpo_loss",
  "init_state",
  "language_model_loss",
  "make_train_step",
  "masked_sums",
  "means",
  "pair_logprobs",
  "pairwise_loss",
  "pointwise_loss",
  "reinforce_loss",
  "reward_scores",
]

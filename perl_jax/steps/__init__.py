"""Pure training steps: one way to train, and a loss for each stage."""

from perl_jax.steps.dpo import AnchoredPairs, dpo_loss
from perl_jax.steps.ensemble import init_ensemble, make_ensemble_step
from perl_jax.steps.estimator import (
  Estimator,
  Experience,
  lengths_of,
  prepare,
)
from perl_jax.steps.finite import Fault, describe_fault
from perl_jax.steps.language_model import language_model_loss
from perl_jax.steps.members import Values, make_members_step, with_scale
from perl_jax.steps.reward import pairwise_loss, pointwise_loss
from perl_jax.steps.rl import Frozen, policy_loss
from perl_jax.steps.train import (
  LossFn,
  TrainState,
  init_state,
  make_train_step,
  means,
)

__all__ = [
  "AnchoredPairs",
  "Estimator",
  "Experience",
  "Fault",
  "Frozen",
  "LossFn",
  "TrainState",
  "Values",
  "describe_fault",
  "dpo_loss",
  "init_ensemble",
  "init_state",
  "language_model_loss",
  "lengths_of",
  "make_ensemble_step",
  "make_members_step",
  "make_train_step",
  "means",
  "pairwise_loss",
  "pointwise_loss",
  "policy_loss",
  "prepare",
  "with_scale",
]

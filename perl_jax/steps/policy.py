"""Losses of policy and value model on rollouts."""

import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.objectives import advantages as advantages_lib
from perl_jax.objectives import masked, policy_gradient
from perl_jax.steps.train import LossFn, masked_sums


def reinforce_loss(
  backbone: roles.Backbone,
  *,
  temperature: float,
  beta: float,
  value_coef: float,
  reduction: str,
) -> LossFn:
  """The paper's update: REINFORCE with a learned baseline, KL in the reward.

  r_t = (1 - beta) r 1[t last] - beta (log pi_t - log pi_anchor_t)
  Z_t = sum_{t' >= t} r_t'
  loss = -sum_t log pi_t stopgrad(Z_t - V_t) + value_coef sum_t (Z_t - V_t)^2

  Args:
    backbone: Model and adapter shape.
    temperature: That of the rollout.
    beta: Weight of the KL, in [0, 1].
    value_coef: Weight of the value loss; policy and value share no parameter,
      so it scales the value's learning rate under SGD and little under Adam.
    reduction: "token" divides by the number of response tokens in the whole
      batch, "sequence" by the number of responses.

  The trainable tree is {"policy": ..., "value": ...}; frozen is the base that
  both stand on, or empty with full tuning.

  Reference: PAPER section 3; Lee et al. 2023, arXiv:2309.00267, appendix F.
  """

  def loss_fn(trainable, frozen, batch, key):
    del key  # dropout is off: log-probs must be those of the sampler
    policy = params_lib.combine(trainable["policy"], frozen)
    value = params_lib.combine(trainable["value"], frozen)
    mask = batch.response_mask
    sequence = roles.with_response(
      batch.prompts, batch.prompt_lengths, batch.responses, mask
    )
    length = batch.responses.shape[1]
    scores = roles.response_logprobs(
      backbone,
      policy,
      sequence,
      response_len=length,
      temperature=temperature,
    )
    values = roles.response_values(
      backbone, value, sequence, response_len=length
    )
    rewards = advantages_lib.shape_rewards(
      sequence_rewards=batch.rewards,
      kl=batch.policy_logprobs - batch.anchor_logprobs,
      response_mask=mask,
      beta=beta,
    )
    returns = advantages_lib.returns_to_go(rewards, mask)
    advantages = advantages_lib.reinforce_advantages(returns, values)
    policy_loss = policy_gradient.reinforce_loss(
      logprobs=scores.logprobs, advantages=advantages
    )
    value_loss = policy_gradient.value_loss(values=values, returns=returns)
    rows = jnp.sum(jnp.any(mask, axis=1), dtype=jnp.float32)
    tokens = jnp.sum(mask, dtype=jnp.float32)
    total = masked.masked_sum(policy_loss + value_coef * value_loss, mask)
    ratio = jnp.exp(scores.logprobs - batch.policy_logprobs)
    return {
      "loss": (total, tokens if reduction == "token" else rows),
      "policy_loss": masked_sums(policy_loss, mask),
      "value_loss": masked_sums(value_loss, mask),
      "advantage": masked_sums(advantages, mask),
      "return": masked_sums(returns, mask),
      "value": masked_sums(values, mask),
      "ratio": masked_sums(ratio, mask),
    }

  return loss_fn

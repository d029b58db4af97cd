"""The policy-gradient estimators: the advantage A_t of each, and its options.

  reinforce  Z_t - V(s_t): returns less a learned baseline (arXiv:2403.10704)
  ppo        generalised advantages with the same value model, clipped ratio
  rloo       return of a response less the mean return of the others to its
             prompt
  grpo       reward less the mean of its group, divided by the group's standard
             deviation, and the KL less its mean; clipped ratio
  dr_grpo    return less the mean of its group, clipped ratio

`prepare` computes advantages and returns for the loss in `rl.py`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import names, sharding
from perl_jax.objectives import advantages as advantages_lib
from perl_jax.objectives import kl as kl_lib
from perl_jax.objectives import masked

NAMES = ("reinforce", "ppo", "rloo", "grpo", "dr_grpo")
WITH_VALUE = ("reinforce", "ppo")
CLIPPED = ("ppo", "grpo", "dr_grpo")
REDUCTIONS = ("token", "sequence", "sequence_mean")


@dataclasses.dataclass(frozen=True)
class Estimator:
  """Static choices of the update.

  Attributes:
    name: One of `NAMES`.
    group: `G`, number of responses to each prompt.
    kl: "k1", "k2", "k3" or "exact"; see `objectives.kl`.
    kl_place: "reward" (k1) or "loss" (the others).
    reduction: What the sum of the token losses is divided by: "token", by the
      tokens in the batch; "sequence", by the responses, so that the gradient is
      that of the expected return; "sequence_mean", each response by its own
      length first (GRPO as published: long responses weigh less a token).
    whiten: Whether to scale advantages to mean 0 and variance 1 over all tokens
      of the batch.
    entropy_coef: Weight of the entropy that is added to the objective.
    value_coef: Weight of the value loss. Policy and value share no parameter:
      it scales the value's learning rate under SGD and little under Adam.
    epochs: Passes over a rollout; more than one needs a clipped ratio.
    minibatches: Updates in each pass over a rollout.
    clip_low, clip_high: See `ppo_policy_loss`.
    value_clip: See `ppo_value_loss`; 0 is off.
    discount, gae_lambda: Used by "ppo"; see `gae_advantages`.
  """

  name: str = "reinforce"
  group: int = 1
  kl: str = "k1"
  kl_place: str = "reward"
  reduction: str = "token"
  whiten: bool = False
  entropy_coef: float = 0.0
  value_coef: float = 1.0
  epochs: int = 1
  minibatches: int = 1
  clip_low: float = 0.2
  clip_high: float = 0.2
  value_clip: float = 0.0
  discount: float = 1.0
  gae_lambda: float = 1.0

  def __post_init__(self):
    for field, allowed in (("name", NAMES), ("reduction", REDUCTIONS)):
      value = getattr(self, field)
      if value not in allowed:
        hint = names.did_you_mean(value, allowed)
        shown = "estimator" if field == "name" else field
        raise ValueError(f"{shown}={value!r}: choose one of {allowed}.{hint}")
    try:
      kl_lib.require_kl(self.kl, self.kl_place)
    except ValueError as error:
      raise ValueError(
        f"kl.estimator={self.kl!r}, kl.place={self.kl_place!r}: {error}"
      ) from error
    if self.group < 2 and not self.uses_value:
      raise ValueError(
        f"estimator={self.name!r} compares the responses to a prompt: set"
        f" samples_per_prompt to 2 or more, it is {self.group}; or use"
        " 'reinforce', whose baseline is learned."
      )
    if self.updates > 1 and not self.clipped:
      raise ValueError(
        f"estimator={self.name!r} with ppo.epochs={self.epochs} and"
        f" ppo.minibatches={self.minibatches}: after the first update the"
        " policy is no longer the one that sampled, and without a ratio its"
        " gradient is wrong. Set both to 1, or use one of"
        f" {', '.join(CLIPPED)}."
      )

  @property
  def uses_value(self) -> bool:
    """Whether a value model is trained beside the policy."""
    return self.name in WITH_VALUE

  @property
  def clipped(self) -> bool:
    """Whether the loss clips the ratio to the policy that sampled."""
    return self.name in CLIPPED

  @property
  def updates(self) -> int:
    """Number of updates on each rollout."""
    return self.epochs * self.minibatches

  @property
  def needs_measures(self) -> bool:
    """Whether log-probs and values are needed before the first update.

    If not, the pass of the update computes them itself: the policy is still the
    one that sampled, and a microbatch holds whole groups.
    """
    return self.updates > 1 or self.whiten or self.name == "ppo"


class Experience(NamedTuple):
  """Rollouts of a batch of B prompts, and the training signal from them.

  Attributes:
    prompts: Left-padded prompts, `[B, P]`, int32.
    prompt_lengths: Tokens of each prompt, `[B]`, int32.
    responses: G responses to each prompt, `[B, G, T]`, int32.
    response_mask: True up to and including the stop token, `[B, G, T]`, bool.
      All False in a row that only fills the batch.
    sampled_logprobs: Log-probs that the sampler returned, `[B, G, T]`, float32.
    anchor_logprobs: Log-probs of the anchor at the sampling temperature,
      `[B, G, T]`, float32.
    rewards: Score of each response, `[B, G]`, float32.
    beta: Weight of the KL, the same in each row, `[B]`, float32.
    policy_logprobs: Log-probs of the policy that sampled, by the trainer's
      forward pass, `[B, G, T]`; None unless `Estimator.needs_measures`.
    values: Values before the update, `[B, G, T]`, or None.
    advantages: From `prepare`, `[B, G, T]`, or None.
    returns: From `prepare`, `[B, G, T]`, or None.
  """

  prompts: jax.Array
  prompt_lengths: jax.Array
  responses: jax.Array
  response_mask: jax.Array
  sampled_logprobs: jax.Array
  anchor_logprobs: jax.Array
  rewards: jax.Array
  beta: jax.Array
  policy_logprobs: jax.Array | None = None
  values: jax.Array | None = None
  advantages: jax.Array | None = None
  returns: jax.Array | None = None

  def cut(self, length: int) -> "Experience":
    """The same with the first `length` tokens of each response."""
    shape = self.response_mask.shape

    def shorter(array):
      per_token = array is not None and array.shape == shape
      return array[..., :length] if per_token else array

    return Experience(*map(shorter, self))


def lengths_of(buckets: tuple[int, ...]) -> sharding.Lengths:
  """How the rows of an `Experience` are cut to the lengths of their responses.

  Args:
    buckets: Lengths of responses, in ascending order; the last is the longest.
  """
  return sharding.Lengths(
    buckets, lambda batch: masked.longest(batch.response_mask), Experience.cut
  )


def prepare(estimator: Estimator, experience: Experience) -> Experience:
  """Computes advantages and returns of a batch, or of whole groups of it.

  r_t = (1 - beta) r 1[t last] - beta k1_t, the last term with KL in the reward

  "grpo" divides r alone by the group's deviation: see `grpo_kl_advantages`.

  Args:
    estimator: Static choices of the update.
    experience: Rollouts with `policy_logprobs`, and with `values` if the
      estimator has a value model.

  Returns:
    The experience with `advantages` and `returns`, 0 where masked and without
    gradient.
  """
  mask = experience.response_mask
  batch, group, length = mask.shape

  def flat(array: Any) -> jax.Array:
    return jax.lax.stop_gradient(array).reshape(batch * group, length)

  rows = flat(mask)
  log_ratio = kl_lib.kl_k1(
    flat(experience.policy_logprobs), flat(experience.anchor_logprobs)
  )
  # Where KL is a term of the loss, the reward is weighted all the same.
  kl = log_ratio
  if estimator.kl_place != "reward":
    kl = jnp.zeros_like(log_ratio)
  beta = jnp.repeat(experience.beta, group)[:, None]
  shaped = advantages_lib.shape_rewards(
    sequence_rewards=experience.rewards.reshape(-1),
    kl=kl,
    response_mask=rows,
    beta=beta,
  )
  returns = advantages_lib.returns_to_go(shaped, rows)
  if estimator.uses_value:
    values = flat(experience.values)
    if estimator.name == "ppo":
      advantages, returns = advantages_lib.gae_advantages(
        rewards=shaped,
        values=values,
        response_mask=rows,
        discount=estimator.discount,
        gae_lambda=estimator.gae_lambda,
      )
    else:
      advantages = masked.keep(
        advantages_lib.reinforce_advantages(returns, values), rows
      )
  else:
    whole = jnp.sum(shaped, axis=1).reshape(batch, group)
    if estimator.name == "rloo":
      compared = advantages_lib.rloo_advantages(whole)
    elif estimator.name == "dr_grpo":
      compared = advantages_lib.grpo_advantages(whole, normalise=False)
    else:
      compared = advantages_lib.grpo_kl_advantages(
        rewards=jnp.where(jnp.any(mask, axis=-1), experience.rewards, 0.0),
        kl=jnp.sum(masked.keep(kl, rows), axis=1).reshape(batch, group),
        beta=experience.beta[:, None],
      )
    advantages = jnp.where(rows, compared.reshape(-1, 1), 0.0)
  if estimator.whiten:
    advantages = masked.masked_whiten(advantages, rows)
  return experience._replace(
    advantages=advantages.reshape(mask.shape),
    returns=returns.reshape(mask.shape),
  )

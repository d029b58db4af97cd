"""Losses on preferences: of reward models, and of the policy without one."""

import chex
import jax
import jax.numpy as jnp

DPO_KINDS = ("sigmoid", "ipo")


def pairwise_preference_loss(
  chosen_rewards: jax.Array, rejected_rewards: jax.Array
) -> jax.Array:
  """Negative log-likelihood that the chosen response wins (Bradley-Terry).

  loss = -log sigmoid(r_chosen - r_rejected)

  Args:
    chosen_rewards: Reward-model scores, `[B]`, float32.
    rejected_rewards: Scores for the same prompts, `[B]`, float32.

  Returns:
    Loss in nats per pair, `[B]`, not reduced.

  Raises:
    AssertionError: If shapes differ or a score is not float32.

  Reference: Stiennon et al. 2020, arXiv:2009.01325, section 3.4.
  """
  chex.assert_equal_shape([chosen_rewards, rejected_rewards])
  chex.assert_rank(chosen_rewards, 1)
  chex.assert_type([chosen_rewards, rejected_rewards], jnp.float32)
  return -jax.nn.log_sigmoid(chosen_rewards - rejected_rewards)


def pointwise_preference_loss(
  rewards: jax.Array, labels: jax.Array
) -> jax.Array:
  """Binary cross-entropy of the label, with the reward as its logit.

  loss = -y log sigmoid(r) - (1 - y) log sigmoid(-r)

  Args:
    rewards: Reward-model scores, `[B]`, float32.
    labels: 1 for a good response, 0 for a bad one, or the share of raters who
      called it good, `[B]`, float32.

  Returns:
    Loss in nats per response, `[B]`, not reduced.

  Raises:
    AssertionError: If shapes differ, or a score or label is not float32.

  Reference: Sidahmed et al. 2024, arXiv:2403.10704.
  """
  chex.assert_equal_shape([rewards, labels])
  chex.assert_rank(rewards, 1)
  chex.assert_type([rewards, labels], jnp.float32)
  good = jax.nn.log_sigmoid(rewards)
  bad = jax.nn.log_sigmoid(-rewards)
  return -labels * good - (1.0 - labels) * bad


def dpo_loss(
  *,
  chosen_logprobs: jax.Array,
  rejected_logprobs: jax.Array,
  anchor_chosen_logprobs: jax.Array,
  anchor_rejected_logprobs: jax.Array,
  beta: float | jax.Array,
  label_smoothing: float = 0.0,
  kind: str = "sigmoid",
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Direct preference optimisation: the policy is its own reward model.

  r(y) = beta (log pi(y|x) - log pi_anchor(y|x)),  m = r(chosen) - r(rejected)
  sigmoid:  loss = -(1 - s) log sigmoid(m) - s log sigmoid(-m)
  ipo:      loss = (m / beta - 1 / (2 beta))^2

  Where the policy is the anchor, the loss is log 2 (sigmoid) or 1 / (4 beta^2).

  Args:
    chosen_logprobs, rejected_logprobs: log pi(y|x) of each response under the
      policy, summed over its tokens, with gradient, `[B]`, float32.
    anchor_chosen_logprobs, anchor_rejected_logprobs: The same under the anchor,
      `[B]`, float32. They get no gradient.
    beta: Cost of a nat of KL, in units of the reward, > 0. Unlike the beta
      of RL it does not weigh against 1 - beta. A scalar array is not checked:
      its value is not known while it is traced.
    label_smoothing: Share s of pairs that are taken to be labelled the wrong
      way round, in [0, 0.5); conservative DPO. 0 for "ipo".
    kind: "sigmoid" or "ipo".

  Returns:
    Loss per pair `[B]`, not reduced; and the implicit rewards r of the chosen
    and the rejected responses, `[B]` each.

  Raises:
    ValueError: If kind is unknown, or beta or label_smoothing outside its
      range.
    AssertionError: If shapes differ or an input is not float32.

  Reference: Rafailov et al. 2023, arXiv:2305.18290, equation 7; Azar et al.
  2023 (IPO), arXiv:2310.12036, equation 17; Mitchell 2023, "A note on DPO with
  noisy preferences and relationship to IPO".
  """
  known = 1.0 if isinstance(beta, jax.Array) else beta
  require_dpo(beta=known, label_smoothing=label_smoothing, kind=kind)
  inputs = [chosen_logprobs, rejected_logprobs]
  anchor = [anchor_chosen_logprobs, anchor_rejected_logprobs]
  chex.assert_rank(chosen_logprobs, 1)
  chex.assert_equal_shape(inputs + anchor)
  chex.assert_type(inputs + anchor, jnp.float32)
  chosen, rejected = (
    mine - jax.lax.stop_gradient(theirs)
    for mine, theirs in zip(inputs, anchor, strict=True)
  )
  if kind == "ipo":
    loss = jnp.square(chosen - rejected - 1 / (2 * beta))
  else:
    margin = beta * (chosen - rejected)
    loss = -(1 - label_smoothing) * jax.nn.log_sigmoid(margin)
    loss -= label_smoothing * jax.nn.log_sigmoid(-margin)
  return loss, beta * chosen, beta * rejected


def require_dpo(*, beta: float, label_smoothing: float, kind: str) -> None:
  """Checks the numbers of `dpo_loss`.

  Raises:
    ValueError: Names the number, its value and the way out.
  """
  if kind not in DPO_KINDS:
    raise ValueError(f"kind={kind!r}: choose one of {', '.join(DPO_KINDS)}")
  if not beta > 0:
    raise ValueError(
      f"beta={beta} must be > 0: it is the cost of a nat of KL; 0.1 is usual"
    )
  if not 0 <= label_smoothing < 0.5:
    raise ValueError(
      f"label_smoothing={label_smoothing} must be in [0, 0.5): from 0.5 on the"
      " labels would say nothing, or the opposite"
    )
  if kind == "ipo" and label_smoothing:
    raise ValueError(
      f"label_smoothing={label_smoothing} belongs to kind 'sigmoid': the"
      " margin of 'ipo' has a finite target without it; use 0"
    )

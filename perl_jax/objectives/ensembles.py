"""Combines the scores that several reward models give the same responses."""

import chex
import jax
import jax.numpy as jnp

COMBINATIONS = ("mean", "min", "mean_minus_std")


def combine_scores(
  scores: jax.Array,
  *,
  how: str,
  std_weight: float = 1.0,
  centres: jax.Array | None = None,
) -> jax.Array:
  """One score of each response from those of the members of an ensemble.

  c_k = s_k - m_k + mean_j m_j
  "mean":            r = mean_k c_k
  "min":             r = min_k c_k
  "mean_minus_std":  r = mean_k c_k - std_weight sqrt(mean_k (c_k - mean c)^2)

  Preferences say nothing about where a model's scores have their zero: each
  member has its own. Without m_k the smallest score would be that of one member
  throughout, and the deviation that of the zeros. The members' common level
  stays, so that the mean is the plain mean of the scores.

  Args:
    scores: Score of each response by each member, `[members, B]`, float32.
    how: One of `COMBINATIONS`.
    std_weight: Weight of the deviation over the members.
    centres: `m`, mean score of each member on a set of responses that all
      members scored, `[members]`; None takes the scores as they are.

  Returns:
    Combined scores, `[B]`, float32.

  Raises:
    AssertionError: If a shape or a dtype is not as above.
    ValueError: If `how` is unknown.

  Reference: Coste et al. 2023, arXiv:2310.02743, section 3.2.
  """
  chex.assert_rank(scores, 2)
  chex.assert_type(scores, jnp.float32)
  if centres is not None:
    chex.assert_shape(centres, scores.shape[:1])
    scores = scores - (centres - jnp.mean(centres))[:, None]
  if how == "mean":
    return jnp.mean(scores, axis=0)
  if how == "min":
    return jnp.min(scores, axis=0)
  if how == "mean_minus_std":
    return jnp.mean(scores, axis=0) - std_weight * jnp.std(scores, axis=0)
  raise ValueError(f"how={how!r}: choose one of {COMBINATIONS}.")

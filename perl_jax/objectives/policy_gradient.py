"""REINFORCE with a learned baseline: losses of the policy and the value model.

The losses treat every entry alone, padding too. Reduce them with `masked_mean`;
if the padding could hold numbers that are not finite, clean the inputs with
`masked.keep` first.
"""

import chex
import jax
import jax.numpy as jnp


def reinforce_loss(*, logprobs: jax.Array, advantages: jax.Array) -> jax.Array:
  """Policy-gradient loss: makes tokens with a positive advantage likelier.

  loss_t = -log pi(a_t | s_t) stop_gradient(A_t)

  Only its gradient means something; its value does not measure progress. Summed
  over a response and averaged over responses sampled from the policy, the
  gradient is that of -E[sum_t r_t].

  Args:
    logprobs: Of the sampled tokens, with gradient, `[B, T]`, float32.
    advantages: A_t, `[B, T]`, float32.

  Returns:
    Loss per token, `[B, T]`, not reduced.

  Raises:
    AssertionError: If shapes differ or an input is not float32.

  Reference: Lee et al. 2023, arXiv:2309.00267, appendices F, G.
  """
  chex.assert_rank(logprobs, 2)
  chex.assert_equal_shape([logprobs, advantages])
  chex.assert_type([logprobs, advantages], jnp.float32)
  return -logprobs * jax.lax.stop_gradient(advantages)


def value_loss(*, values: jax.Array, returns: jax.Array) -> jax.Array:
  """Squared error of the value model, with no factor 1/2.

  loss_t = (stop_gradient(Z_t) - V(s_t))^2

  Args:
    values: V of the state before each token, with gradient, `[B, T]`, float32.
    returns: Z from `returns_to_go`, `[B, T]`, float32.

  Returns:
    Loss per token in squared reward, `[B, T]`, not reduced.

  Raises:
    AssertionError: If shapes differ or an input is not float32.

  Reference: Lee et al. 2023, arXiv:2309.00267, appendices F, G.
  """
  chex.assert_rank(values, 2)
  chex.assert_equal_shape([values, returns])
  chex.assert_type([values, returns], jnp.float32)
  return jnp.square(jax.lax.stop_gradient(returns) - values)

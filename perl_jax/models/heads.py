"""The scalar head that turns a hidden state into a reward or a value."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class ScalarHead(nn.Module):
  """h . w + b in float32, `[..., D]` to `[...]`.

  Starts at zero: a new value model predicts 0 everywhere, and the first
  gradient of a reward model moves the head before it moves the adapters.
  """

  @nn.compact
  def __call__(self, hidden: jax.Array) -> jax.Array:
    """Maps hidden states `[..., D]` to float32 scalars `[...]`."""
    hidden = hidden.astype(jnp.float32)
    kernel = self.param("kernel", nn.initializers.zeros, (hidden.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, ())
    return jnp.dot(hidden, kernel) + bias

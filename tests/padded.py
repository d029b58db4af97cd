"""A row for each response, padded on the right: what packed rows must equal."""

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles


def reward_scores(
  backbone: roles.Backbone,
  params: params_lib.Params,
  tokens: jax.Array,
  lengths: jax.Array,
  prompt_lengths: jax.Array,
  *,
  max_response: int,
  closing: int = 0,
  key: jax.Array | None = None,
) -> jax.Array:
  """Scores `[B]`, float32, of right-padded prompts and responses.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the reward model, head included.
    tokens: Prompts, each followed by its response, `[B, T]`, int32.
    lengths: Tokens of prompt and response together, `[B]`, int32.
    prompt_lengths: Tokens of each prompt, `[B]`, int32.
    max_response: At least the number of response tokens of any row.
    closing: Number of tokens at the end of each row that the chat template
      writes after a response: the score is read at the last of them.
    key: Random key that turns LoRA dropout on.
  """
  columns = jnp.arange(tokens.shape[1])
  mask = columns >= prompt_lengths[:, None]
  mask &= columns < lengths[:, None] - closing
  return roles.response_scores(
    backbone,
    params,
    roles.right_padded(tokens, lengths),
    mask,
    max_response=max_response,
    key=key,
  )

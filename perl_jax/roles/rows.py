"""Rows of several responses to a prompt: behind one copy of it, or apart."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax.models import attention
from perl_jax.models.config import ModelConfig
from perl_jax.roles import sequences
from perl_jax.roles.sequences import Sequence


class SharedRows(NamedTuple):
  """Rows for the model, of prompts and their responses.

  Attributes:
    sequence: The rows, `[R, P + G T]`.
    group: `G`, responses in a row: all to a prompt, or one.
  """

  sequence: Sequence
  group: int

  def columns_of(self, mask: jax.Array) -> jax.Array:
    """A mask of responses, `[R * G, T]`, as one of the rows, `[R, P + G T]`."""
    tokens = self.sequence.tokens
    own = mask.reshape(tokens.shape[0], -1)
    prompt = tokens.shape[1] - own.shape[1]
    return jnp.pad(own, ((0, 0), (prompt, 0)))


def shared_rows(
  config: ModelConfig,
  prompts: jax.Array,
  prompt_lengths: jax.Array,
  responses: jax.Array,
  response_mask: jax.Array,
) -> SharedRows:
  """Rows of n responses to each prompt, in the form that costs less.

  Args:
    config: Shapes and switches of the model that reads them.
    prompts: Left-padded prompts, `[B, P]`, int32.
    prompt_lengths: Tokens of each prompt, `[B]`, int32.
    responses: Row n b + i is response i to prompt b, `[B * n, T]`, int32.
    response_mask: Which tokens are the response, `[B * n, T]`, bool.
  """
  count = responses.shape[0] // prompts.shape[0]
  group = count
  if not _shares(config, prompts.shape[1], responses.shape[1], count):
    group = 1
  if group < count:
    prompts = jnp.repeat(prompts, count, axis=0)
    prompt_lengths = jnp.repeat(prompt_lengths, count)
  found = sequences.with_response(
    prompts, prompt_lengths, responses, response_mask, group=group
  )
  return SharedRows(found, group)


def _shares(
  config: ModelConfig, prompt_len: int, response_len: int, count: int
) -> bool:
  """Whether one copy of a prompt for n responses saves multiplications.

  Of a layer's products, n - 1 copies of P tokens are saved; attention then also
  compares the responses with each other, though none sees another:

    saved  (n - 1) P (2 D N H + 2 D K H + 3 D F)
    added  2 N H ((P + n T)^2 - n (P + T)^2) = (n - 1) 2 N H (n T^2 - P^2)

  A kernel of rows of one response that cannot run on several is not given up.
  """
  kernels = {
    attention.choose(
      config,
      queries=prompt_len + responses * response_len,
      keys=prompt_len + responses * response_len,
      contiguous=responses == 1,
    )
    for responses in (1, count)
  }
  heads = config.num_heads * config.head_dim
  keys = config.num_kv_heads * config.head_dim
  token = config.width * (2 * heads + 2 * keys + 3 * config.mlp_width)
  added = 2 * heads * (count * response_len**2 - prompt_len**2)
  return len(kernels) == 1 and prompt_len * token > added

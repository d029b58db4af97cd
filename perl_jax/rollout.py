"""Prompts to scored rollouts: sampled once, measured by every role.

Three pure functions, so that a task can time them apart: `sample` (in
sampling.py), `logprobs` for policy and anchor alike, and `rewards`. Policy and
anchor go through the *same* compiled function with different arguments: equal
parameters then give equal bits, and the KL at step 0 is exactly 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles


class Rollout(NamedTuple):
  """Responses and everything measured on them.

  Per-token arrays are `[B, T]`; entry t is about producing `responses[:, t]`.
  A row that only fills up a batch has an empty `response_mask`.

  Attributes:
    prompts: Left-padded, `[B, P]`, int32.
    prompt_lengths: `[B]`, int32.
    responses: `[B, T]`, int32.
    response_mask: True up to and including the stop token, `[B, T]`, bool.
    policy_logprobs: At the sampling temperature, `[B, T]`, float32.
    anchor_logprobs: The same under the anchor.
    rewards: Score of the whole response, `[B]`, float32.
  """

  prompts: jax.Array
  prompt_lengths: jax.Array
  responses: jax.Array
  response_mask: jax.Array
  policy_logprobs: jax.Array
  anchor_logprobs: jax.Array
  rewards: jax.Array


def make_logprobs(
  backbone: roles.Backbone, *, temperature: float
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns `logprobs(trainable, frozen, prompts, lengths, responses, mask)`.

  It gives per-token log-probs and entropies, `[B, T]` float32, 0 where masked.
  """

  def logprobs(trainable, frozen, prompts, lengths, responses, mask):
    scores = roles.response_logprobs(
      backbone,
      params_lib.combine(trainable, frozen),
      roles.with_response(prompts, lengths, responses, mask),
      response_len=responses.shape[1],
      temperature=temperature,
      entropy=True,
    )
    zero = jnp.zeros((), jnp.float32)
    return (
      jnp.where(mask, scores.logprobs, zero),
      jnp.where(mask, scores.entropy, zero),
    )

  return logprobs


def make_rewards(
  backbone: roles.Backbone, *, members: int = 1
) -> Callable[..., jax.Array]:
  """Returns `rewards(trainable, frozen, prompts, lengths, responses, mask)`.

  It gives the reward model's score of the whole response, `[B]` float32. With
  `members` above 1, `trainable` is that of so many models, stacked, and the
  scores are `[members, B]`, in one pass.
  """

  def rewards(trainable, frozen, prompts, lengths, responses, mask):
    params = params_lib.combine(trainable, frozen)
    sequence = roles.with_response(prompts, lengths, responses, mask)
    prompt = jnp.zeros(prompts.shape, bool)
    return roles.response_scores(
      backbone,
      params,
      sequence,
      jnp.concatenate([prompt, mask], axis=1),
      max_response=responses.shape[1],
    )

  if members > 1:
    return jax.vmap(rewards, in_axes=(0, *[None] * 5))
  return rewards


def penalise_unstopped(
  rewards: jax.Array, stopped: jax.Array, penalty: float
) -> jax.Array:
  """rewards - penalty where the response ran out of room, `[B]` float32."""
  return rewards - penalty * (1.0 - stopped.astype(jnp.float32))

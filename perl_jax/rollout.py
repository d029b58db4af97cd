"""Prompts to scored rollouts: sampled once, measured by every role.

Three pure functions, so that a task can time them apart: `sample` (in
sampling/), `logprobs` for policy and anchor alike, and `rewards`. Policy and
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
  With a group of G responses to a prompt, all but the prompts have B G rows.
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
  backbone: roles.Backbone, *, temperature: float, group: int = 1
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns `logprobs(trainable, frozen, prompts, lengths, responses, mask)`.

  It gives per-token log-probs and entropies, float32, 0 where masked, of
  responses `[B * G, T]` to prompts `[B, P]`, G = `group`.
  """

  def logprobs(trainable, frozen, prompts, lengths, responses, mask):
    scores = roles.response_logprobs(
      backbone,
      params_lib.combine(trainable, frozen),
      roles.with_response(prompts, lengths, responses, mask, group=group),
      response_len=responses.shape[1],
      temperature=temperature,
      entropy=True,
      group=group,
    )
    zero = jnp.zeros((), jnp.float32)
    return (
      jnp.where(mask, scores.logprobs, zero),
      jnp.where(mask, scores.entropy, zero),
    )

  return logprobs


def make_rewards(
  backbone: roles.Backbone, *, group: int = 1
) -> Callable[..., jax.Array]:
  """Returns `rewards(trainable, frozen, prompts, lengths, responses, mask)`.

  It gives the reward model's score of the whole response, `[B * G]` float32,
  of responses `[B * G, T]` to prompts `[B, P]`, G = `group`.
  """

  def rewards(trainable, frozen, prompts, lengths, responses, mask):
    params = params_lib.combine(trainable, frozen)
    sequence = roles.with_response(
      prompts, lengths, responses, mask, group=group
    )
    prompt = jnp.zeros(prompts.shape, bool)
    grouped = mask.reshape(prompts.shape[0], -1)
    return roles.response_scores(
      backbone,
      params,
      sequence,
      jnp.concatenate([prompt, grouped], axis=1),
      max_response=responses.shape[1],
      group=group,
    )

  return rewards


def penalise_unstopped(
  rewards: jax.Array, stopped: jax.Array, penalty: float
) -> jax.Array:
  """rewards - penalty where the response ran out of room, `[B]` float32."""
  return rewards - penalty * (1.0 - stopped.astype(jnp.float32))

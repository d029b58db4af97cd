"""Scores and log-probs of responses that are packed into rows with others."""

from typing import Any

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax.models import attention
from perl_jax.models.config import ModelConfig
from perl_jax.objectives import language_model, masked
from perl_jax.roles import outputs
from perl_jax.roles.backbone import Backbone, Params, hidden_states
from perl_jax.roles.sequences import Sequence

# Columns of a row for which a fused kernel is certainly chosen.
_LONG = 1024


def row_block(config: ModelConfig) -> int:
  """The number of which the length of packed rows is a multiple.

  Args:
    config: Shapes and switches of the transformer.
  """
  return 1 if shares_prompts(config) else attention.LANES


def shares_prompts(config: ModelConfig) -> bool:
  """Whether several responses can attend to one copy of their prompt.

  A splash kernel knows segments alone, and has no mask that shows a prompt to
  two of them.

  Args:
    config: Shapes and switches of the transformer.
  """
  kernel = attention.choose(config, queries=_LONG, keys=_LONG, contiguous=True)
  return kernel != "splash"


def packed_scores(
  backbone: Backbone,
  params: Params,
  batch: Any,
  *,
  max_response: int,
  closing: int = 0,
  key: jax.Array | None = None,
) -> jax.Array:
  """The reward model's score of each response, `[N, P, K]` float32.

  See `response_scores` for what it is; where there is no response it has no
  meaning.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the reward model, head included.
    batch: `PackedResponses`, with targets for a likelihood head.
    max_response: At least the number of tokens of any response.
    closing: Number of tokens at the end of each response that the chat template
      writes after it: the score is read at the last of them, and a likelihood
      head does not read them.
    key: Random key that turns LoRA dropout on.

  Raises:
    ValueError: The head is one of likelihood and the batch has no targets.
  """
  likelihood = params[params_lib.HEAD].get("likelihood")
  spans = (max_response, closing) if likelihood is not None else None
  last, phi = _read(backbone, params, batch, spans, key)
  scores = outputs.scalar_head(params, last)
  if likelihood is None:
    return scores
  return scores + jnp.dot(phi, likelihood)


def packed_features(
  backbone: Backbone,
  params: Params,
  batch: Any,
  *,
  max_response: int,
  closing: int = 0,
  likelihood: bool = False,
) -> jax.Array:
  """What a reward model's head reads of each response, `[N, P, K, F]` float32.

  x = h_last                      (scalar head, F = D)
  x = (h_last, sqrt(D) phi)       (likelihood head, F = D + 2)

  A score is x . (w, v) + b, see `response_scores`.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the reward model; a head is not looked at.
    batch: `PackedResponses`, with targets for a likelihood head.
    max_response: At least the number of tokens of any response.
    closing: See `packed_scores`.
    likelihood: Whether it is the likelihood head that reads.

  Raises:
    ValueError: The head is one of likelihood and the batch has no targets.
  """
  spans = (max_response, closing) if likelihood else None
  last, phi = _read(backbone, params, batch, spans)
  last = last.astype(jnp.float32)
  return last if phi is None else jnp.concatenate([last, phi], axis=-1)


def _read(backbone, params, batch, spans, key=None):
  """(h_last `[N, P, K, D]`, sqrt(D) phi `[N, P, K, 2]`).

  phi is of the tokens that (max_response, closing) leave, and None without it.
  """
  hidden = _hidden(backbone, params, batch, key)
  rows = jnp.arange(hidden.shape[0])[:, None, None]
  last = hidden[rows, batch.last]
  if spans is None:
    return last, None
  found, mask = _of_responses(backbone, params, batch, hidden, *spans)
  phi = language_model.likelihood_features(found, mask)
  return last, jnp.sqrt(hidden.shape[-1]) * phi.reshape(*batch.last.shape, -1)


def packed_logprobs(
  backbone: Backbone,
  params: Params,
  batch: Any,
  *,
  max_response: int,
  key: jax.Array | None = None,
) -> jax.Array:
  """log pi(y|x) of each response, `[N, P, K]` float32, in nats.

  log pi(y|x) = sum_t log pi(y_t | x, y_<t), the stop token included; 0 where
  there is no response.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the policy or the anchor.
    batch: `PackedResponses` with targets.
    max_response: At least the number of tokens of any response.
    key: Random key that turns LoRA dropout on.

  Raises:
    ValueError: The batch has no targets.
  """
  hidden = _hidden(backbone, params, batch, key)
  found, mask = _of_responses(backbone, params, batch, hidden, max_response, 0)
  return masked.masked_sum(found, mask, axis=1).reshape(batch.last.shape)


def _hidden(backbone, params, batch, key):
  sequence = Sequence(batch.tokens, batch.positions, batch.segments)
  alone = batch.last.shape[-1] == 1 or not shares_prompts(backbone.config)
  return hidden_states(backbone, params, sequence, key=key, contiguous=alone)


def _of_responses(backbone, params, batch, hidden, max_response, closing):
  """Log-probs of the tokens of each response, `[N * P * K, R]`, and a mask."""
  if batch.targets.shape[1] == 0:
    raise ValueError(
      "The rows were packed without targets, which the probabilities of"
      " responses are read at; pack them with targets=True."
    )
  scores = outputs.logprobs_at(
    backbone, params, hidden, batch.tokens, batch.targets, batch.before
  )
  rows = jnp.arange(hidden.shape[0])[:, None, None, None]
  steps = jnp.arange(max_response)
  columns = batch.offsets[..., None] + steps
  columns = jnp.minimum(columns, batch.targets.shape[1] - 1)
  mask = steps < (batch.counts - closing)[..., None]
  return (
    scores.logprobs[rows, columns].reshape(-1, max_response),
    mask.reshape(-1, max_response),
  )

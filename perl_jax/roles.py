"""The four roles on one backbone: log-probs, scores and values.

Policy, anchor, reward and value are the same base weights with different
adapters and heads. Every function takes `params = combine(trainable, frozen)`
of one role; whether an adapter runs is decided by the tree alone.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax.models import heads, transformer
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.objectives import language_model

Params = params_lib.Params

# A head this wide is scored in pieces of the vocabulary: on a mesh it would
# else be gathered whole. How many of its logits a device may hold at once.
_WIDE_VOCAB, _PIECE_LOGITS = 65_536, 2**24


@dataclasses.dataclass(frozen=True)
class Backbone:
  """Static description of the model that all roles share.

  Attributes:
    config: Shapes and switches of the transformer.
    lora: Shape of every adapter on it.
  """

  config: ModelConfig
  lora: LoraSpec

  def module(self, params: Params) -> transformer.Transformer:
    """The transformer; at rank 0 if the tree holds no adapter."""
    spec = self.lora if params_lib.has_adapters(params) else LoraSpec()
    return transformer.Transformer(self.config, spec)


class Sequence(NamedTuple):
  """Tokens with what masks are made of, each `[B, T]`, int32."""

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array


def right_padded(tokens: jax.Array, lengths: jax.Array) -> Sequence:
  """Sequences that start in column 0; `lengths` `[B]` says where they end."""
  columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  inside = columns < lengths[:, None]
  return Sequence(tokens, jnp.where(inside, columns, 0), inside.astype("int32"))


def left_padded(tokens: jax.Array, lengths: jax.Array) -> Sequence:
  """Sequences that end in the last column."""
  start = tokens.shape[1] - lengths[:, None]
  positions = jnp.arange(tokens.shape[1]) - start
  inside = positions >= 0
  return Sequence(
    tokens, jnp.where(inside, positions, 0), inside.astype("int32")
  )


def with_response(
  prompts: jax.Array,
  prompt_lengths: jax.Array,
  responses: jax.Array,
  response_mask: jax.Array,
) -> Sequence:
  """Left-padded prompts `[B, P]` followed by responses `[B, T]`."""
  prompt = left_padded(prompts, prompt_lengths)
  steps = jnp.arange(responses.shape[1])
  positions = jnp.where(response_mask, prompt_lengths[:, None] + steps, 0)
  return Sequence(
    jnp.concatenate([prompts, responses], axis=1),
    jnp.concatenate([prompt.positions, positions], axis=1),
    jnp.concatenate([prompt.segments, response_mask.astype("int32")], axis=1),
  )


def init_base(key: jax.Array, config: ModelConfig) -> dict[str, Any]:
  """Random base weights, float32."""
  return _init(key, config, LoraSpec())


def init_adapter(
  key: jax.Array, config: ModelConfig, lora: LoraSpec
) -> dict[str, Any]:
  """The LoRA leaves of a new adapter; its B is zero."""
  leaves = params_lib.flatten(_init(key, config, lora))
  return params_lib.unflatten(
    {p: leaf for p, leaf in leaves.items() if params_lib.is_adapter(p)}
  )


def _init(key, config, lora):
  one = jnp.zeros((1, 1), jnp.int32)
  module = transformer.Transformer(config, lora)
  return module.init(key, one, one, one + 1)["params"]


def init_head(
  config: ModelConfig, *, likelihood: bool = False
) -> dict[str, Any]:
  """A scalar head that says 0 everywhere; see `response_scores`."""
  head = {
    "kernel": jnp.zeros((config.width,), jnp.float32),
    "bias": jnp.zeros((), jnp.float32),
  }
  if likelihood:
    head["likelihood"] = jnp.zeros((2,), jnp.float32)
  return {params_lib.HEAD: head}


def head_kernel(config: ModelConfig, params: Params) -> jax.Array:
  """The matrix `[D, V]` that maps hidden states to logits."""
  if config.tied_head:
    return params["embedding"].T
  return params["lm_head"]


def hidden_states(
  backbone: Backbone,
  params: Params,
  sequence: Sequence,
  *,
  key: jax.Array | None = None,
  contiguous: bool = False,
) -> jax.Array:
  """Final hidden states `[B, T, D]`.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of one role; a scalar head in it is ignored.
    sequence: Tokens, positions, segments.
    key: Turns LoRA dropout on.
    contiguous: What `Transformer.__call__` calls so: true of padded and packed
      rows.
  """
  body = {k: v for k, v in params.items() if k != params_lib.HEAD}
  hidden, _ = backbone.module(body).apply(
    {"params": body},
    *sequence,
    contiguous=contiguous,
    deterministic=key is None,
    rngs=None if key is None else {"dropout": key},
  )
  return hidden


def _head_pieces(config: ModelConfig, tokens: int) -> dict[str, int]:
  """How `token_logprobs` cuts a wide head for so many tokens; else nothing."""
  if config.vocab_size < _WIDE_VOCAB:
    return {}
  # Axes as in `sharding.RULES`, which is beside this room.
  mesh = dict(jax.sharding.get_abstract_mesh().shape)
  tokens //= mesh.get("data", 1) * mesh.get("fsdp", 1)
  columns = min(max(_PIECE_LOGITS // max(tokens, 1), 1024), 8192)
  shards = mesh.get("tensor", 1)
  return {"vocab_chunk": columns * shards, "vocab_shards": shards}


def _token_scores(backbone, params, hidden, targets, temperature, extras):
  return language_model.token_logprobs(
    hidden,
    head_kernel(backbone.config, params).astype(hidden.dtype),
    targets,
    temperature=temperature,
    softcap=backbone.config.final_softcap,
    **_head_pieces(backbone.config, targets.size),
    **extras,
  )


def target_logprobs(
  backbone: Backbone,
  params: Params,
  sequence: Sequence,
  target_mask: jax.Array,
  *,
  max_targets: int,
  key: jax.Array | None = None,
) -> tuple[language_model.TokenScores, jax.Array]:
  """Scores of the target tokens, each given those before it.

  Most tokens of a dialogue are no targets, and the head is a large part of a
  small model: it is run on the targets alone.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the policy.
    sequence: Tokens, positions, segments.
    target_mask: Which tokens are targets, `[B, T]`, bool; false in column 0.
    max_targets: `C`, at least the number of targets of any row.
    key: Turns LoRA dropout on.

  Returns:
    Scores `[B, C]` of each row's targets in order, and a mask `[B, C]` that is
    false where the row has fewer.
  """
  hidden = hidden_states(backbone, params, sequence, key=key, contiguous=True)
  return _gathered_targets(
    backbone,
    params,
    hidden,
    sequence.tokens,
    target_mask,
    max_targets=max_targets,
    correct=True,
  )


def _gathered_targets(
  backbone, params, hidden, tokens, target_mask, *, max_targets, **extras
):
  columns = jnp.argsort(~target_mask, axis=1, stable=True)[:, :max_targets]
  found = jnp.take_along_axis(target_mask, columns, axis=1)
  targets = jnp.take_along_axis(tokens, columns, axis=1)
  before = jnp.take_along_axis(
    hidden, jnp.maximum(columns - 1, 0)[..., None], axis=1
  )
  scores = _token_scores(backbone, params, before, targets, 1.0, extras)
  return scores, found


def _before_response(hidden, response_len):
  """Hidden states that the response was produced from, `[B, T, D]`."""
  prompt_len = hidden.shape[1] - response_len
  return hidden[:, prompt_len - 1 : -1]


def response_logprobs(
  backbone: Backbone,
  params: Params,
  sequence: Sequence,
  *,
  response_len: int,
  temperature: float,
  entropy: bool = False,
) -> language_model.TokenScores:
  """Scores `[B, T]` of the last `response_len` columns of a sequence.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the policy or the anchor.
    sequence: From `with_response`.
    response_len: `T`.
    temperature: Divides the logits, as it did when the response was sampled.
    entropy: Fills in the entropy of each distribution.
  """
  hidden = hidden_states(backbone, params, sequence, contiguous=True)
  return _token_scores(
    backbone,
    params,
    _before_response(hidden, response_len),
    sequence.tokens[:, -response_len:],
    temperature,
    {"entropy": entropy},
  )


def response_values(
  backbone: Backbone, params: Params, sequence: Sequence, *, response_len: int
) -> jax.Array:
  """V(s_t), `[B, T]` float32: the value of the state before each action."""
  hidden = hidden_states(backbone, params, sequence, contiguous=True)
  return _scalar_head(params, _before_response(hidden, response_len))


def response_scores(
  backbone: Backbone,
  params: Params,
  sequence: Sequence,
  response_mask: jax.Array,
  *,
  max_response: int,
  key: jax.Array | None = None,
) -> jax.Array:
  """The reward model's score of each response, `[B]` float32.

  r = h_last . w + b                            (scalar head)
  r = h_last . w + b + sqrt(D) phi . v          (likelihood head)

  h_last is the hidden state at the last real token. The second form, in
  use if the head has a leaf "likelihood" (v), lets the score see how likely the
  reward model itself, adapter included, finds the response (phi, see
  `likelihood_features`): what a language model knows about a response before
  any label is in the probabilities of its tokens, and only partly in the state
  after the last. sqrt(D) is the norm of a hidden state, so that v moves as w.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the reward model, head included.
    sequence: Tokens, positions, segments.
    response_mask: Which tokens are the response, `[B, T]`, bool.
    max_response: At least the number of response tokens of any row.
    key: Turns LoRA dropout on (training only).
  """
  hidden = hidden_states(backbone, params, sequence, key=key, contiguous=True)
  rows, columns = jnp.arange(hidden.shape[0]), jnp.arange(hidden.shape[1])
  last = jnp.max(jnp.where(sequence.segments > 0, columns, 0), axis=1)
  scores = _scalar_head(params, hidden[rows, last])
  weights = params[params_lib.HEAD].get("likelihood")
  if weights is None:
    return scores
  found, mask = _gathered_targets(
    backbone,
    params,
    hidden,
    sequence.tokens,
    response_mask & (columns > 0),
    max_targets=max_response,
  )
  phi = language_model.likelihood_features(found.logprobs, mask)
  return scores + jnp.sqrt(hidden.shape[-1]) * jnp.dot(phi, weights)


def _scalar_head(params, hidden):
  return heads.ScalarHead().apply({"params": params[params_lib.HEAD]}, hidden)

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
from perl_jax.objectives import kl as kl_lib
from perl_jax.objectives import language_model

Params = params_lib.Params


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


def left_padded(
  tokens: jax.Array, lengths: jax.Array, *, segment: int = 1
) -> Sequence:
  """Sequences that end in the last column; what is real gets the segment."""
  start = tokens.shape[1] - lengths[:, None]
  positions = jnp.arange(tokens.shape[1]) - start
  inside = positions >= 0
  segments = segment * inside.astype("int32")
  return Sequence(tokens, jnp.where(inside, positions, 0), segments)


def with_response(
  prompts: jax.Array,
  prompt_lengths: jax.Array,
  responses: jax.Array,
  response_mask: jax.Array,
  *,
  group: int = 1,
) -> Sequence:
  """Left-padded prompts `[B, P]`, each followed by its responses.

  With `group` G above 1, sample g of prompt b is row b G + g of responses
  `[B * G, T]`; rows of the sequence are P + G T long. All responses see the
  prompt, and none sees another.

  Raises:
    ValueError: The responses are not `group` for each prompt.
  """
  batch, length = prompts.shape[0], responses.shape[-1]
  if responses.size != batch * group * length:
    raise ValueError(
      f"responses {responses.shape} are not group={group} for each of {batch}"
      f" prompts; give {batch * group} rows or another group."
    )
  segment = 1 if group == 1 else transformer.SHARED
  prompt = left_padded(prompts, prompt_lengths, segment=segment)
  mask = response_mask.reshape(batch, group, length)
  positions = prompt_lengths[:, None, None] + jnp.arange(length)
  segments = mask * jnp.arange(1, group + 1, dtype=jnp.int32)[:, None]

  def join(prompt, response):
    return jnp.concatenate([prompt, response.reshape(batch, -1)], axis=1)

  return Sequence(
    join(prompts, responses),
    join(prompt.positions, jnp.where(mask, positions, 0)),
    join(prompt.segments, segments),
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


def _token_scores(backbone, params, hidden, targets, temperature, extras):
  return language_model.token_logprobs(
    hidden,
    head_kernel(backbone.config, params).astype(hidden.dtype),
    targets,
    temperature=temperature,
    softcap=backbone.config.final_softcap,
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


def _ungroup(array, response_len, group):
  """The prompt's last column, then a response's own, `[B * G, 1 + T, ...]`."""
  start = array.shape[1] - group * response_len
  if group == 1:
    return array[:, start - 1 :]
  last = jnp.repeat(array[:, start - 1 : start], group, axis=0)
  own = array[:, start:].reshape(-1, response_len, *array.shape[2:])
  return jnp.concatenate([last, own], axis=1)


def response_logprobs(
  backbone: Backbone,
  params: Params,
  sequence: Sequence,
  *,
  response_len: int,
  temperature: float,
  entropy: bool = False,
  group: int = 1,
  hidden: jax.Array | None = None,
) -> language_model.TokenScores:
  """Scores `[B * G, T]` of the responses that a sequence ends with.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the policy or the anchor.
    sequence: From `with_response`.
    response_len: `T`.
    temperature: Divides the logits, as it did when the response was sampled.
    entropy: Fills in the entropy of each distribution.
    group: `G`, as `with_response` had it.
    hidden: From `hidden_states`, if they are there already.
  """
  if hidden is None:
    hidden = hidden_states(backbone, params, sequence, contiguous=group == 1)
  return _token_scores(
    backbone,
    params,
    _ungroup(hidden, response_len, group)[:, :-1],
    _ungroup(sequence.tokens, response_len, group)[:, 1:],
    temperature,
    {"entropy": entropy},
  )


def response_kl(
  backbone: Backbone,
  policy: Params,
  anchor: Params,
  sequence: Sequence,
  *,
  response_len: int,
  temperature: float,
  group: int = 1,
) -> jax.Array:
  """KL(policy || anchor) of each next-token distribution, `[B * G, T]` float32.

  Exact, over the vocabulary; see `objectives.kl.exact_kl`. No gradient flows to
  the anchor. Arguments as those of `response_logprobs`.
  """

  def before(params):
    hidden = hidden_states(backbone, params, sequence, contiguous=group == 1)
    hidden = _ungroup(hidden, response_len, group)[:, :-1]
    return hidden, head_kernel(backbone.config, params).astype(hidden.dtype)

  policy_hidden, policy_head = before(policy)
  anchor_hidden, anchor_head = jax.lax.stop_gradient(before(anchor))
  return kl_lib.exact_kl(
    policy_hidden=policy_hidden,
    policy_head=policy_head,
    anchor_hidden=anchor_hidden,
    anchor_head=anchor_head,
    temperature=temperature,
    softcap=backbone.config.final_softcap,
  )


def response_values(
  backbone: Backbone,
  params: Params,
  sequence: Sequence,
  *,
  response_len: int,
  group: int = 1,
  hidden: jax.Array | None = None,
) -> jax.Array:
  """V(s_t), `[B * G, T]` float32: the value of the state before each action.

  `hidden` is from `hidden_states`, if they are there already.
  """
  if hidden is None:
    hidden = hidden_states(backbone, params, sequence, contiguous=group == 1)
  before = _ungroup(hidden, response_len, group)[:, :-1]
  return _scalar_head(params, before)


def response_scores(
  backbone: Backbone,
  params: Params,
  sequence: Sequence,
  response_mask: jax.Array,
  *,
  max_response: int,
  group: int = 1,
  hidden: jax.Array | None = None,
  key: jax.Array | None = None,
) -> jax.Array:
  """The reward model's score of each response, `[B * G]` float32.

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
    max_response: At least the number of response tokens of any row; with a
      group, the `T` of `with_response`.
    group: `G`, as `with_response` had it.
    hidden: From `hidden_states`, if they are there already.
    key: Turns LoRA dropout on (training only).
  """
  if hidden is None:
    hidden = hidden_states(
      backbone, params, sequence, key=key, contiguous=group == 1
    )
  if group > 1:
    sequence, hidden, response_mask = jax.tree.map(
      lambda array: _ungroup(array, max_response, group),
      (sequence, hidden, response_mask),
    )
  rows, columns = jnp.arange(hidden.shape[0]), jnp.arange(hidden.shape[1])
  last = jnp.max(jnp.where(sequence.segments != 0, columns, 0), axis=1)
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

"""Outputs of the roles for given tokens: log-probs, values and scores."""

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import sharding
from perl_jax.models import heads
from perl_jax.models.config import ModelConfig
from perl_jax.objectives import kl as kl_lib
from perl_jax.objectives import language_model
from perl_jax.roles.backbone import Backbone, Params, head_kernel, hidden_states
from perl_jax.roles.sequences import Sequence, ungroup

# A vocabulary of this size is scored in pieces: on a mesh the whole head would
# otherwise be gathered. And the most logits that a device holds at once.
_WIDE_VOCAB, _PIECE_LOGITS = 65_536, 2**24


def head_pieces(config: ModelConfig, tokens: int) -> dict[str, int]:
  """Arguments of `token_logprobs` that cut a wide head into pieces.

  Args:
    config: Shapes and switches of the transformer.
    tokens: Number of tokens that are scored at once.

  Returns:
    {"vocab_chunk", "vocab_shards"}; empty for a small vocabulary.
  """
  if config.vocab_size < _WIDE_VOCAB:
    return {}
  tokens //= sharding.shards(sharding.BATCH_AXES)
  columns = min(max(_PIECE_LOGITS // max(tokens, 1), 1024), 8192)
  shards = sharding.shards(sharding.TRAIN.widths)
  return {"vocab_chunk": columns * shards, "vocab_shards": shards}


def _token_scores(backbone, params, hidden, targets, temperature, extras):
  return language_model.token_logprobs(
    hidden,
    head_kernel(backbone.config, params),
    targets,
    temperature=temperature,
    softcap=backbone.config.final_softcap,
    **head_pieces(backbone.config, targets.size),
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
  """Scores of the target tokens, each given the tokens before it.

  Most tokens of a dialogue are not targets, and the head is a large part of a
  small model: only the targets go through it.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the policy.
    sequence: Tokens, positions and segments.
    target_mask: Which tokens are targets, `[B, T]`, bool; False in column 0.
    max_targets: `C`, at least the number of targets of any row.
    key: Random key that turns LoRA dropout on.

  Returns:
    Scores `[B, C]` of each row's targets in order, and a mask `[B, C]` that is
    False where the row has fewer.
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
  before = jnp.maximum(columns - 1, 0)
  scores = logprobs_at(
    backbone, params, hidden, tokens, columns, before, **extras
  )
  return scores, found


def logprobs_at(
  backbone: Backbone,
  params: Params,
  hidden: jax.Array,
  tokens: jax.Array,
  columns: jax.Array,
  before: jax.Array,
  **extras: bool,
) -> language_model.TokenScores:
  """Scores `[B, C]` of the tokens in some columns of rows.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the policy.
    hidden: Hidden states of the rows, `[B, T, D]`.
    tokens: Their tokens, `[B, T]`, int32.
    columns: Columns of the tokens to score, `[B, C]`, int32.
    before: Column of the token before each of them, `[B, C]`, int32.
    **extras: Switches of `objectives.language_model.token_logprobs`.
  """
  targets = jnp.take_along_axis(tokens, columns, axis=1)
  states = jnp.take_along_axis(hidden, before[..., None], axis=1)
  return _token_scores(backbone, params, states, targets, 1.0, extras)


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
  """Scores `[B * G, T]` of the response tokens of a sequence.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the policy or the anchor.
    sequence: From `with_response`.
    response_len: `T`.
    temperature: Divides the logits, as when the response was sampled.
    entropy: Whether to compute the entropy of each distribution.
    group: `G`, as given to `with_response`.
    hidden: From `hidden_states`; None computes them.
  """
  if hidden is None:
    hidden = hidden_states(backbone, params, sequence, contiguous=group == 1)
  return _token_scores(
    backbone,
    params,
    ungroup(hidden, response_len, group)[:, :-1],
    ungroup(sequence.tokens, response_len, group)[:, 1:],
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

  It is exact, summed over the vocabulary in nats; see `objectives.kl.exact_kl`.
  No gradient flows to the anchor.

  Args:
    backbone: Model and adapter shape.
    policy: Parameters of the policy.
    anchor: Parameters of the anchor.
    sequence: From `with_response`.
    response_len: `T`.
    temperature: Divides the logits of both.
    group: `G`, as given to `with_response`.
  """

  def before(params):
    hidden = hidden_states(backbone, params, sequence, contiguous=group == 1)
    hidden = ungroup(hidden, response_len, group)[:, :-1]
    return hidden, head_kernel(backbone.config, params)

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
  """V(s_t), `[B * G, T]` float32: the value of the state before each token.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the value model, head included.
    sequence: From `with_response`.
    response_len: `T`.
    group: `G`, as given to `with_response`.
    hidden: From `hidden_states`; None computes them.
  """
  if hidden is None:
    hidden = hidden_states(backbone, params, sequence, contiguous=group == 1)
  before = ungroup(hidden, response_len, group)[:, :-1]
  return scalar_head(params, before)


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

  h_last is the hidden state at the last token of the response. The second form
  is used if the head has a leaf "likelihood" (v). phi are the probabilities of
  the response under the reward model itself, adapter included; see
  `likelihood_features`. A pretrained model's knowledge of a response is in the
  probabilities of its tokens, and only partly in the state after the last one.
  sqrt(D) is the norm of a hidden state, so that v learns as fast as w.

  Args:
    backbone: Model and adapter shape.
    params: Parameters of the reward model, head included.
    sequence: Tokens, positions and segments.
    response_mask: Which tokens are the response, `[B, T]`, bool.
    max_response: At least the number of response tokens of any row; with a
      group, the `T` of `with_response`.
    group: `G`, as given to `with_response`.
    hidden: From `hidden_states`; None computes them.
    key: Random key that turns LoRA dropout on.
  """
  if hidden is None:
    hidden = hidden_states(
      backbone, params, sequence, key=key, contiguous=group == 1
    )
  if group > 1:
    sequence, hidden, response_mask = jax.tree.map(
      lambda array: ungroup(array, max_response, group),
      (sequence, hidden, response_mask),
    )
  rows, columns = jnp.arange(hidden.shape[0]), jnp.arange(hidden.shape[1])
  last = jnp.max(jnp.where(sequence.segments != 0, columns, 0), axis=1)
  scores = scalar_head(params, hidden[rows, last])
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


def scalar_head(params: Params, hidden: jax.Array) -> jax.Array:
  """h . w + b, `[...]` float32, of hidden states `[..., D]`."""
  return heads.ScalarHead().apply({"params": params[params_lib.HEAD]}, hidden)

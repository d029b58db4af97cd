"""Sampling responses: one prefill, then cached decoding with early stop.

The distribution that is sampled is softmax(logits / temperature), cut by
top-k and top-p where asked. A response ends with its first stop token, which
is an action like any other; nothing that was sampled is overwritten.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.models import transformer
from perl_jax.objectives import language_model


@dataclasses.dataclass(frozen=True)
class SamplingSpec:
  """How responses are drawn.

  Attributes:
    response_len: `T`, the most tokens a response can have.
    stop_ids: Tokens that end a response.
    pad_id: What fills a response behind its end; never read.
    temperature: Divides the logits; above 0.
    top_k: Keeps the k most likely tokens; 0 keeps all.
    top_p: Keeps the smallest set of most likely tokens whose probability
      reaches p; 1 keeps all.
    greedy: Takes the most likely token instead of sampling.
  """

  response_len: int
  stop_ids: tuple[int, ...]
  pad_id: int = 0
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  greedy: bool = False

  def __post_init__(self):
    if not self.greedy and not self.temperature > 0:
      raise ValueError(
        f"temperature={self.temperature} must be above 0; use greedy=True"
        " for the most likely token."
      )
    if not 0 < self.top_p <= 1 or self.top_k < 0:
      raise ValueError(
        f"top_p={self.top_p} must be in (0, 1] and top_k={self.top_k} at"
        " least 0."
      )
    if self.response_len < 1:
      raise ValueError(f"response_len={self.response_len} must be at least 1.")


class Samples(NamedTuple):
  """Responses to a batch of prompts.

  Attributes:
    tokens: `[B, T]`, int32; `pad_id` behind the end.
    mask: True up to and including the stop token, `[B, T]`, bool.
    stopped: Whether a stop token was drawn, `[B]`, bool.
  """

  tokens: jax.Array
  mask: jax.Array
  stopped: jax.Array


def filter_logits(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """Sets logits outside the top k and outside the nucleus p to -inf.

  Args:
    logits: `[..., V]`, float32.
    top_k: Keep this many; 0 keeps all. Ties with the k-th are kept.
    top_p: A token is kept if the tokens more likely than it have less than
      this probability together, so that the most likely one always stays.

  Reference: Holtzman et al. 2019, arXiv:1904.09751.
  """
  if top_k:
    top_k = min(top_k, logits.shape[-1])
    threshold = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < threshold, -jnp.inf, logits)
  if top_p < 1.0:
    ordered = -jnp.sort(-logits, axis=-1)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    kept = jnp.where(before < top_p, ordered, jnp.inf)
    threshold = jnp.min(kept, axis=-1, keepdims=True)
    logits = jnp.where(logits < threshold, -jnp.inf, logits)
  return logits


def next_token_logits(
  backbone: roles.Backbone, params: params_lib.Params, hidden: jax.Array
) -> jax.Array:
  """Logits `[B, V]` float32 of the token that follows hidden `[B, D]`."""
  return language_model.head_logits(
    hidden,
    roles.head_kernel(backbone.config, params).astype(hidden.dtype),
    softcap=backbone.config.final_softcap,
  )


def make_sampler(
  backbone: roles.Backbone, spec: SamplingSpec
) -> Callable[..., Samples]:
  """Returns `sample(params, prompts, lengths, row_ids, key) -> Samples`.

  `prompts` `[B, P]` are left-padded, `lengths` `[B]`. Each row draws from
  `fold_in(key, row_id)`, so that a response depends on its row id and on
  nothing else in the batch. Parameters are an argument, not a constant: a
  changed adapter changes the samples without a new trace.
  """

  def draw(logits, row_keys, step):
    if spec.greedy:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = filter_logits(logits / spec.temperature, spec.top_k, spec.top_p)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, step)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)

  def sample(params, prompts, lengths, row_ids, key):
    body = {k: v for k, v in params.items() if k != params_lib.HEAD}
    module = backbone.module(body)
    batch, prompt_len = prompts.shape
    stop_ids = jnp.asarray(spec.stop_ids, jnp.int32)
    row_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_ids)

    def forward(sequence, cache):
      hidden, cache = module.apply({"params": body}, *sequence, cache=cache)
      return next_token_logits(backbone, body, hidden[:, -1]), cache

    cache = transformer.init_cache(
      backbone.config, batch, prompt_len + spec.response_len
    )
    logits, cache = forward(roles.left_padded(prompts, lengths), cache)
    tokens = jnp.full((batch, spec.response_len), spec.pad_id, jnp.int32)
    mask = jnp.zeros((batch, spec.response_len), bool)

    def unfinished(state):
      step, *_, done = state
      return (step < spec.response_len) & ~jnp.all(done)

    def decode(state):
      step, cache, logits, tokens, mask, done = state
      token = jnp.where(done, spec.pad_id, draw(logits, row_keys, step))
      tokens = tokens.at[:, step].set(token)
      mask = mask.at[:, step].set(~done)
      sequence = roles.Sequence(
        token[:, None],
        (lengths + step)[:, None],
        (~done).astype(jnp.int32)[:, None],
      )
      done |= jnp.isin(token, stop_ids) & ~done
      logits, cache = forward(sequence, cache)
      return step + 1, cache, logits, tokens, mask, done

    state = (0, cache, logits, tokens, mask, jnp.zeros((batch,), bool))
    *_, tokens, mask, done = jax.lax.while_loop(unfinished, decode, state)
    return Samples(tokens, mask, done)

  return sample

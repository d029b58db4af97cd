"""Samplers: the random key of each sample, and decoding all samples at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.sampling import continuous_batching, draw


def make_sampler(
  backbone: roles.Backbone, spec: draw.SamplingSpec
) -> Callable[..., draw.Samples]:
  """Returns a function that samples responses.

  The function is `sample(params, prompts, lengths, row_ids, key) -> Samples`:

    params: Parameters of the policy; a scalar head in the tree is ignored. They
      are an argument so that a changed adapter needs no new trace.
    prompts: Left-padded prompts, `[B, P]`, int32.
    lengths: Tokens of each prompt, `[B]`, int32.
    row_ids: Identity of each prompt, `[B]`, int32.
    key: Random key. A row samples with `fold_in(key, row_id)`, and sample g of
      a group with `fold_in(fold_in(key, row_id), g)`, so that a response
      depends on its row id and its place in the group, and on nothing else in
      the batch.

  Args:
    backbone: Model and adapter shape.
    spec: How to sample.
  """

  def sample(params, prompts, lengths, row_ids, key):
    body = {k: v for k, v in params.items() if k != params_lib.HEAD}
    if spec.merge and params_lib.has_adapters(body):
      adapters, base = params_lib.partition(body, "lora")
      body = params_lib.merge(base, adapters, backbone.lora)
      body = sharding.reshard(body, sharding.TRAIN)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_ids)
    if spec.group > 1:
      members = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
      members = jax.vmap(members, in_axes=(0, None))
      keys = members(keys, jnp.arange(spec.group)).reshape(-1)
    decode = _decode_at_once
    if 0 < spec.slots < keys.shape[0]:
      decode = continuous_batching.decode_continuously
    return decode(draw.Policy(backbone, spec, body), prompts, lengths, keys)

  return sample


def _decode_at_once(
  policy: draw.Policy, prompts, lengths, keys
) -> draw.Samples:
  """Decodes all samples in one batch.

  The G samples of a prompt share a row of the cache, which grows by G tokens a
  step.
  """
  spec, batch = policy.spec, prompts.shape[0]
  group, time = spec.group, spec.response_len
  rows = keys.shape[0]
  segment, members = roles.segments_of(group)
  prompt = roles.left_padded(prompts, lengths, segment=segment)
  hidden, cache = policy.prefill(prompt)
  cache = cache.grown(group * time)
  policy = policy.to_decode().with_layers_split()
  if policy.split:
    cache = cache.split()
  if group > 1:
    hidden = jnp.repeat(hidden, group, axis=0)

  def unfinished(state):
    samples, _ = state
    read = samples.steps - 1
    return (read < time - 1) & ~jnp.all(samples.stopped)

  def draw_next(samples, hidden):
    """Adds the token that follows hidden states `[B * G, D]`."""
    tokens, mask, done, logprobs, step = samples
    steps = jnp.broadcast_to(step, rows)
    drawn, logprob = policy.draw(policy.logits(hidden), keys, steps)
    return draw.Samples(
      tokens.at[:, step].set(jnp.where(done, spec.pad_id, drawn)),
      mask.at[:, step].set(~done),
      done | policy.stops(drawn),
      logprobs.at[:, step].set(jnp.where(done, 0.0, logprob)),
      step + 1,
    )

  def decode(state):
    samples, cache = state
    at = samples.steps - 1
    sequence = roles.Sequence(
      samples.tokens[:, at].reshape(batch, group),
      jnp.broadcast_to((lengths + at)[:, None], (batch, group)),
      samples.mask[:, at].reshape(batch, group) * members,
    )
    hidden, cache = policy.forward(sequence, cache, last=group)
    return draw_next(samples, hidden), cache

  # The model reads no token that is the last of all responses.
  state = (draw_next(draw.no_samples(spec, rows), hidden), cache)
  return jax.lax.while_loop(unfinished, decode, state)[0]

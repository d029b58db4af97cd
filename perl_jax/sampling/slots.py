"""Decoding in slots: a waiting sample takes the place of a finished one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import roles, sharding
from perl_jax.models import transformer
from perl_jax.sampling.draw import Policy, Samples, no_samples


class Slots(NamedTuple):
  """What `decode_in_turn` is at, S samples of N; all but `cache` by slot.

  Attributes:
    cache: `S` rows of P + T columns: a prompt, then the ring of the steps.
    logits: Of the next token, `[S, V]`.
    sample: Which sample runs in the slot, `[S]`; N if the slot is free.
    drawn: How many tokens it has, `[S]`.
    admitted: Prompts that had their turn to begin, scalar.
  """

  cache: transformer.Cache
  logits: jax.Array
  sample: jax.Array
  drawn: jax.Array
  admitted: jax.Array


def decode_in_turn(
  policy: Policy, prompts: jax.Array, lengths: jax.Array, keys: jax.Array
) -> Samples:
  """`spec.slots` samples at once; who has finished makes room for the next.

  All slots write to the same column of the cache, P + (step mod T): masks are
  made of positions and segments, so it does not matter in which column a token
  lies. A sample has at most T tokens and never meets its own; what the slot's
  last sample left has segment 0 since the new prompt came.

  The two loops are nested: a `lax.cond` within one would have to choose
  between two caches, and XLA may copy them.

  On a mesh a refill whose prompts divide over its rows is prefilled in the
  layout of training, so that both layouts are kept throughout. Fewer prompts
  would be computed by all devices alike: they are prefilled as they decode.
  """
  spec, batch, total = policy.spec, prompts.shape[0], keys.shape[0]
  prefiller, policy = policy, policy.to_decode()
  if spec.refill_size // spec.group % sharding.shards(sharding.BATCH_AXES):
    prefiller = policy
  time = spec.response_len

  def wait(slots):
    """Whether there is nobody to admit, or too little room yet."""
    free = jnp.sum(slots.sample == total)
    waiting = spec.group * (batch - slots.admitted)
    return (waiting == 0) | (free < jnp.minimum(spec.refill_size, waiting))

  def running(state):
    slots, _ = state
    return jnp.any(slots.sample < total) & wait(slots)

  def decode(state):
    slots, samples = state
    here, at = slots.sample, slots.drawn
    active, index = here < total, jnp.minimum(here, total - 1)
    token, logprob = policy.draw(slots.logits, keys[index], at)
    token = jnp.where(active, token, spec.pad_id)
    stops = policy.stops(token)
    sequence = roles.Sequence(
      token[:, None],
      (lengths[index // spec.group] + at)[:, None],
      active.astype(jnp.int32)[:, None],
    )
    column = prompts.shape[1] + samples.steps % time
    cache = slots.cache._replace(length=column)
    hidden, cache = policy.forward(sequence, cache)
    ended = stops | (at + 1 >= time)
    # Sample N is nobody's: what a free slot writes is dropped.
    samples = Samples(
      samples.tokens.at[here, at].set(token, mode="drop"),
      samples.mask.at[here, at].set(True, mode="drop"),
      samples.stopped.at[here].set(stops, mode="drop"),
      samples.logprobs.at[here, at].set(logprob, mode="drop"),
      samples.steps + 1,
    )
    here = jnp.where(ended, total, here)
    logits = policy.logits(hidden)
    return Slots(cache, logits, here, at + 1, slots.admitted), samples

  def turn(state):
    slots, samples = state
    slots = _admit(prefiller, policy, prompts, lengths, slots)
    return jax.lax.while_loop(running, decode, (slots, samples))

  def anybody_waits(state):
    return state[0].admitted < batch

  samples = no_samples(spec, total)
  state = (_free_slots(policy, prompts, total), samples)
  return jax.lax.while_loop(anybody_waits, turn, state)[1]


def _free_slots(policy, prompts, total) -> Slots:
  config, spec = policy.backbone.config, policy.spec
  columns = prompts.shape[1] + spec.response_len
  return Slots(
    cache=transformer.init_cache(config, spec.slots, columns),
    logits=sharding.constrain(
      jnp.zeros((spec.slots, config.vocab_size), jnp.float32), *policy.layout
    ),
    sample=jnp.full((spec.slots,), total, jnp.int32),
    drawn=jnp.zeros((spec.slots,), jnp.int32),
    admitted=jnp.zeros((), jnp.int32),
  )


def _admit(prefiller, policy, prompts, lengths, slots: Slots) -> Slots:
  """Prefills the next prompts, once each, into a free slot for each sample."""
  spec, (batch, prompt_len) = policy.spec, prompts.shape
  group, total = spec.group, spec.group * batch
  count = spec.refill_size // group
  # Behind the last prompt come stand-ins, whose slot does not exist.
  rows = slots.admitted + jnp.arange(count)
  index = jnp.minimum(rows, batch - 1)
  prompt = roles.left_padded(prompts[index], lengths[index])
  cache = transformer.init_cache(policy.backbone.config, count, prompt_len)
  hidden, new = prefiller.forward(prompt, cache)

  sample = (group * rows[:, None] + jnp.arange(group)).reshape(-1)
  free_first = jnp.argsort(slots.sample < total, stable=True)
  into = jnp.where(sample < total, free_first[: spec.refill_size], spec.slots)
  old, ring = slots.cache, ((0, 0), (0, spec.response_len))

  def put(array, rows):
    return array.at[into].set(jnp.repeat(rows, group, axis=0), mode="drop")

  def put_layers(array, rows):
    rows = jnp.repeat(rows, group, axis=1)
    return array.at[:, into, :prompt_len].set(rows, mode="drop")

  cache = old._replace(
    keys=put_layers(old.keys, new.keys),
    values=put_layers(old.values, new.values),
    positions=put(old.positions, jnp.pad(new.positions, ring)),
    segments=put(old.segments, jnp.pad(new.segments, ring)),
  )
  return Slots(
    cache=cache,
    logits=put(slots.logits, policy.logits(hidden)),
    sample=slots.sample.at[into].set(sample, mode="drop"),
    drawn=slots.drawn.at[into].set(0, mode="drop"),
    admitted=jnp.minimum(slots.admitted + count, batch),
  )

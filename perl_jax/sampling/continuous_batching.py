"""Continuous batching: a waiting sample starts where another has finished.

The batch has a fixed number of slots. A slot whose sample has ended is given to
the next sample that waits, while the other slots go on decoding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perl_jax import roles, sharding
from perl_jax.models import kv_cache
from perl_jax.sampling.draw import Policy, Samples, no_samples


class SlotState(NamedTuple):
  """State of the S slots while N samples are decoded.

  Attributes:
    cache: Key/value cache of S rows and P + T columns: a prompt, then a ring
      buffer that holds the tokens of the last T steps.
    logits: Logits of each slot's next token, `[S, V]`, float32.
    sample: Index of the sample that runs in each slot, `[S]`, int32; N where
      the slot is free.
    drawn: Number of tokens that this sample has, `[S]`, int32.
    admitted: Number of prompts that were prefilled so far, int32 scalar.
  """

  cache: kv_cache.Cache
  logits: jax.Array
  sample: jax.Array
  drawn: jax.Array
  admitted: jax.Array


def decode_continuously(
  policy: Policy, prompts: jax.Array, lengths: jax.Array, keys: jax.Array
) -> Samples:
  """Decodes N samples, at most `spec.slots` at a time.

  Each outer iteration prefills the next `spec.refill_size` samples into free
  slots; each inner one decodes a token in every slot, until enough slots are
  free for the next refill. The loops are nested because a `lax.cond` in a
  single loop would have to choose between two caches, which XLA may copy.

  All slots write to the same column of the cache, P + (step mod T). Masks are
  made of positions and segments, so that a token may lie in any column. A
  sample has at most T tokens and so never overwrites its own; what the slot's
  previous sample left has segment 0 from the prefill of the new prompt on.

  On a mesh a refill whose prompts divide over the batch axes is prefilled in
  the layout of training; both layouts of the parameters are then kept
  throughout. Fewer prompts would be computed by all devices alike, so they are
  prefilled in the layout of decoding.

  Args:
    policy: Model and `SamplingSpec`.
    prompts: Left-padded prompts, `[B, P]`, int32.
    lengths: Tokens of each prompt, `[B]`, int32.
    keys: Random key of each sample, `[N]`, N = B * G for groups of G.

  Returns:
    `Samples` of N rows. `steps` counts the tokens that each slot decoded.

  Reference: Yu et al. 2022, "Orca: A Distributed Serving System for
  Transformer-Based Generative Models", OSDI (iteration-level scheduling).
  """
  spec, batch, total = policy.spec, prompts.shape[0], keys.shape[0]
  prefiller, policy = policy, policy.to_decode()
  if spec.refill_size // spec.group % sharding.shards(sharding.BATCH_AXES):
    prefiller = policy
  policy = policy.with_layers_split()

  def nothing_to_refill(slots):
    """Whether no prompt waits, or too few slots are free to refill them."""
    free = jnp.sum(slots.sample == total)
    waiting = spec.group * (batch - slots.admitted)
    return (waiting == 0) | (free < jnp.minimum(spec.refill_size, waiting))

  def keep_decoding(state):
    slots, _ = state
    return jnp.any(slots.sample < total) & nothing_to_refill(slots)

  def decode(state):
    return _decode(policy, prompts.shape[1], lengths, keys, *state)

  def refill_and_decode(state):
    slots, samples = state
    slots = _refill(prefiller, policy, prompts, lengths, slots)
    return jax.lax.while_loop(keep_decoding, decode, (slots, samples))

  def prompts_wait(state):
    return state[0].admitted < batch

  samples = no_samples(spec, total)
  state = (_free_slots(policy, prompts, total), samples)
  return jax.lax.while_loop(prompts_wait, refill_and_decode, state)[1]


def _free_slots(policy, prompts, total) -> SlotState:
  spec, vocab = policy.spec, policy.backbone.config.vocab_size
  return SlotState(
    cache=policy.cache(spec.slots, prompts.shape[1] + spec.response_len),
    logits=sharding.constrain(
      jnp.zeros((spec.slots, vocab), jnp.float32), *policy.layout
    ),
    sample=jnp.full((spec.slots,), total, jnp.int32),
    drawn=jnp.zeros((spec.slots,), jnp.int32),
    admitted=jnp.zeros((), jnp.int32),
  )


def _decode(
  policy, prompt_len, lengths, keys, slots: SlotState, samples: Samples
) -> tuple[SlotState, Samples]:
  """Decodes one token in every slot that is not free."""
  spec, total = policy.spec, keys.shape[0]
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
  column = prompt_len + samples.steps % spec.response_len
  cache = slots.cache._replace(length=column)
  hidden, cache = policy.forward(sequence, cache)
  ended = stops | (at + 1 >= spec.response_len)
  # There is no row N: what a free slot writes is dropped.
  samples = Samples(
    samples.tokens.at[here, at].set(token, mode="drop"),
    samples.mask.at[here, at].set(True, mode="drop"),
    samples.stopped.at[here].set(stops, mode="drop"),
    samples.logprobs.at[here, at].set(logprob, mode="drop"),
    samples.steps + 1,
  )
  here = jnp.where(ended, total, here)
  logits = policy.logits(hidden)
  return SlotState(cache, logits, here, at + 1, slots.admitted), samples


def _refill(prefiller, policy, prompts, lengths, slots: SlotState) -> SlotState:
  """Prefills the next prompts, once each, and gives each sample a free slot."""
  spec, (batch, prompt_len) = policy.spec, prompts.shape
  group, total = spec.group, spec.group * batch
  count = spec.refill_size // group
  # Rows after the last prompt repeat it, and are written to no slot.
  rows = slots.admitted + jnp.arange(count)
  index = jnp.minimum(rows, batch - 1)
  prompt = roles.left_padded(prompts[index], lengths[index])
  hidden, new = prefiller.prefill(prompt)
  if policy.split:
    new = new.split()

  sample = (group * rows[:, None] + jnp.arange(group)).reshape(-1)
  free_first = jnp.argsort(slots.sample < total, stable=True)
  into = jnp.where(sample < total, free_first[: spec.refill_size], spec.slots)
  old, ring = slots.cache, ((0, 0), (0, spec.response_len))

  def put(array, rows):
    return array.at[into].set(jnp.repeat(rows, group, axis=0), mode="drop")

  def put_layers(array, rows):
    rows = jnp.repeat(rows, group, axis=1)
    return array.at[:, into, :, :prompt_len].set(rows, mode="drop")

  cache = old._replace(
    keys=jax.tree.map(put_layers, old.keys, new.keys),
    values=jax.tree.map(put_layers, old.values, new.values),
    positions=put(old.positions, jnp.pad(new.positions, ring)),
    segments=put(old.segments, jnp.pad(new.segments, ring)),
  )
  return SlotState(
    cache=cache,
    logits=put(slots.logits, policy.logits(hidden)),
    sample=slots.sample.at[into].set(sample, mode="drop"),
    drawn=slots.drawn.at[into].set(0, mode="drop"),
    admitted=jnp.minimum(slots.admitted + count, batch),
  )

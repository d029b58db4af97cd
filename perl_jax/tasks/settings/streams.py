"""Named streams of random keys: no task derives a key from a bare number."""

import enum

import jax


class Stream(enum.IntEnum):
  """What a key of a run is for; the numbers are part of what a seed means."""

  BASE = 0
  ADAPTER = 1
  SFT = 2
  SFT_EVALUATION = 3
  REWARD = 4
  RL = 5
  EVALUATE = 6
  DPO = 7
  GENERATE = 8


def key_of(seed: int, stream: Stream) -> jax.Array:
  """The key of one stream of a run: fold_in(key(seed), stream)."""
  return jax.random.fold_in(jax.random.key(seed), stream.value)


def policy_evaluation_key(seed: int) -> jax.Array:
  """The key that RL and DPO sample held-out prompts with, so that they compare.

  It is fold_in(RL's key, 0); the iterations of RL fold in 1, 2, ...
  """
  return jax.random.fold_in(key_of(seed, Stream.RL), 0)

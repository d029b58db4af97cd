"""A toy rollout and its roles, for the tests of what is said of responses."""

import functools

import jax
import numpy as np

from perl_jax import params as params_lib
from perl_jax import roles, scoring
from perl_jax.models.lora import LoraSpec
from tests import toys

CONFIG = toys.config("gemma2_tiny")
SPEC = LoraSpec(rank=2, alpha=2.0)
BACKBONE = roles.Backbone(CONFIG, SPEC)
TEMPERATURE, RESPONSE_LEN = 0.9, 6

# The same formula in two compiled programs: float32 reassociation.
ACROSS_PROGRAMS = dict(rtol=1e-5, atol=1e-5)


@functools.cache
def trees():
  """(policy, reward model, base)."""
  policy, base = params_lib.partition(toys.random_params(CONFIG, SPEC), "lora")
  other = toys.random_params(CONFIG, SPEC, head=True, seed=1)
  reward, _ = params_lib.partition(other, "lora")
  return policy, reward, base


@functools.cache
def sampled():
  """(prompts, lengths, responses, mask); row 3 only fills up the batch."""
  lengths = np.array([4, 1, 3, 2], np.int32)
  columns = np.arange(4) >= 4 - lengths[:, None]
  prompts = np.where(columns, toys.random_tokens(60, 4, 4), 0)
  mask = np.arange(RESPONSE_LEN) < np.array([6, 2, 4, 0])[:, None]
  responses = np.where(mask, toys.random_tokens(61, 4, RESPONSE_LEN), 0)
  return prompts, lengths, responses, mask


MEMBERS, GROUP = 2, 2
TOGETHER = ("anchor", "policy", "value", "reward")


@functools.cache
def roles_of():
  """(trainable trees of anchor, policy, value and two rewards, base)."""
  policy, _, base = trees()

  def adapter(seed, head=False, likelihood=False):
    tree = toys.random_params(CONFIG, SPEC, head=head, seed=seed)
    found, _ = params_lib.partition(tree, "lora")
    if likelihood:
      weights = {"likelihood": np.array([0.7, -0.4], np.float32) * seed}
      found = found | {"head": found["head"] | weights}
    return found

  return {
    "anchor": adapter(5),
    "policy": policy,
    "value": adapter(2, head=True),
    "reward": params_lib.stack(
      [adapter(3, True, True), adapter(4, True, True)]
    ),
  }, base


def grouped():
  """Two responses to each of four prompts; some rows have no token."""
  prompts, lengths, responses, mask = sampled()
  more = np.arange(RESPONSE_LEN) < np.array([3, 6, 0, 0])[:, None]
  masks = np.stack([mask, more], axis=1)
  found = np.stack(
    [responses, np.where(more, toys.random_tokens(62, *more.shape), 0)], axis=1
  )
  return prompts, lengths, found, masks


def rows_apart():
  """Each response of `grouped` after a prompt of its own, `[8, T]`."""
  prompts, lengths, responses, mask = grouped()
  return (
    np.repeat(prompts, GROUP, axis=0),
    np.repeat(lengths, GROUP),
    responses.reshape(-1, RESPONSE_LEN),
    mask.reshape(-1, RESPONSE_LEN),
  )


def in_groups_of_one():
  prompts, lengths, responses, mask = rows_apart()
  return prompts, lengths, responses[:, None], mask[:, None]


def make_scores(**options):
  fields = {"temperature": TEMPERATURE, "reward_backbone": BACKBONE} | options
  return jax.jit(scoring.make_scores(BACKBONE, **fields))

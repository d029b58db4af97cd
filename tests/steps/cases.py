"""Losses with trees and batches to try them on, and references in NumPy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perl_jax import optim, params, roles, scoring, steps
from perl_jax.data.batches.demonstrations import TargetBatch
from perl_jax.data.batches.labelled import EncodedLabelled
from perl_jax.data.batches.packed_responses import Layout
from perl_jax.data.batches.preferences import EncodedPreference
from perl_jax.models.lora import LoraSpec
from tests import toys

# Divisible by every axis of the meshes below, as a large model is.
CONFIG = toys.config("tiny", vocab_size=32)
SPEC = LoraSpec(rank=2, alpha=2.0)
BACKBONE = roles.Backbone(CONFIG, SPEC)
DROPOUT = roles.Backbone(CONFIG, LoraSpec(rank=2, alpha=2.0, dropout=0.5))
ROWS, LENGTH, PROMPT, RESPONSE = 8, 7, 4, 5
TEMPERATURE, BETA = 0.7, 0.3

# One formula in float32, in another order of sums.
FLOAT32 = dict(rtol=2e-5, atol=2e-5)


class Case(NamedTuple):
  """A loss with trees and a batch of 8 rows that are not alike."""

  loss_fn: steps.LossFn
  trainable: params.Params
  frozen: params.Params
  batch: NamedTuple


@functools.cache
def role(seed, head=False, tuning="lora"):
  """(trainable, frozen) with every leaf drawn; the base is always the same."""
  base = toys.random_params(CONFIG)
  if tuning == "full":
    tree = base | (roles.init_head(CONFIG) if head else {})
    tree = toys.perturbed(tree, 0.05, seed)
    return params.partition(jax.tree.map(jnp.asarray, tree), "full")
  tree = toys.random_params(CONFIG, SPEC, head=head, seed=seed)
  trainable, _ = params.partition(tree, "lora")
  return jax.tree.map(jnp.asarray, (trainable, base))


def target_batch():
  """Packed rows with 0 to 6 targets, two segments in some, padding in most."""
  rng = np.random.default_rng(2)
  segments = np.sort(rng.integers(0, 3, (ROWS, LENGTH)), axis=1)[:, ::-1]
  segments = np.where(segments == 0, 0, 3 - segments).astype(np.int32)
  positions = np.zeros_like(segments)
  mask = np.zeros(segments.shape, bool)
  for row in range(ROWS):
    for column in range(1, LENGTH):
      if segments[row, column] == segments[row, column - 1] > 0:
        positions[row, column] = positions[row, column - 1] + 1
        mask[row, column] = rng.random() < 0.6
  mask[0] = False
  return TargetBatch(toys.random_tokens(3, ROWS, LENGTH), positions, segments,
                     mask)  # fmt: skip


def preferences(starts=(1, 1, 1, 1, 1, 1)):
  """Six pairs with prompts of so many tokens; a response may be empty."""
  lengths = [[7, 3], [2, 6], [1, 1], [5, 5], [4, 7], [3, 2]]
  chosen, rejected = (toys.random_tokens(seed, 6, LENGTH) for seed in (4, 5))
  found = []
  for row, (start, ends) in enumerate(zip(starts, lengths, strict=True)):
    prompt = chosen[row, :start].tolist()
    sides = (
      prompt + tokens[row, start:end].tolist()
      for tokens, end in zip((chosen, rejected), ends, strict=True)
    )
    found.append(EncodedPreference(*sides, start, row))
  return found


# Rows of two items, of one, and of none.
PLAN = [[0, 1], [2], [], [3, 4], [], [5], [], []]
PAIRS = Layout(responses=2, targets=True)


def preference_batch(pairs=None, layout=PAIRS):
  return layout.pack(preferences() if pairs is None else pairs, PLAN, room=3)


def labelled():
  lengths, labels = [7, 2, 1, 5, 4, 3, 6], [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5]
  tokens = toys.random_tokens(6, len(lengths), LENGTH)
  return [
    EncodedLabelled(tokens[row, :length].tolist(), 1, label, row)
    for row, (length, label) in enumerate(zip(lengths, labels, strict=True))
  ]


def labelled_batch():
  plan = [[0, 1], [2, 6], [], [3, 4], [], [5], [], []]
  return Layout(responses=1).pack(labelled(), plan, room=3)


@functools.cache
def measure():
  return jax.jit(scoring.make_logprobs(BACKBONE, temperature=TEMPERATURE))


def make_experience(policy, frozen, anchor):
  """One response to each prompt, of 1 to 5 tokens; the last row has none."""
  lengths = np.array([4, 1, 3, 2, 4, 2, 1, 1], np.int32)
  response_lengths = np.array([5, 2, 1, 4, 3, 5, 2, 0])
  args = (
    toys.random_tokens(7, ROWS, PROMPT),
    lengths,
    toys.random_tokens(8, ROWS, RESPONSE),
    np.arange(RESPONSE) < response_lengths[:, None],
  )
  rewards = np.random.default_rng(9).normal(size=(ROWS, 1))
  return steps.Experience(
    *args[:2],
    *(array[:, None] for array in args[2:]),
    sampled_logprobs=np.asarray(measure()(policy, frozen, *args)[0])[:, None],
    anchor_logprobs=np.asarray(measure()(anchor, frozen, *args)[0])[:, None],
    rewards=rewards.astype(np.float32),
    beta=np.full(ROWS, BETA, np.float32),
  )


@functools.cache
def rl_batch():
  (policy, frozen), (anchor, _) = role(1), role(2)
  return make_experience(policy, frozen, anchor)


def reinforce(temperature=TEMPERATURE, **changes):
  estimator = steps.Estimator(name="reinforce", value_coef=0.5, **changes)
  return steps.policy_loss(BACKBONE, estimator, temperature=temperature)


@functools.cache
def case(name):
  policy, frozen = role(1)
  reward, _ = role(3, head=True)
  if name == "rl":
    value, _ = role(4, head=True)
    trainable = {"policy": policy, "value": value}
    return Case(reinforce(), trainable, steps.Frozen(frozen, {}), rl_batch())
  loss_fn, trainable, batch = {
    "sft": (
      steps.language_model_loss(BACKBONE, max_targets=6),
      policy,
      target_batch(),
    ),
    "pairwise": (
      steps.pairwise_loss(BACKBONE, max_response=LENGTH),
      reward,
      preference_batch(),
    ),
    "pointwise": (
      steps.pointwise_loss(BACKBONE, max_response=LENGTH),
      reward,
      labelled_batch(),
    ),
  }[name]
  name = "policy" if name == "sft" else "reward"
  return Case(loss_fn, {name: trainable}, frozen, batch)


CASES = ("sft", "pairwise", "pointwise", "rl")


@functools.cache
def ran(name):
  """(sums, gradient of the loss's sum, state, metrics) of one plain step.

  One program for all: compiling is what these tests spend their time on.
  """
  loss_fn, trainable, frozen, batch = case(name)
  step = steps.make_train_step(loss_fn, sgd())

  def run(trainable):
    def total(trainable):
      found = loss_fn(trainable, frozen, batch, None)
      return found["loss"][0], found

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(trainable)
    state = steps.init_state(trainable, sgd())
    return found, gradient, *step(state, frozen, batch, jax.random.key(0))

  return jax.device_get(jax.jit(run)(trainable))


def sgd():
  """Plain, so that an update is the gradient and nothing hides its size."""
  return optax.sgd(1.0)


# References: one row at a time, unpadded, in float64 NumPy from hidden states.


@functools.cache
def hidden_fn():
  def hidden(trainable, frozen, tokens):
    tree = params.combine(trainable, frozen)
    length = jnp.full((1,), tokens.shape[1])
    return roles.hidden_states(
      BACKBONE, tree, roles.right_padded(tokens, length)
    )

  return jax.jit(hidden)


def hidden_of(trainable, frozen, ids):
  """Hidden states `[T, D]` of one sequence without any padding."""
  # Causal: what stands behind the end changes nothing, and saves compiling.
  row = np.zeros((1, PROMPT + RESPONSE), np.int32)
  row[0, : len(ids)] = ids
  found = hidden_fn()(trainable, frozen, row)
  return np.asarray(found, np.float64)[0, : len(ids)]


def logprobs_of(hidden, frozen, temperature=1.0):
  logits = hidden @ np.asarray(frozen["embedding"], np.float64).T / temperature
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def score_of(trainable, hidden):
  head = trainable["head"]
  return hidden @ np.asarray(head["kernel"], float) + float(head["bias"])


def log_sigmoid(x):
  return -np.log1p(np.exp(-x))


def check_sums(found, **expected):
  for name, (total, count) in expected.items():
    np.testing.assert_allclose(found[name][0], total, err_msg=name, **FLOAT32)
    assert found[name][1] == count, name


def adam(learning_rate=1e-2):
  return optim.make_optimizer(
    name="adamw",
    schedule=optim.make_schedule(
      name="constant",
      learning_rate=learning_rate,
      warmup_steps=0,
      total_steps=1,
    ),
    b1=0.9,
    b2=0.99,
    weight_decay=0.0,
    clip_norm=1.0,
  )


def close_trees(found, expected, before, fraction=1e-4):
  """Moved leaves agree within a fraction of the largest move of a leaf."""
  found, expected = params.flatten(found), params.flatten(expected)
  before = params.flatten(before)
  assert found.keys() == expected.keys() == before.keys()
  for path, leaf in expected.items():
    scale = np.abs(leaf - before[path]).max()
    np.testing.assert_allclose(
      found[path], leaf, atol=fraction * scale + 1e-7, err_msg=path
    )

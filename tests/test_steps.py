"""Steps: their losses by hand, and what an update does and does not touch."""

import functools
import warnings
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perl_jax import optim, params, roles, rollout, sharding, steps
from perl_jax.data.batches import (
  LabelledBatch,
  PreferenceBatch,
  TargetBatch,
)
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


def preference_batch():
  lengths = np.array([[7, 3], [2, 6], [1, 1], [5, 5], [4, 7], [3, 2], [6, 6],
                      [1, 1]], np.int32)  # fmt: skip
  return PreferenceBatch(
    toys.random_tokens(4, ROWS, LENGTH), lengths[:, 0],
    toys.random_tokens(5, ROWS, LENGTH), lengths[:, 1],
    np.ones(ROWS, np.int32), np.arange(ROWS) < 6,
    np.arange(ROWS, dtype=np.int32),
  )  # fmt: skip


def labelled_batch():
  return LabelledBatch(
    toys.random_tokens(6, ROWS, LENGTH),
    np.array([7, 2, 1, 5, 4, 3, 6, 1], np.int32),
    np.ones(ROWS, np.int32),
    np.array([1, 0, 1, 1, 0, 0, 0.5, 0], np.float32),
    np.arange(ROWS) < 7,
    np.arange(ROWS, dtype=np.int32),
  )


@functools.cache
def measure():
  return jax.jit(rollout.make_logprobs(BACKBONE, temperature=TEMPERATURE))


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
    return Case(reinforce(), trainable, steps.Standing(frozen, {}), rl_batch())
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
  return Case(loss_fn, trainable, frozen, batch)


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


def test_language_model_loss_by_hand():
  _, trainable, frozen, batch = case("sft")
  total = right = count = 0
  for row in range(ROWS):
    for column in np.flatnonzero(batch.target_mask[row]):
      segment = batch.segments[row] == batch.segments[row, column]
      ids = batch.tokens[row][segment & (np.arange(LENGTH) < column)]
      last = hidden_of(trainable, frozen, ids)[-1]
      logprobs = logprobs_of(last, frozen)
      target = batch.tokens[row, column]
      total -= logprobs[target]
      right += int(logprobs.argmax() == target)
      count += 1
  assert count > 10
  found, *_ = ran("sft")
  check_sums(found, loss=(total, count), accuracy=(right, count))


def test_pairwise_loss_by_hand():
  _, trainable, frozen, batch = case("pairwise")
  loss = right = margin = 0
  for row in np.flatnonzero(batch.valid):
    chosen, rejected = (
      score_of(trainable, hidden_of(trainable, frozen, tokens[row, :n])[-1])
      for tokens, n in (
        (batch.chosen_tokens, batch.chosen_lengths[row]),
        (batch.rejected_tokens, batch.rejected_lengths[row]),
      )
    )
    loss -= log_sigmoid(chosen - rejected)
    right += int(chosen > rejected)
    margin += chosen - rejected
  check_sums(
    ran("pairwise")[0], loss=(loss, 6), accuracy=(right, 6), margin=(margin, 6)
  )


def test_equal_scores_are_half_right():
  """A head of zeros knows nothing: accuracy 1/2, loss log 2."""
  loss_fn, trainable, frozen, batch = case("pairwise")
  found = steps.means(
    jax.jit(loss_fn)(trainable | roles.init_head(CONFIG), frozen, batch, None)
  )
  assert found["accuracy"] == 0.5
  np.testing.assert_allclose(found["loss"], np.log(2.0), rtol=1e-6)


def test_pointwise_loss_by_hand():
  _, trainable, frozen, batch = case("pointwise")
  loss = right = total = 0
  for row in np.flatnonzero(batch.valid):
    ids = batch.tokens[row, : batch.lengths[row]]
    score = score_of(trainable, hidden_of(trainable, frozen, ids)[-1])
    label = batch.labels[row]
    loss -= label * log_sigmoid(score) + (1 - label) * log_sigmoid(-score)
    right += int((score > 0) == (label > 0.5))
    total += score
  check_sums(
    ran("pointwise")[0], loss=(loss, 7), accuracy=(right, 7), score=(total, 7)
  )


@functools.cache
def rl_by_hand():
  """{"policy_loss": a list of each row's tokens, ...}, and the KL of each row.

  The row that only fills up the batch has no tokens.
  """
  _, trainable, (frozen, _), batch = case("rl")
  anchor, _ = role(2)
  found = {
    name: [[] for _ in range(ROWS)]
    for name in ("policy_loss", "value_loss", "advantage", "return", "value")
  }
  kl = np.zeros(ROWS)
  for row in range(ROWS - 1):
    n = int(batch.response_mask[row].sum())
    prompt = batch.prompts[row, PROMPT - batch.prompt_lengths[row] :]
    response = batch.responses[row, 0, :n]
    ids = np.concatenate([prompt, response])

    def before(tree, ids=ids, n=n):
      return hidden_of(tree, frozen, ids)[-n - 1 : -1]

    def scores(tree, response=response, n=n, before=before):
      logprobs = logprobs_of(before(tree), frozen, TEMPERATURE)
      return logprobs[np.arange(n), response]

    policy = scores(trainable["policy"])
    values = score_of(trainable["value"], before(trainable["value"]))
    rewards = -BETA * (policy - scores(anchor))
    rewards[-1] += (1 - BETA) * batch.rewards[row, 0]
    kl[row] = np.sum(policy - scores(anchor))
    for t in range(n):
      returns = rewards[t:].sum()
      for name, value in (
        ("policy_loss", -policy[t] * (returns - values[t])),
        ("value_loss", (returns - values[t]) ** 2),
        ("advantage", returns - values[t]),
        ("return", returns),
        ("value", values[t]),
      ):
        found[name][row].append(value)
  return found, kl


def test_reinforce_loss_by_hand():
  tokens, kl = rl_by_hand()
  total = {name: sum(map(sum, rows)) for name, rows in tokens.items()}
  count = sum(map(len, tokens["value"]))
  rewards = rl_batch().rewards[: ROWS - 1, 0].astype(float)
  squares = [x**2 for row in tokens["return"] for x in row]
  found, *_ = ran("rl")
  check_sums(
    found,
    loss=(total["policy_loss"] + 0.5 * total["value_loss"], count),
    kl=(kl.sum(), ROWS - 1),
    kl_per_token=(kl.sum(), count),
    objective=(
      (1 - BETA) * rewards.sum() - BETA * kl.sum(), ROWS - 1
    ),
    return_square=(sum(squares), count),
    residual=(total["advantage"], count),
    residual_square=(total["value_loss"], count),
    clip_fraction=(0, count),
    **{name: (value, count) for name, value in total.items()},
  )  # fmt: skip


def test_on_policy_ratio_is_1():
  """Exactly: the policy that is updated is the one that sampled.

  That it did is told by what the sampler said of its tokens.
  """
  loss_fn, trainable, frozen, batch = case("rl")
  total, count = ran("rl")[0]["ratio"]
  assert total == count == 22
  found = steps.means(ran("rl")[0])
  assert found["sampler_difference"] < 2e-6
  other = trainable | {"policy": role(2)[0]}
  moved = steps.means(jax.jit(loss_fn)(other, frozen, batch, None))
  assert moved["sampler_difference"] > 0.01


def test_ratio_is_1_where_the_policy_is_the_one_that_was_measured():
  """With several updates the log-probs before the first are given."""
  _, trainable, frozen, batch = case("rl")
  estimator = steps.Estimator(name="ppo", epochs=2)
  batch = batch._replace(
    # Of `measure`, another program than the step's.
    policy_logprobs=batch.sampled_logprobs,
    values=np.zeros_like(batch.sampled_logprobs),
  )
  batch = steps.prepare(estimator, batch)
  loss_fn = jax.jit(
    steps.policy_loss(BACKBONE, estimator, temperature=TEMPERATURE)
  )
  found = steps.means(loss_fn(trainable, frozen, batch, None))
  np.testing.assert_allclose(found["ratio"], 1.0, rtol=0, atol=2e-6)
  assert found["clip_fraction"] == 0
  other = trainable | {"policy": role(2)[0]}
  moved = steps.means(loss_fn(other, frozen, batch, None))
  assert abs(moved["ratio"] - 1.0) > 0.01 and moved["clip_fraction"] > 0.1


# What an update touches.


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


@pytest.mark.parametrize("name", CASES)
def test_update_is_the_gradient_of_the_mean(name):
  found, gradient, state, metrics = ran(name)
  count = found["loss"][1]
  expected = jax.tree.map(
    lambda x, g: x - g / count, case(name).trainable, gradient
  )
  close_trees(state.trainable, expected, case(name).trainable)
  for key, (total, n) in found.items():
    np.testing.assert_allclose(metrics[key], total / n, rtol=1e-5, atol=1e-5)
  norm = np.sqrt(
    sum(np.sum((g / count) ** 2) for g in jax.tree.leaves(gradient))
  )
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
  np.testing.assert_allclose(metrics["update_norm"], norm, rtol=1e-4)
  assert state.step == 1


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_microbatches_change_nothing(name):
  """Rows count differently in each part (masks), and still: 1e-4 of a move.

  A mean of means would be off by percents.
  """
  *_, whole, metrics = ran(name)
  loss_fn, trainable, frozen, batch = case(name)
  step = steps.make_train_step(loss_fn, sgd(), microbatches=4)
  parts, part_metrics = jax.device_get(
    jax.jit(step)(
      steps.init_state(trainable, sgd()), frozen, batch, jax.random.key(0)
    )
  )
  close_trees(parts.trainable, whole.trainable, case(name).trainable)
  for key, value in metrics.items():
    np.testing.assert_allclose(
      part_metrics[key], value, rtol=1e-4, atol=1e-5, err_msg=key
    )


def test_microbatches_draw_keys_of_their_own():
  """Equal rows in two parts are dropped out differently."""
  trainable, frozen = role(1)
  first = jax.tree.map(lambda x: np.repeat(x[1:2], 2, axis=0), target_batch())
  loss_fn = steps.language_model_loss(DROPOUT, max_targets=6)
  seen = []

  def spy(*args):
    found = loss_fn(*args)
    jax.debug.callback(lambda x: seen.append(float(x)), found["loss"][0])
    return found

  step = steps.make_train_step(spy, sgd(), microbatches=2)
  state = steps.init_state(trainable, sgd())
  jax.block_until_ready(jax.jit(step)(state, frozen, first, jax.random.key(0)))
  jax.effects_barrier()
  assert len(seen) == 2 and seen[0] != seen[1]


def test_dropout_depends_on_the_key_and_on_nothing_else():
  trainable, frozen = role(1)
  loss_fn = jax.jit(steps.language_model_loss(DROPOUT, max_targets=6))

  def loss(key):
    return float(loss_fn(trainable, frozen, target_batch(), key)["loss"][0])

  keys = [jax.random.fold_in(jax.random.key(0), step) for step in (1, 2)]
  assert loss(keys[0]) == loss(keys[0])
  assert loss(keys[0]) != loss(keys[1])
  plain = float(ran("sft")[0]["loss"][0])
  off = loss_fn(trainable, frozen, target_batch(), None)["loss"][0]
  np.testing.assert_allclose(off, plain, **FLOAT32)
  assert abs(loss(keys[0]) - plain) > 1e-3


def test_three_steps_are_one_trace_donated_and_leave_the_base_alone():
  """Warnings are errors: a buffer that could not be donated would be one."""
  loss_fn, trainable, frozen, batch = case("pairwise")
  traces = []

  def counted(*args):
    traces.append(1)
    return loss_fn(*args)

  optimizer = adam()
  step = jax.jit(steps.make_train_step(counted, optimizer), donate_argnums=0)
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  placed = sharding.place(mesh, frozen)
  state = sharding.place(mesh, steps.init_state(trainable, optimizer))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for number in range(3):
      before = state
      key = jax.random.fold_in(jax.random.key(0), number)
      state, _ = step(before, placed, batch, key)
      assert all(x.is_deleted() for x in jax.tree.leaves(before))
  assert len(traces) == 1
  assert int(state.step) == 3
  for path, leaf in params.flatten(placed).items():
    np.testing.assert_array_equal(leaf, params.flatten(frozen)[path])
  for path, leaf in params.flatten(state.trainable).items():
    moved = np.any(leaf != params.flatten(trainable)[path])
    # A bias of the head cancels in a difference of scores.
    assert moved or path == "head/bias", path


def opt_leaves(opt_state):
  """{path: leaf} of everything that an optimiser holds but its counters."""
  return {
    sharding.path_string(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)
    if leaf.ndim or "head/bias" in sharding.path_string(path)
  }


@pytest.mark.parametrize("name", CASES)
def test_optimizer_holds_adapters_and_heads_only(name):
  """Walks the state: two moments for each trained leaf, none for the base."""
  _, trainable, frozen, _ = case(name)
  opt_state = adam().init(trainable)
  leaves = opt_leaves(opt_state)
  mine = params.flatten(trainable)
  assert all(
    params.is_adapter(path) or "head/" in path for path in [*leaves, *mine]
  )
  assert len(leaves) == 2 * len(mine)
  for path, leaf in leaves.items():
    (owner,) = [p for p in mine if path.endswith(f"/{p}")]
    assert leaf.shape == mine[owner].shape
  others = [x for x in jax.tree.leaves(opt_state) if not x.ndim]
  heads = sum(path.endswith("head/bias") for path in leaves)
  assert all(x.dtype == jnp.int32 for x in others[: len(others) - heads] if
             jnp.issubdtype(x.dtype, jnp.integer))  # fmt: skip
  assert params.nbytes(opt_state) < params.nbytes(frozen)


def test_nothing_of_the_size_of_the_base_is_differentiated():
  """No array in the compiled step's outputs is larger than an adapter leaf."""
  loss_fn, trainable, frozen, batch = case("pairwise")
  optimizer = adam()
  state = steps.init_state(trainable, optimizer)
  step = steps.make_train_step(loss_fn, optimizer)
  out, _ = jax.eval_shape(step, state, frozen, batch, jax.random.key(0))
  chex.assert_trees_all_equal_shapes_and_dtypes(out, state)
  gradients = jax.eval_shape(
    jax.grad(lambda t: loss_fn(t, frozen, batch, None)["loss"][0]), trainable
  )
  assert params.count(gradients) == params.count(trainable)


# Reduction, beta, temperature.


def test_token_and_sequence_reduction():
  """By 22 tokens or 7 responses; the row that fills up is in neither."""
  _, trainable, frozen, batch = case("rl")
  tokens, _ = rl_by_hand()
  rows = [
    np.array(policy) + 0.5 * np.array(value)
    for policy, value in zip(
      tokens["policy_loss"][:-1], tokens["value_loss"][:-1], strict=True
    )
  ]

  @jax.jit
  def losses():
    return {
      reduction: reinforce(reduction=reduction)(
        trainable, frozen, batch, None
      )["loss"]
      for reduction in ("token", "sequence", "sequence_mean")
    }  # fmt: skip

  total = sum(row.sum() for row in rows)
  check_sums(
    losses(),
    token=(total, 22),
    sequence=(total, 7),
    sequence_mean=(sum(row.mean() for row in rows), 7),
  )


@functools.cache
def policy_gradient():
  """Gradient by the policy, of (beta, rewards, anchor log-probs)."""
  _, trainable, frozen, batch = case("rl")

  def total(policy, beta, rewards, anchor):
    changed = batch._replace(
      rewards=rewards,
      anchor_logprobs=anchor,
      beta=jnp.full(ROWS, beta, jnp.float32),
    )
    tree = trainable | {"policy": policy}
    return reinforce()(tree, frozen, changed, None)["loss"][0]

  gradient = jax.jit(jax.grad(total))
  return lambda *args: jax.device_get(gradient(trainable["policy"], *args))


def differ(first, second):
  return any(
    np.any(x != y)
    for x, y in zip(
      jax.tree.leaves(first), jax.tree.leaves(second), strict=True
    )
  )


def test_beta_weighs_reward_and_kl():
  """At 1 the reward, at 0 the KL has no influence, not even on one bit."""
  batch = rl_batch()
  rewards, anchor = batch.rewards, batch.anchor_logprobs
  other = (rewards + 1.0, np.asarray(anchor) - 0.5)
  for beta, reward_matters, kl_matters in (
    (0.0, True, False),
    (1.0, False, True),
    (BETA, True, True),
  ):
    gradient = functools.partial(policy_gradient(), beta)
    plain = gradient(rewards, anchor)
    assert differ(plain, gradient(other[0], anchor)) == reward_matters
    assert differ(plain, gradient(rewards, other[1])) == kl_matters


def test_temperature_divides_the_logits():
  """log pi at T is log softmax(z / T), and the loss reads that of the rollout.

  With another temperature the sampler said otherwise: the trap of trainers that
  sample at 0.7 and score at 1.
  """
  _, trainable, frozen, batch = case("rl")
  ids = np.concatenate([batch.prompts[0], batch.responses[0, 0]])
  hidden = hidden_of(trainable["policy"], frozen.base, ids)[PROMPT - 1 : -1]
  expected = logprobs_of(hidden, frozen.base, TEMPERATURE)
  found = batch.sampled_logprobs[0, 0]
  columns = np.arange(RESPONSE), batch.responses[0, 0]
  np.testing.assert_allclose(found, expected[columns], **FLOAT32)
  other = logprobs_of(hidden, frozen.base)[columns]
  assert np.abs(found - other).max() > 0.05
  other = jax.jit(reinforce(temperature=1.0))(trainable, frozen, batch, None)
  assert steps.means(other)["sampler_difference"] > 0.01


# Meshes and full tuning.


@pytest.mark.parametrize("name, shape", [("sft", (2, 2, 2)), ("rl", (8, 1, 1))])
def test_sharded_step_is_the_unsharded_one(name, shape):
  """Eight devices, float reassociation apart: 1e-4 of a leaf's move."""
  loss_fn, trainable, frozen, batch = case(name)
  mesh = sharding.make_mesh(
    **dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
  )
  with jax.set_mesh(mesh):
    state = sharding.place(mesh, steps.init_state(trainable, sgd()))
    placed = sharding.place_batch(mesh, jax.tree.map(np.asarray, batch))
    if shape == (8, 1, 1):
      assert len(jax.tree.leaves(placed)[0].sharding.device_set) == 8
    if name == "rl":
      frozen = frozen._replace(base=sharding.place(mesh, frozen.base))
    else:
      frozen = sharding.place(mesh, frozen)
    step = jax.jit(steps.make_train_step(loss_fn, sgd()), donate_argnums=0)
    state, metrics = step(state, frozen, placed, jax.random.key(0))
  *_, whole, expected = ran(name)
  close_trees(jax.device_get(state.trainable), whole.trainable, trainable)
  for key, value in expected.items():
    np.testing.assert_allclose(
      metrics[key], value, rtol=1e-4, atol=1e-5, err_msg=key
    )


def test_full_tuning_runs_the_same_step():
  """Everything is trained, nothing is frozen, and the loss falls."""
  trainable, frozen = role(3, head=True, tuning="full")
  assert not frozen
  optimizer = adam(1e-3)
  step = jax.jit(steps.make_train_step(case("pairwise").loss_fn, optimizer))
  state = steps.init_state(trainable, optimizer)
  key = jax.random.key(0)
  state, first = step(state, {}, preference_batch(), key)
  state, second = step(state, {}, preference_batch(), key)
  assert second["loss"] < first["loss"]
  for path, leaf in params.flatten(state.trainable).items():
    moved = np.any(leaf != params.flatten(trainable)[path])
    # A bias of the head cancels in a difference of scores.
    assert moved or path == "head/bias", path


def test_means_of_nothing_are_0():
  nothing = (jnp.float32(0.0), jnp.float32(0.0))
  assert steps.means({"loss": nothing})["loss"] == 0.0

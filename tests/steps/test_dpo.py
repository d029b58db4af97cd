"""The step of DPO: its loss by hand, and what it does and does not see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import roles, sharding, steps
from tests.steps import cases

BETA, SMOOTHING = 0.5, 0.1


def items():
  """Prompts of 1 to 3 tokens; one pair is empty."""
  return cases.preferences((2, 1, 1, 3, 2, 1))


def pairs():
  return cases.preference_batch(items())


@functools.cache
def measure():
  def logprobs(trainable, frozen, batch):
    tree = cases.params.combine(trainable, frozen)
    return roles.packed_logprobs(
      cases.BACKBONE, tree, batch, max_response=cases.LENGTH
    )

  return jax.jit(logprobs)


@functools.cache
def batch():
  """Pairs with the log-probs of the anchor, which is another adapter."""
  anchor, frozen = cases.role(2)
  scores = measure()(anchor, frozen, pairs())
  return steps.AnchoredPairs(pairs(), np.asarray(scores))


def make_loss(kind="sigmoid", smoothing=SMOOTHING, backbone=cases.BACKBONE):
  return steps.dpo_loss(
    backbone,
    max_response=cases.LENGTH,
    beta=BETA,
    label_smoothing=smoothing,
    kind=kind,
  )


@functools.cache
def sums_and_gradient():
  trainable, frozen = policy(), cases.role(1)[1]

  def total(trainable, batch):
    found = make_loss()(trainable, frozen, batch, None)
    return found["loss"][0], found

  gradient = jax.jit(jax.grad(total, has_aux=True))
  return lambda batch: jax.device_get(gradient(trainable, batch))


def by_hand(role, pair):
  """log pi of both responses of a pair, token by token in float64."""
  trainable, frozen = role
  found = []
  for ids in (pair.chosen, pair.rejected):
    hidden = cases.hidden_of(trainable, frozen, ids)
    logprobs = cases.logprobs_of(hidden, frozen)
    steps_ = range(pair.prompt_length, len(ids))
    found.append(sum(logprobs[t - 1, ids[t]] for t in steps_))
  return np.array(found)


def test_logprobs_by_hand():
  data = pairs()
  found = np.array(measure()(*cases.role(1), data))
  for row, place in zip(*np.nonzero(data.valid), strict=True):
    pair = items()[data.index[row, place]]
    expected = by_hand(cases.role(1), pair)
    np.testing.assert_allclose(found[row, place], expected, **cases.FLOAT32)
    assert expected.all() != (pair.index == 2)
  assert not found[~data.valid].any()


def test_loss_by_hand():
  expected = dict.fromkeys(
    ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"), 0.0
  )
  squares = 0.0
  for pair in items():
    rewards = by_hand(cases.role(1), pair) - by_hand(cases.role(2), pair)
    squares += (rewards[0] - rewards[1] - 0.5 / BETA) ** 2
    chosen, rejected = BETA * rewards
    margin = chosen - rejected
    expected["loss"] -= (1 - SMOOTHING) * cases.log_sigmoid(margin)
    expected["loss"] -= SMOOTHING * cases.log_sigmoid(-margin)
    expected["accuracy"] += 0.5 + 0.5 * np.sign(margin)
    expected["margin"] += margin
    expected["chosen_reward"] += chosen
    expected["rejected_reward"] += rejected
  _, found = sums_and_gradient()(batch())
  cases.check_sums(found, **{k: (v, 6) for k, v in expected.items()})
  squared = jax.jit(make_loss("ipo", 0.0))(
    policy(), cases.role(1)[1], batch(), None
  )
  cases.check_sums(squared, loss=(squares, 6))


def test_a_policy_that_is_the_anchor():
  """log 2 whatever the pairs, and no pair is preferred."""
  anchor, frozen = cases.role(2)
  trainable = {"policy": anchor}
  found = steps.means(jax.jit(make_loss())(trainable, frozen, batch(), None))
  np.testing.assert_allclose(found["loss"], np.log(2.0), rtol=1e-6)
  np.testing.assert_allclose(found["margin"], 0.0, atol=1e-5)


def test_gradient_is_that_of_the_two_likelihoods():
  """sum_i -beta (sigmoid(-m_i) - s) (grad log pi(chosen) - .. (rejected))."""
  trainable, frozen = policy(), cases.role(1)[1]
  data = batch()
  found = measure()(trainable["policy"], frozen, data.pairs)
  margin = BETA * (found - data.anchor) @ np.array([1, -1])
  weight = -BETA * (1 / (1 + np.exp(margin)) - SMOOTHING) * data.pairs.valid

  def total(trainable):
    found = measure()(trainable["policy"], frozen, data.pairs)
    return jnp.sum(weight * (found @ jnp.array([1, -1])))

  expected = jax.device_get(jax.grad(total)(trainable))
  found, _ = sums_and_gradient()(data)
  zero = jax.tree.map(np.zeros_like, expected)
  cases.close_trees(found, expected, zero)


def test_padding_and_rows_that_fill_the_batch_change_nothing():
  gradient, found = sums_and_gradient()(batch())
  data = batch()
  fill = data.pairs.segments == 0
  other = data._replace(
    pairs=data.pairs._replace(
      tokens=np.where(fill, 3, data.pairs.tokens).astype(np.int32)
    ),
    anchor=np.where(data.pairs.valid[..., None], data.anchor, 1e4).astype(
      np.float32
    ),
  )
  assert fill.any(axis=1).sum() == 7 and fill.all(axis=1).any()
  other_gradient, other_found = sums_and_gradient()(other)
  jax.tree.map(np.testing.assert_array_equal, other_found, found)
  jax.tree.map(np.testing.assert_array_equal, other_gradient, gradient)


def plain_step(microbatches=1):
  return steps.make_train_step(
    make_loss(), cases.sgd(), microbatches=microbatches
  )


def policy():
  return {"policy": cases.role(1)[0]}


@functools.cache
def stepped():
  trainable, frozen = policy(), cases.role(1)[1]
  state = steps.init_state(trainable, cases.sgd())
  key = jax.random.key(0)
  return jax.device_get(jax.jit(plain_step())(state, frozen, batch(), key))


@pytest.mark.parametrize("way", ["microbatches", "mesh"])
def test_however_the_batch_is_cut(way):
  """The anchor's numbers go where their pairs go."""
  trainable, frozen = policy(), cases.role(1)[1]
  data, step = batch(), jax.jit(plain_step(4 if way == "microbatches" else 1))
  state = steps.init_state(trainable, cases.sgd())
  if way == "mesh":
    mesh = sharding.make_mesh(data=8, fsdp=1, tensor=1)
    state, frozen = (sharding.place(mesh, x) for x in (state, frozen))
    data = sharding.place_batch(mesh, data)
  state, metrics = jax.device_get(step(state, frozen, data, jax.random.key(0)))
  whole, expected = stepped()
  cases.close_trees(state.trainable, whole.trainable, trainable)
  for name, value in expected.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name
    )


def test_dropout_is_on_with_a_key_alone():
  trainable, frozen = policy(), cases.role(1)[1]
  loss_fn = jax.jit(make_loss(backbone=cases.DROPOUT))

  def loss(key):
    return float(loss_fn(trainable, frozen, batch(), key)["loss"][0])

  off = float(sums_and_gradient()(batch())[1]["loss"][0])
  np.testing.assert_allclose(loss(None), off, **cases.FLOAT32)
  keys = [jax.random.key(seed) for seed in (0, 1)]
  assert loss(keys[0]) == loss(keys[0]) != loss(keys[1])

"""A step of several members against one step of each, computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perl_jax import steps

SCALE = 0.5  # of the shape
RATES = (0.1, 0.3, 0.0)
FACTORS = (1.0, 4.0, 0.5)


def loss_fn(trainable, frozen, batch, key):
  """Half the squares of x (W + scale A B) + noise, over the rows."""
  del key
  adapter = trainable["policy"]
  kernel = frozen + SCALE * adapter["lora_a"] @ adapter["lora_b"]
  rows = jnp.sum(jnp.square(batch @ kernel), axis=1) / 2
  return {"loss": (jnp.sum(rows), jnp.float32(len(rows)))}


def make(values):
  loss = steps.with_scale(loss_fn, values["lora.alpha"])
  optimizer = optax.sgd(values["optimizer.learning_rate"])
  return steps.make_train_step(loss, optimizer)


def by_hand(adapter, kernel, rows, rate, scale):
  """One step of gradient descent, float64."""
  a, b = (np.asarray(adapter[k], np.float64) for k in ("lora_a", "lora_b"))
  kernel, rows = np.asarray(kernel, np.float64), np.asarray(rows, np.float64)
  out = rows @ (kernel + scale * a @ b)
  grad = scale * rows.T @ out / len(rows)
  loss = np.square(out).sum() / 2 / len(rows)
  return loss, {
    "lora_a": a - rate * grad @ b.T,
    "lora_b": b - rate * a.T @ grad,
  }


def test_each_member_makes_its_own_step(rng):
  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  frozen = normal(4, 3)
  states, batches, keys = [], [], []
  for k in range(len(RATES)):
    adapter = {"lora_a": normal(4, 2), "lora_b": normal(2, 3)}
    states.append(steps.init_state({"policy": adapter}, optax.sgd(1.0)))
    batches.append(normal(5, 4))
    keys.append(jax.random.key(k))
  values = {
    "optimizer.learning_rate": jnp.asarray(RATES),
    "lora.alpha": jnp.asarray(FACTORS),
  }
  step = jax.jit(steps.make_members_step(make))
  found, metrics = step(
    tuple(states), frozen, tuple(batches), tuple(keys), values
  )
  for k, (rate, factor) in enumerate(zip(RATES, FACTORS, strict=True)):
    adapter = states[k].trainable["policy"]
    loss, expected = by_hand(adapter, frozen, batches[k], rate, SCALE * factor)
    np.testing.assert_allclose(metrics[k]["loss"], loss, rtol=1e-5)
    for name, leaf in found[k].trainable["policy"].items():
      np.testing.assert_allclose(leaf, expected[name], rtol=2e-5, atol=1e-5)
    assert int(found[k].step) == 1 and int(metrics[k]["fault"]) == 0


def test_a_member_that_is_not_finite_leaves_the_others_alone():
  states = tuple(
    steps.init_state(
      {"policy": {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 2))}},
      optax.sgd(1.0),
    )
    for _ in range(2)
  )
  batches = jnp.full((1, 2), jnp.nan), jnp.ones((1, 2))
  values = {
    "optimizer.learning_rate": jnp.full(2, 0.1),
    "lora.alpha": jnp.ones(2),
  }
  found, metrics = jax.jit(steps.make_members_step(make))(
    states, jnp.ones((2, 2)), batches, (jax.random.key(0),) * 2, values
  )
  assert [int(m["fault"]) > 0 for m in metrics] == [True, False]
  assert (found[0].trainable["policy"]["lora_a"] == 1).all()
  assert (found[1].trainable["policy"]["lora_a"] < 1).all()

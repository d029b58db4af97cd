"""The optimiser of a reward model: one chain, or another for its head."""

import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.tasks.settings import reward as reward_settings
from tests.tasks import tiny

FIELDS = {
  "optimizer__name": "sgd", "optimizer__b1": 0.0, "optimizer__clip_norm": 1.0,
  "optimizer__learning_rate": 0.1, "optimizer__warmup_steps": 0,
  "optimizer__schedule": "cosine", "head": "likelihood", "steps": 4,
}  # fmt: skip


def tree(members=()):
  def leaf(*shape):
    return jnp.full((*members, *shape), 3.0)

  head = {"kernel": leaf(4), "bias": leaf(), "likelihood": leaf(2)}
  return {"reward": {"layers": {"lora_a": leaf(2, 2)}, "head": head}}


def moved(config, trainable, counts):
  """The updates of each step, on gradients of three everywhere."""
  optimizer = reward_settings.make_optimizer(config)
  state, found = optimizer.transformation.init(trainable), []
  for _ in range(counts):
    updates, state = optimizer.transformation.update(
      trainable, state, trainable
    )
    found.append(updates["reward"])
  return optimizer.learning_rates, found


@pytest.mark.parametrize("members", [(), (2,)])
def test_a_head_has_a_rate_of_its_own(members):
  """SGD by hand: rate g / |g|, with the norm of each part's own gradient."""
  config = tiny.config("reward", head_learning_rate=0.4, **FIELDS)
  rates, found = moved(config, tree(members), 3)
  times = np.prod(members, dtype=int)
  for count, updates in enumerate(found):
    decay = 0.5 * (1 + np.cos(np.pi * count / 4))
    for own, leaf, numbers in (
      (0.1, updates["layers"]["lora_a"], 4),
      (0.4, updates["head"]["kernel"], 4 + 1 + 2),
      (0.4, updates["head"]["bias"], 4 + 1 + 2),
      (0.4, updates["head"]["likelihood"], 4 + 1 + 2),
    ):
      expected = -own * decay / np.sqrt(numbers * times)
      np.testing.assert_allclose(leaf, expected, rtol=1e-5)
    logged = [float(rate(count)) for rate in rates.values()]
    assert logged == pytest.approx([0.1 * decay, 0.4 * decay])
  assert list(rates) == ["learning_rate", "head_learning_rate"]


def test_without_one_there_is_one_chain():
  config = tiny.config("reward", head_learning_rate=0.0, **FIELDS)
  rates, (updates,) = moved(config, tree(), 1)
  assert list(rates) == ["learning_rate"]
  np.testing.assert_allclose(
    updates["head"]["likelihood"], -0.1 / np.sqrt(11), rtol=1e-5
  )

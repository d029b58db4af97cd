"""One score of several, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax.objectives import ensembles

SCORES = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
SCORES += np.array([[5.0], [-4.0], [0.0]], np.float32)  # zeros of their own
CENTRES = np.array([5.1, -4.2, 0.3], np.float32)


def by_hand(how, weight, centres):
  offsets = [0.0] * 3 if centres is None else centres - np.mean(centres)
  found = []
  for column in range(SCORES.shape[1]):
    values = [float(SCORES[k, column] - offsets[k]) for k in range(3)]
    mean = sum(values) / 3
    std = (sum((v - mean) ** 2 for v in values) / 3) ** 0.5
    found.append(
      {"mean": mean, "min": min(values), "mean_minus_std": mean - weight * std}[
        how
      ]
    )
  return found


@pytest.mark.parametrize("how", ensembles.COMBINATIONS)
@pytest.mark.parametrize("centres", [None, CENTRES])
def test_combinations_by_hand(how, centres):
  combine = jax.jit(
    lambda scores: ensembles.combine_scores(
      scores, how=how, std_weight=0.7, centres=centres
    )
  )
  found = combine(SCORES)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, by_hand(how, 0.7, centres), rtol=1e-5)


def test_centres_decide_who_is_least():
  """Without them it is the member whose zero is lowest, always."""
  plain = ensembles.combine_scores(jnp.asarray(SCORES), how="min")
  np.testing.assert_array_equal(plain, SCORES[1])
  centred = ensembles.combine_scores(
    jnp.asarray(SCORES), how="min", centres=CENTRES
  )
  who = np.argmin(SCORES - CENTRES[:, None], axis=0)
  assert len(set(who)) > 1
  level = CENTRES.mean()
  np.testing.assert_allclose(
    centred, (SCORES - CENTRES[:, None]).min(axis=0) + level, rtol=1e-5
  )


def test_a_constant_of_one_member_changes_no_difference():
  """Whatever its zero is, if its centre moves along."""
  moved = SCORES + np.array([[0.0], [100.0], [0.0]], np.float32)
  for how in ensembles.COMBINATIONS:
    first, second = (
      ensembles.combine_scores(
        jnp.asarray(s), how=how, std_weight=1.0, centres=s.mean(axis=1)
      )
      for s in (SCORES, moved)
    )
    np.testing.assert_allclose(second - first, 100 / 3, atol=1e-4)


def test_unknown_combination():
  with pytest.raises(ValueError, match="how='max': choose one of"):
    ensembles.combine_scores(jnp.asarray(SCORES), how="max")

"""Measurements of a rollout: equal roles give equal bits, alone or stacked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles, scoring
from perl_jax.models.lora import LoraSpec
from tests import padded, toys
from tests.models import reference
from tests.scored import (
  ACROSS_PROGRAMS,
  BACKBONE,
  CONFIG,
  GROUP,
  MEMBERS,
  RESPONSE_LEN,
  SPEC,
  TEMPERATURE,
  TOGETHER,
  grouped,
  in_groups_of_one,
  make_scores,
  roles_of,
  rows_apart,
  sampled,
  trees,
)

MEASURE = jax.jit(scoring.make_logprobs(BACKBONE, temperature=TEMPERATURE))


def measure(*args):
  return jax.device_get(MEASURE(*args))


def test_equal_policy_and_anchor_have_equal_bits():
  """So that the KL at step 0 is exactly 0, not about 0."""
  policy, _, base = trees()
  anchor = jax.tree.map(jnp.array, policy)
  one, one_entropy = measure(policy, base, *sampled())
  two, two_entropy = measure(anchor, base, *sampled())
  np.testing.assert_array_equal(one, two)
  np.testing.assert_array_equal(one_entropy, two_entropy)
  assert np.all(np.asarray(one - two) == 0.0)
  assert one.dtype == one_entropy.dtype == np.float32
  moved, _ = measure(toys.perturbed(policy), base, *sampled())
  assert np.abs(one - moved).max() > 0.1


def test_masked_entries_are_zero_and_others_are_not():
  policy, _, base = trees()
  mask = sampled()[3]
  logprobs, entropy = measure(policy, base, *sampled())
  assert not np.any(logprobs[~mask]) and not np.any(entropy[~mask])
  assert np.all(logprobs[mask] < 0) and np.all(entropy[mask] > 0)
  assert np.all(entropy[mask] <= np.log(toys.VOCAB) + 1e-5)


def test_logprobs_do_not_depend_on_what_follows_the_response():
  policy, _, base = trees()
  prompts, lengths, responses, mask = sampled()
  other = np.where(mask, responses, 7)
  assert not np.array_equal(other, responses)
  plain = measure(policy, base, *sampled())
  again = measure(policy, base, prompts, lengths, other, mask)
  np.testing.assert_array_equal(again[0], plain[0])
  np.testing.assert_array_equal(again[1], plain[1])


def test_rewards_equal_numpy_and_the_layout_of_training():
  """Left-padded prompt + response scores as the right-padded pair does."""
  _, reward, base = trees()
  prompts, lengths, responses, mask = sampled()
  params = params_lib.combine(reward, base)
  found = jax.jit(scoring.make_rewards(BACKBONE))(reward, base, *sampled())
  assert found.shape == (4,) and found.dtype == jnp.float32

  tokens = np.zeros((4, 4 + RESPONSE_LEN), np.int32)
  totals = lengths + mask.sum(axis=1)
  for row, total in enumerate(totals):
    ids = np.concatenate(
      [prompts[row, 4 - lengths[row] :], responses[row, mask[row]]]
    )
    tokens[row, :total] = ids
    last = reference.hidden_states(CONFIG, params, ids, lora_scale=SPEC.scale)[
      -1
    ]
    np.testing.assert_allclose(
      found[row],
      last @ reward["head"]["kernel"] + reward["head"]["bias"],
      rtol=2e-5,
      atol=2e-5,
    )
  score = functools.partial(padded.reward_scores, BACKBONE, max_response=8)
  trained = jax.jit(score)(params, tokens, totals, lengths)
  np.testing.assert_allclose(found, trained, **ACROSS_PROGRAMS)


def test_penalise_unstopped_by_hand():
  found = scoring.penalise_unstopped(
    jnp.array([1.0, -2.0]), jnp.array([True, False]), 0.5
  )
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, [1.0, -2.5])


# All roles at once: `make_scores`.


@functools.cache
def each_alone():
  """Every role in a pass of its own, every response in a row of its own."""
  asked, base = roles_of()
  scores = make_scores(together=(), members=MEMBERS)
  return jax.device_get(scores(asked, {"": base}, *in_groups_of_one()))


def same_scores(found, shape):
  assert found.keys() == each_alone().keys()
  for name, expected in each_alone().items():
    assert found[name].dtype == np.float32
    expected = expected.reshape(
      (MEMBERS, *shape) if name == "reward" else (*shape, RESPONSE_LEN)
    )
    np.testing.assert_allclose(
      found[name], expected, err_msg=name, **ACROSS_PROGRAMS
    )


def test_roles_alone_say_what_their_functions_say():
  """`make_logprobs`, `make_rewards`, and the value by NumPy."""
  asked, base = roles_of()
  found, rows = each_alone(), rows_apart()
  for name in ("anchor", "policy"):
    expected, _ = measure(asked[name], base, *rows)
    np.testing.assert_allclose(
      found[name][:, 0], expected, **ACROSS_PROGRAMS, err_msg=name
    )
  rewards = jax.jit(scoring.make_rewards(BACKBONE, members=MEMBERS))
  np.testing.assert_allclose(
    found["reward"][..., 0],
    rewards(asked["reward"], base, *rows),
    **ACROSS_PROGRAMS,
  )
  prompts, lengths, responses, mask = (array[1] for array in rows)
  ids = np.concatenate([prompts[4 - lengths :], responses[mask]])
  value = params_lib.combine(asked["value"], base)
  hidden = reference.hidden_states(CONFIG, value, ids, lora_scale=SPEC.scale)
  np.testing.assert_allclose(
    found["value"][1, 0][mask],
    hidden[lengths - 1 : -1] @ value["head"]["kernel"] + value["head"]["bias"],
    rtol=2e-5,
    atol=2e-5,
  )


def test_stacked_roles_and_groups_equal_each_alone():
  """Adapters side by side, two responses behind one prompt; 0 where masked."""
  asked, base = roles_of()
  scores = make_scores(together=TOGETHER, members=MEMBERS)
  found = jax.device_get(scores(asked, {"": base}, *grouped()))
  same_scores(found, (4, GROUP))
  mask = grouped()[3]
  for name in ("anchor", "policy", "value"):
    assert not np.any(found[name][~mask]), name
    assert np.all(found[name][mask] != 0), name
  # Equal policy and anchor: equal bits, so that their KL is exactly 0.
  equal = asked | {"anchor": jax.tree.map(np.array, asked["policy"])}
  found = jax.device_get(scores(equal, {"": base}, *grouped()))
  np.testing.assert_array_equal(found["anchor"], found["policy"])


def test_stacked_roles_in_parts_equal_each_alone():
  """One response to a prompt, a part of the batch after the other."""
  asked, base = roles_of()
  scores = make_scores(together=TOGETHER, members=MEMBERS, microbatches=4)
  found = scores(asked, {"": base}, *in_groups_of_one())
  same_scores(jax.device_get(found), (4 * GROUP, 1))


def test_parts_by_length_equal_each_alone():
  """Rows are sorted by their longest response, and go back to their places."""
  asked, base = roles_of()
  scores = make_scores(
    together=TOGETHER, members=MEMBERS, microbatches=2, buckets=(4, 6)
  )
  # Longest responses of 0, 6, 6 and 4 tokens, the second one in one row.
  turned = [np.roll(array, 1, axis=0) for array in grouped()]
  found = jax.device_get(scores(asked, {"": base}, *turned))
  found = {
    name: np.roll(array, -1, axis=1 if name == "reward" else 0)
    for name, array in found.items()
  }
  same_scores(found, (4, GROUP))


@pytest.mark.parametrize(("parts", "buckets"), [(1, [6]), (2, [4, 6])])
def test_parts_by_length_compute_the_columns_of_their_buckets(
  parts, buckets, monkeypatch
):
  """Of two prompts the longest responses have 6 tokens, of the others 4."""
  asked, base = roles_of()
  scores = scoring.make_scores(
    BACKBONE,
    temperature=TEMPERATURE,
    together=(),
    microbatches=parts,
    buckets=(4, 6, 9),
  )
  real, computed = roles.hidden_states, []

  def spy(backbone, params, sequence, **options):
    columns = sequence.tokens.shape[1]
    jax.debug.callback(lambda _: computed.append(columns), sequence.tokens)
    return real(backbone, params, sequence, **options)

  monkeypatch.setattr(roles, "hidden_states", spy)
  prompts, lengths, *responses = grouped()
  wide = [np.pad(x, ((0, 0), (0, 0), (0, 3))) for x in responses]
  given = {"anchor": asked["anchor"]}, {"": base}, prompts, lengths, *wide
  found = jax.block_until_ready(jax.jit(scores)(*given))
  jax.effects_barrier()
  assert sorted(computed) == [4 + GROUP * n for n in buckets]
  expected = each_alone()["anchor"].reshape(4, GROUP, RESPONSE_LEN)
  np.testing.assert_allclose(
    found["anchor"],
    np.pad(expected, ((0, 0), (0, 0), (0, 3))),
    **ACROSS_PROGRAMS,
  )


def test_a_reward_model_on_another_base_is_asked_apart():
  """Beside a stacked anchor; its base and its shape are its own."""
  asked, base = roles_of()
  own = roles.Backbone(toys.config("tiny"), LoraSpec(rank=3, alpha=1.0))
  tree = toys.random_params(own.config, own.lora, head=True, seed=8)
  reward, own_base = params_lib.partition(tree, "lora")
  scores = make_scores(
    together=("anchor", "policy", "value"), reward_backbone=own
  )
  given = {"anchor": asked["anchor"], "reward": reward}
  found = scores(given, {"": base, "reward": own_base}, *grouped())
  expected = jax.jit(scoring.make_rewards(own))(reward, own_base, *rows_apart())
  assert found.keys() == given.keys()
  np.testing.assert_allclose(
    found["reward"].reshape(-1), expected, **ACROSS_PROGRAMS
  )
  np.testing.assert_allclose(
    found["anchor"].reshape(-1, RESPONSE_LEN),
    each_alone()["anchor"][:, 0],
    **ACROSS_PROGRAMS,
  )


def test_with_full_tuning_every_role_is_a_whole_tree():
  """Nothing is stacked, and there is no base."""
  _, base = roles_of()
  tuned = toys.perturbed(base, 0.05)
  scores = make_scores(together=())
  found = scores({"anchor": tuned, "policy": base}, {"": {}}, *grouped())
  for name, tree in (("anchor", tuned), ("policy", base)):
    expected, _ = measure(tree, {}, *rows_apart())
    np.testing.assert_allclose(
      found[name].reshape(-1, RESPONSE_LEN), expected, **ACROSS_PROGRAMS
    )
  assert np.abs(found["anchor"] - found["policy"]).max() > 0.01

"""The stages that several benchmarks run: shapes, batches, full responses."""

import jax
import numpy as np
import pytest

from benchmarks import stages
from configs import reward as reward_config
from configs import rl as rl_config
from perl_jax import sharding
from perl_jax.data.batches.packed_responses import unpack
from tests import toys

VOCAB = 30


def configured(get_config, **fields):
  fields = {"batch_size": 4, "microbatches": 2, "lora.rank": 2} | fields
  return stages.configured(get_config(), prompt_len=5, response_len=3, **fields)


def test_pairs_share_their_prompt_and_have_full_length():
  batch = stages.random_pairs(
    configured(reward_config.get_config),
    toys.config("tiny", vocab_size=VOCAB),
    sharding.make_mesh(data=1, fsdp=1, tensor=1),
  )
  pairs = unpack(batch)
  assert sorted(pairs) == [0, 1, 2, 3]
  for chosen, rejected in pairs.values():
    assert len(chosen) == len(rejected) == 8
    assert chosen[:5] == rejected[:5] and chosen[5:] != rejected[5:]


def test_prompts_differ_by_number_and_by_seed():
  config = configured(rl_config.get_config)
  first, second = (stages.random_prompts(config, VOCAB, k) for k in (1, 2))
  again = stages.random_prompts(config, VOCAB, 1)
  config.seed = 7
  other = stages.random_prompts(config, VOCAB, 1)
  np.testing.assert_array_equal(first.tokens, again.tokens)
  assert np.any(first.tokens != second.tokens)
  assert np.any(first.tokens != other.tokens)
  assert first.tokens.shape == (4, 5) and np.all(first.lengths == 5)


@pytest.mark.nightly
@pytest.mark.parametrize("estimator", ["reinforce", "rloo"])
def test_an_iteration_trains_on_responses_of_full_length(estimator):
  config = configured(
    rl_config.get_config,
    estimator=estimator,
    samples_per_prompt=2,
    **{"value.warmup_steps": 0, "optimizer.warmup_steps": 0},
  )
  start = stages.random_start(toys.config("tiny", vocab_size=VOCAB, max_len=8))
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  with jax.set_mesh(mesh):
    stage = stages.RLIteration(config, start, mesh)
    before = jax.device_get(stage.state.trainable)
    found = stage.run(stages.random_prompts(config, VOCAB), 1)
  after = jax.device_get(stage.state.trainable)
  roles = {"policy", "value"} if estimator == "reinforce" else {"policy"}
  assert set(after) == roles
  assert found["rollout/length"] == 3 and found["rollout/stop_rate"] == 0
  for role in roles:
    changed = jax.tree.map(lambda a, b: np.any(a != b), before, after)
    assert any(jax.tree.leaves(changed[role])), role

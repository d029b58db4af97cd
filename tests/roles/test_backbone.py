"""What the trees of the roles decide: heads and adapters."""

import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles
from tests import toys
from tests.roles import cases


def test_a_new_head_says_zero():
  params = cases.PARAMS | roles.init_head(cases.CONFIG)
  params_lib.require_same_leaves(cases.PARAMS, params, "params")
  _, values = cases.measure(params, *cases.batch())
  assert not np.any(values)


def test_the_tree_decides_whether_an_adapter_runs():
  """A role without an adapter is the base, on the same backbone."""
  _, base = params_lib.partition(cases.PARAMS, "lora")
  assert cases.BACKBONE.module(base).lora.rank == 0
  assert cases.BACKBONE.module(cases.PARAMS).lora == cases.SPEC
  tokens, lengths = cases.right_padded_batch()
  mask = cases.some_targets(lengths)
  found, kept = cases.target_scores(base, tokens, lengths, mask, max_targets=7)
  cases.check_targets(base, found, kept, tokens, mask)


@pytest.mark.parametrize("name", ["tiny", "llama_tiny"])
def test_head_kernel_is_tied_or_its_own(name):
  cfg = toys.config(name)
  params = toys.random_params(cfg)
  kernel = roles.head_kernel(cfg, params)
  assert kernel.shape == (cfg.width, cfg.vocab_size)
  expected = params["embedding"].T if cfg.tied_head else params["lm_head"]
  np.testing.assert_array_equal(kernel, expected)

"""Layers that are split: the same samples, and no copies of them at a token."""

import jax
import numpy as np
import pytest

from perl_jax import roles, sampling
from perl_jax.planning import hlo_text
from perl_jax.sampling import SamplingSpec
from tests import toys
from tests.sampling.test_groups import check_equal, draw
from tests.sampling.test_sampling import LENGTHS, prompts


@pytest.mark.parametrize(
  "fields", [dict(group=2), dict(group=2, slots=4, refill=2)]
)
def test_split_layers_change_no_sample(fields):
  found = draw("gemma3_tiny", split=True, **fields)
  check_equal(found, draw("gemma3_tiny", split=False, **fields))
  assert found.mask.sum() > found.mask.shape[0]


def inside(computations, name, seen):
  """All instructions of a computation and of those that it calls."""
  if name in seen:
    return []
  seen.add(name)
  found = list(computations[name].values())
  for op in tuple(found):
    for called in op.called:
      found += inside(computations, called, seen)
  return found


def shapes_in_the_token_loop(split):
  """(shape, opcode) of all that the loop over tokens computes."""
  # No two of these sizes are alike, but that q and o are square.
  cfg = toys.config("tiny", num_layers=5, mlp_width=40)
  spec = SamplingSpec(response_len=3, stop_ids=(), split=split)
  sample = jax.jit(
    sampling.make_sampler(roles.Backbone(cfg, toys.NO_LORA), spec)
  )
  args = prompts()[0], LENGTHS, np.arange(4, dtype=np.int32)
  text = sample.lower(toys.random_params(cfg), *args, jax.random.key(0))
  computations, entry = hlo_text.parse(text.compile().as_text())
  loops = [
    op
    for op in computations[entry].values()
    if op.opcode == "while" and "s32[4,3]" in op.shape
  ]
  assert len(loops) == 1
  body = inside(computations, loops[0].attribute("body"), set())
  return cfg, [(op.shape.split("{")[0], op.opcode) for op in body]


def copies_of_kernels(split):
  """Values of the shape of a layer's kernel that each token makes anew."""
  cfg, found = shapes_in_the_token_loop(split)
  wide = f"{cfg.width},{cfg.mlp_width}", f"{cfg.mlp_width},{cfg.width}"
  shapes = {f"f32[{one}{size}]" for size in wide for one in ("", "1,")}
  passed_on = {"parameter", "get-tuple-element", "bitcast"}
  # What reads them is there: the test looks at the right loop.
  assert any(shape in shapes for shape, _ in found)
  return [op for shape, op in found if shape in shapes and op not in passed_on]


def test_no_token_copies_a_kernel_out_of_the_stack():
  if jax.default_backend() != "cpu":
    pytest.skip("layers are split on a CPU alone")
  assert copies_of_kernels(split=None) == []
  assert "dynamic-slice" in copies_of_kernels(split=False)

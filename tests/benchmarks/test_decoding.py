"""The products of the bound are those that sampling computes."""

import jax
import pytest

from benchmarks import decoding, speed_arms
from perl_jax import sharding
from perl_jax.models.config import ModelConfig
from perl_jax.planning import flops

ARM = speed_arms.Arm(
  "rloo",
  prompts=2,
  group=2,
  prompt_len=4,
  response_len=3,
  microbatches=1,
  score_microbatches=1,
  model=dict(
    vocab_size=40, num_layers=2, width=16, mlp_width=24, num_heads=4,
    num_kv_heads=2, head_dim=8, max_len=16,
  ),
)  # fmt: skip


def test_products_are_counted_by_hand():
  model = ModelConfig(**ARM.model)
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  with jax.set_mesh(mesh):
    base = speed_arms.start_of(ARM, mesh).role.frozen
    given = decoding.operands(model, base, ARM)
    run = decoding.products(model, ARM.response_len)
    found = flops.matmul_flops(jax.make_jaxpr(run)(given))
  kernels = 16 * (32 + 16 + 16 + 32 + 3 * 24)
  # Scores and their products with values, of 4 heads of 8.
  prompt = 2 * (8 * kernels + 2 * 8 * 4 * 4 * 8)
  step = 2 * (4 * kernels + 2 * 4 * 4 * 10 * 8)
  head = 16 * 40
  expected = 2 * (prompt + 2 * head + 2 * (step + 4 * head))
  assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.nightly
def test_measure_and_its_table():
  found = decoding.measure(ARM, rounds=1)
  assert all(found[part][1] > 0 for part in decoding.PARTS)
  bound = max(found["products"][1], found["reading"][1])
  assert found["share"] == bound / found["sample"][1]
  lines = decoding.table(found).splitlines()
  assert lines[2].startswith("| sample |") and "bound / found" in lines[-1]

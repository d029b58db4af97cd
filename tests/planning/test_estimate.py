"""Chips, and times by hand."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from perl_jax import sharding
from perl_jax.planning import chips, estimate

CHIP = chips.Chip(
  name="toy", kinds=("toy",), hbm_bytes=100.0, flops=1e9, hbm_bandwidth=1e6,
  link_bandwidth=2e6, source="", clock=1e3,
)  # fmt: skip
COST = estimate.Cost(
  argument_bytes=0, temporary_bytes=0, peak_bytes=0, flops=8e9, hbm_bytes=3e6,
  collective_bytes={"all-gather": 1e6, "all-reduce": 3e6}, collectives=1000,
  cycles=5e3, devices=4,
)  # fmt: skip


def test_bounds_and_prediction():
  found = estimate.times_of(COST, CHIP)
  assert found.compute == 8e9 / 4 / 1e9
  assert found.memory == 3.0
  assert found.network == pytest.approx(4e6 / 1e6 + 1000 * 1e-6)
  assert found.chip == 5.0  # cycles over clock
  assert found.step == pytest.approx(5.0 + 1e-3)
  assert found.bound == "network"


def test_without_cycles_the_bounds_decide():
  quiet = dataclasses.replace(COST, cycles=0.0, collective_bytes={})
  quiet = dataclasses.replace(quiet, collectives=0)
  found = estimate.times_of(quiet, CHIP)
  assert (found.step, found.bound) == (3.0, "memory")


def test_the_clock_of_v4_is_the_published_one():
  assert chips.CHIPS["v4"].clock == pytest.approx(1.05e9, rel=0.01)


def test_every_chip_has_a_source_and_its_own_names():
  kinds = [kind for chip in chips.CHIPS.values() for kind in chip.kinds]
  assert len(set(kinds)) == len(kinds)
  for chip in chips.CHIPS.values():
    assert chip.source.startswith("https://")
    # More FLOPs than bytes, and more memory than network, in any second.
    assert chip.flops > 100 * chip.hbm_bandwidth > 200 * chip.link_bandwidth


def test_a_chip_of_two_devices_is_shared():
  devices = [
    types.SimpleNamespace(
      device_kind="TPU v4", coords=(0, 0, place), id=2 * place + core
    )
    for place in range(2)
    for core in range(2)
  ]
  half, whole = chips.device_of(devices), chips.CHIPS["v4"]
  assert half.hbm_bytes == whole.hbm_bytes / 2
  assert half.flops == whole.flops / 2 and half.clock == whole.clock
  assert chips.device_of(devices[::2]) == whole


def test_an_unknown_device_is_none():
  assert chips.device_of(jax.devices()) is None


def test_bytes_on_a_device():
  mesh = sharding.make_mesh(data=2, fsdp=4, tensor=1)

  def leaf(dtype, *spec):
    where = NamedSharding(mesh, P(*spec))
    return jax.ShapeDtypeStruct((8, 16), dtype, sharding=where)

  tree = {
    "split": leaf(jnp.float32, "fsdp"),
    "both": leaf(jnp.bfloat16, ("data", "fsdp")),
    "whole": leaf(jnp.int8),
    "nibbles": leaf(jnp.int4),
    "key": jax.eval_shape(lambda: jax.random.key(0)),
  }
  sizes = 128 * 4 / 4, 128 * 2 / 8, 128, 64, 8
  assert estimate.device_bytes(tree) == sum(sizes)


def test_peak_counts_what_is_donated_once():
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  memory = step.lower(jnp.ones(1000)).compile().memory_analysis()
  assert estimate.peak_bytes(memory) == pytest.approx(4000, abs=64)
  kept = jax.jit(lambda x: x + 1).lower(jnp.ones(1000)).compile()
  peak = estimate.peak_bytes(kept.memory_analysis())
  assert peak == pytest.approx(8000, abs=64)

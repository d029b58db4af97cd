"""Memory and time of a compiled program on a chip: bounds and a prediction.

  compute  FLOPs / devices / peak
  memory   bytes moved / HBM bandwidth
  network  bytes sent / (link bandwidth / 2) + collectives * 1 us
  chip     max(compute, memory, cycles / clock), where the compiler counts
           cycles (TPU)
  step     max(chip, bytes sent / (link bandwidth / 2)) + collectives * 1 us

Assumptions: a device sends while it computes, over half of its links at a time;
the latency of a collective does not overlap; the work is even over the devices.
Host, input pipeline and compilation are not counted.
"""

import dataclasses
from typing import Any

import jax

from perl_jax.planning import chips, flops, hlo

LINKS_IN_USE = 0.5
LATENCY = 1e-6
ASSUMPTIONS = (
  "peak bfloat16 FLOP/s and HBM bandwidth as published",
  "collectives overlap with computation, over half of a chip's links",
  "1 us for each collective",
  "work even over the devices",
  "loops that may stop early run to their end: responses of full length",
  "no time for the host or its input",
)


@dataclasses.dataclass(frozen=True)
class Cost:
  """Cost of one run of a compiled program; all bytes are those of one device.

  Attributes:
    argument_bytes: Bytes of the arguments.
    temporary_bytes: Bytes needed beyond arguments and outputs.
    peak_bytes: Bytes of arguments + outputs + temporaries - donated arguments.
    flops: FLOPs of the matrix products on all devices together; see `flops`.
    hbm_bytes: Bytes read from and written to memory; see `hlo.Moved`.
    collective_bytes: Bytes that a device sends, by kind of collective.
    collectives: Number of collectives.
    cycles: Cycles that the TPU compiler estimates; 0 on other platforms.
    devices: Number of devices that run the program.
  """

  argument_bytes: int
  temporary_bytes: int
  peak_bytes: int
  flops: float
  hbm_bytes: float
  collective_bytes: dict[str, float]
  collectives: int
  cycles: float
  devices: int


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds of one run, by the formulas of the module.

  Attributes:
    compute: Lower bound by the peak rate of matrix products.
    memory: Lower bound by the memory bandwidth.
    network: Lower bound by the links between chips.
    chip: Time of the chip without communication.
    step: Predicted time of the run.
    bound: The largest of "compute", "memory" and "network".
  """

  compute: float
  memory: float
  network: float
  chip: float
  step: float
  bound: str


def cost_of(traced: Any, executable: Any, text: str, devices: int) -> Cost:
  """The cost of a compiled program.

  Args:
    traced: `jitted.trace(...)`.
    executable: The same, lowered and compiled.
    text: Text of the optimised program, `executable.as_text()`.
    devices: Number of devices that run the program.
  """
  memory = executable.memory_analysis()
  moved = hlo.Module(text).moved()
  return Cost(
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    peak_bytes=peak_bytes(memory),
    flops=flops.matmul_flops(traced.jaxpr),
    hbm_bytes=moved.hbm_bytes,
    collective_bytes=dict(moved.collective_bytes),
    collectives=moved.collectives,
    cycles=moved.cycles,
    devices=devices,
  )


def peak_bytes(memory: Any) -> int:
  """Bytes of arguments + outputs + temporaries - aliases of an analysis."""
  return int(
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )


def times_of(cost: Cost, device: chips.Chip) -> Times:
  """Bounds and predicted time of a run, by the formulas of the module."""
  compute = cost.flops / cost.devices / device.flops
  memory = cost.hbm_bytes / device.hbm_bandwidth
  sent = sum(cost.collective_bytes.values())
  sending = sent / (LINKS_IN_USE * device.link_bandwidth)
  waiting = cost.collectives * LATENCY
  chip = max(compute, memory)
  if device.clock:
    chip = max(chip, cost.cycles / device.clock)
  bounds = {
    "compute": compute,
    "memory": memory,
    "network": sending + waiting,
  }
  return Times(
    **bounds,
    chip=chip,
    step=max(chip, sending) + waiting,
    bound=max(bounds, key=bounds.get),
  )


def device_bytes(tree: Any) -> int:
  """Bytes of a tree of (abstract) arrays on one device."""
  total = 0.0
  for leaf in jax.tree.leaves(tree):
    shape = leaf.shape
    if getattr(leaf, "sharding", None) is not None:
      shape = leaf.sharding.shard_shape(shape)
    size = 1
    for n in shape:
      size *= n
    total += size * _itemsize(leaf.dtype)
  return int(total)


def _itemsize(dtype: Any) -> float:
  """Bytes of an element; of a PRNG key those of its data."""
  if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    return 8.0
  if jax.numpy.issubdtype(dtype, jax.numpy.integer):
    return jax.numpy.iinfo(dtype).bits / 8  # int4: half a byte
  return float(dtype.itemsize)

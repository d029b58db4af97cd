"""Memory, peak rates and bandwidths of chips, as their makers publish them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

_GIB = 2**30
_TPU = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator chip.

  Attributes:
    name: Common name, such as "v5e".
    kinds: Names of its devices in JAX (`device_kind`), in lower case.
    hbm_bytes: Memory in bytes.
    flops: Peak rate of dense bfloat16 products, FLOP/s.
    hbm_bandwidth: Bandwidth between memory and chip, bytes/s.
    link_bandwidth: Bandwidth to other chips over all links together in one
      direction, bytes/s; half of what is published for both directions.
    source: Address of the published numbers.
    clock: Clock of a TensorCore in cycles/s, the unit of the TPU compiler's
      estimates: `flops` over the FLOPs of the chip's matrix units in a cycle,
      2^17 (v5e), 2^18 (v4, v5p), 2^19 (v6e) or 2^20 (tpu7x). This gives the
      1.05 GHz that are published for v4 (Jouppi et al. 2023, arXiv:2304.01433).
      None if the chip is not a TPU.
  """

  name: str
  kinds: tuple[str, ...]
  hbm_bytes: float
  flops: float
  hbm_bandwidth: float
  link_bandwidth: float
  source: str
  clock: float | None = None


CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4",
      kinds=("tpu v4",),
      hbm_bytes=32 * _GIB,
      flops=275e12,
      hbm_bandwidth=1228e9,
      link_bandwidth=300e9,
      source=_TPU + "v4",
      clock=275e12 / 2**18,
    ),
    Chip(
      name="v5e",
      kinds=("tpu v5 lite", "tpu v5e"),
      hbm_bytes=16 * _GIB,
      flops=197e12,
      hbm_bandwidth=819e9,
      link_bandwidth=200e9,
      source=_TPU + "v5e",
      clock=197e12 / 2**17,
    ),
    Chip(
      name="v5p",
      kinds=("tpu v5", "tpu v5p"),
      hbm_bytes=95 * _GIB,
      flops=459e12,
      hbm_bandwidth=2765e9,
      link_bandwidth=600e9,
      source=_TPU + "v5p",
      clock=459e12 / 2**18,
    ),
    Chip(
      name="v6e",
      kinds=("tpu v6 lite", "tpu v6e"),
      hbm_bytes=32 * _GIB,
      flops=918e12,
      hbm_bandwidth=1600e9,
      link_bandwidth=400e9,
      source=_TPU + "v6e",
      clock=918e12 / 2**19,
    ),
    Chip(
      name="tpu7x",
      kinds=("tpu7x", "tpu v7x"),
      hbm_bytes=192 * _GIB,
      flops=2307e12,
      hbm_bandwidth=7380e9,
      link_bandwidth=600e9,
      source=_TPU + "tpu7x",
      clock=2307e12 / 2**20,
    ),
    Chip(
      name="A100",
      kinds=("nvidia a100-sxm4-80gb", "nvidia a100 80gb pcie"),
      hbm_bytes=80e9,
      flops=312e12,
      hbm_bandwidth=2039e9,
      link_bandwidth=300e9,
      source=_NVIDIA + "a100/",
    ),
    Chip(
      name="H100",
      kinds=("nvidia h100 80gb hbm3",),
      hbm_bytes=80e9,
      flops=989e12,
      hbm_bandwidth=3350e9,
      link_bandwidth=450e9,
      source=_NVIDIA + "h100/",
    ),
    Chip(
      name="H200",
      kinds=("nvidia h200",),
      hbm_bytes=141e9,
      flops=989e12,
      hbm_bandwidth=4800e9,
      link_bandwidth=450e9,
      source=_NVIDIA + "h200/",
    ),
  )
}


def chip_of(device_kind: str) -> Chip | None:
  """The chip with this `device_kind` in JAX; None if it is not listed."""
  for chip in CHIPS.values():
    if device_kind.lower() in chip.kinds:
      return chip
  return None


def device_of(devices: Sequence[Any]) -> Chip | None:
  """One device's share of a chip; None if the chip is not listed.

  A TPU chip of two TensorCores may be two devices. Devices with the same
  coordinates belong to the same chip.

  Args:
    devices: JAX devices of one kind.
  """
  chip = chip_of(devices[0].device_kind)
  if chip is None:
    return None
  places = {tuple(getattr(d, "coords", (d.id,))) for d in devices}
  share = len(places) / len(devices)
  return dataclasses.replace(
    chip,
    hbm_bytes=chip.hbm_bytes * share,
    flops=chip.flops * share,
    hbm_bandwidth=chip.hbm_bandwidth * share,
    link_bandwidth=chip.link_bandwidth * share,
  )

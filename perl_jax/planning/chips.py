"""What a chip has and can do, as its maker publishes it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

_GIB = 2**30
_TPU = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator.

  Attributes:
    name: As users call it.
    kinds: What JAX calls its devices (`device_kind`), lower case.
    hbm_bytes: Memory.
    flops: Peak of dense bfloat16 products, FLOP/s.
    hbm_bandwidth: Bytes/s between memory and chip.
    link_bandwidth: Bytes/s that it can send to other chips over all its links
      together; half of what is published for both directions.
    source: Where this is published.
    clock: Cycles/s of a TensorCore, which the TPU compiler counts in: `flops`
      over what the matrix units of a chip do in a cycle, 2^17 FLOPs (v4: twice,
      v5p: twice) or 2^19 (v6e; tpu7x: twice). It gives the 1.05 GHz that are
      published for v4 (Jouppi et al. 2023, arXiv:2304.01433). None: not a TPU.
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
  """The chip that JAX calls so; None for one that is not listed."""
  for chip in CHIPS.values():
    if device_kind.lower() in chip.kinds:
      return chip
  return None


def device_of(devices: Sequence[Any]) -> Chip | None:
  """What one of these devices has: its share of a chip; None if not listed.

  A TPU of two TensorCores may be two devices; its chips are told apart by their
  coordinates.
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

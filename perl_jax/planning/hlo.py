"""Bytes that an optimised program moves, read from its HLO text.

XLA's own cost analysis counts the body of a loop once. Here every instruction
counts as often as it runs: the trip count of a loop is the constant that its
condition compares with. A loop that may stop early, as decoding does, counts
as if it did not.

Bytes are those of one device. Values in a TPU's on-chip memory, S(1) in a
layout, move no bytes of HBM; a fusion that reads a slice of an operand counts
the slice; an update in place counts the update.

Reference: XLA's HLO, https://openxla.org/xla/operation_semantics.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping

from perl_jax.planning.hlo_text import (
  Computation,
  Instruction,
  group_size,
  parse,
  shape_bytes,
)

COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
  "collective-permute", "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
# They name values, or wait for them; nothing moves.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
  "conditional", "call", "after-all", "partition-id", "replica-id", "iota",
  "opt-barrier", "domain", "custom-call", "broadcast", "async-update",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_KNOWN_TRIPS = re.compile(r'known_trip_count":?\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass
class Moved:
  """Bytes that one run of a program moves on one device.

  Attributes:
    hbm_bytes: Bytes read from and written to the device's memory.
    collective_bytes: Bytes that the device sends, by kind of collective.
    collectives: Number of collectives that run.
    cycles: The TPU compiler's estimate of the cycles of all instructions,
      without waiting for other devices; 0 where it gives none.
    loops: (name of the operation, trips) of each loop.
  """

  hbm_bytes: float = 0.0
  collective_bytes: dict[str, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )
  collectives: int = 0
  cycles: float = 0.0
  loops: list[tuple[str, int]] = dataclasses.field(default_factory=list)


class Module:
  """A parsed program: its computations, and the bytes that they move."""

  def __init__(self, text: str):
    """Parses `executable.as_text()`; see `hlo_text.parse`."""
    self.computations, self.entry = parse(text)
    self._parts: dict[str, dict[int, float]] = {}

  def moved(self) -> Moved:
    """Totals over the entry computation and all that it calls."""
    total = Moved()
    self._add(total, self.entry, 1)
    return total

  def _add(self, total: Moved, computation: str, times: int) -> None:
    # A collective that is spread over several fusions is in each of them.
    channels: set[str] = set()
    for op in self.computations[computation].values():
      if op.opcode == "while":
        trips = self.trips(op)
        total.loops.append((op.name, trips))
        self._add(total, op.attribute("body"), times * trips)
        continue
      if _kind(op) in COLLECTIVES:
        total.collective_bytes[_kind(op)] += times * self._sent(computation, op)
        total.collectives += times
        continue
      if op.opcode in ("call", "async-start", "conditional"):
        for name in op.called:
          if name in self.computations:
            self._add(total, name, times)
        continue
      if op.opcode == "fusion":
        for kind, size in self._fused(op.attribute("calls"), channels):
          total.collective_bytes[kind] += times * size
          total.collectives += times
      cycles = _CYCLES.search(op.attributes)
      total.cycles += times * (int(cycles.group(1)) if cycles else 0)
      total.hbm_bytes += times * self._moves(computation, op)

  def _fused(self, computation: str, channels: set[str]):
    """(kind, bytes) of collectives in a fusion that are in no earlier one."""
    for op in self.computations.get(computation, {}).values():
      if op.opcode == "fusion":
        yield from self._fused(op.attribute("calls"), channels)
      if _kind(op) in COLLECTIVES:
        channel = _CHANNEL.search(op.attributes)
        name = channel.group(1) if channel else op.name
        if name not in channels:
          channels.add(name)
          yield _kind(op), self._sent(computation, op)

  def trips(self, loop: Instruction) -> int:
    """Largest number of trips of a loop.

    Raises:
      ValueError: Its condition compares with no constant.
    """
    known = _KNOWN_TRIPS.search(loop.attributes)
    if known:
      return int(known.group(1))
    found = list(self._limits(loop.attribute("condition")))
    if not found:
      raise ValueError(
        f"The trip count of {loop.name} is unknown: its condition compares with"
        " no constant."
      )
    return min(found)

  def _limits(self, computation: str) -> Iterator[int]:
    """Constants that a condition says its counter is below."""
    ops = self.computations[computation]
    for op in ops.values():
      for name in op.called:
        if name in self.computations:
          yield from self._inlined(ops, op, name)
      if op.opcode == "compare" and "direction=LT" in op.attributes:
        limit = _constant(ops, op.operands[1])
        if limit is not None:
          yield limit

  def _inlined(self, ops, caller, name) -> Iterator[int]:
    """Of a fused comparison: the constant may be an argument."""
    inside = self.computations[name]
    for op in inside.values():
      if op.opcode != "compare" or "direction=LT" not in op.attributes:
        continue
      limit = _constant(inside, op.operands[1])
      source = inside.get(op.operands[1])
      if limit is None and source and source.opcode == "parameter":
        limit = _constant(ops, caller.operands[_parameter_index(source)])
      if limit is not None:
        yield limit

  def _moves(self, computation: str, op: Instruction) -> float:
    """Bytes that one run of an instruction reads from and writes to HBM."""
    if op.opcode.endswith("-done"):
      return 0.0
    if op.opcode in _FREE and not _is_kernel(op):
      return 0.0
    ops = self.computations[computation]
    inside = None
    if op.opcode == "fusion":
      inside = self.computations.get(op.attribute("calls"))
    written = shape_bytes(op.shape, hbm=True)
    if op.opcode.endswith("-start"):
      written /= 2  # (operand, result, context)
    read = 0.0
    if inside is None:
      update = op if op.opcode == "dynamic-update-slice" else None
      for position, name in enumerate(op.operands):
        if name not in ops or ops[name].opcode == "constant":
          continue
        size = shape_bytes(ops[name].shape, hbm=True)
        if op.opcode in _SLICES and position == 0:
          size = min(size, shape_bytes(op.shape))
        if update is not None and position == 0:
          size = 0.0
        if op.opcode.endswith("-start"):
          size = min(size, shape_bytes(op.shape) / 2)
        read += size
      if update is not None:
        written = min(written, read)
      return read + written
    used = self._used(op.attribute("calls"))
    for position, name in enumerate(op.operands):
      if name in ops:
        size = shape_bytes(ops[name].shape, hbm=True)
        read += min(size, used.get(position, size))
    for update, whole in _updates(inside):
      written -= max(min(whole, written) - update, 0.0)
    return read + max(written, 0.0)

  def _used(self, fused: str) -> dict[int, float]:
    """Bytes that a fusion reads of each operand of which it reads a part."""
    if fused not in self._parts:
      inside = self.computations.get(fused, {})
      parts = {
        _parameter_index(op): self._part(inside, op.name)
        for op in inside.values()
        if op.opcode == "parameter"
      }
      self._parts[fused] = {k: v for k, v in parts.items() if v is not None}
    return self._parts[fused]

  def _part(self, inside: Computation, name: str) -> float | None:
    """Bytes of a value that its users read; None if one reads all of it."""
    total = 0.0
    for op in inside.values():
      for position, operand in enumerate(op.operands):
        if operand != name:
          continue
        part = None
        if op.opcode in _SLICES and position == 0:
          part = shape_bytes(op.shape)
        elif op.opcode == "dynamic-update-slice" and position == 0:
          part = 0.0
        elif op.opcode == "bitcast" and not op.root:
          part = self._part(inside, op.name)
        elif op.opcode == "fusion":
          part = self._used(op.attribute("calls")).get(position)
        if part is None:
          return None
        total += part
    return total

  def _sent(self, computation: str, op: Instruction) -> float:
    """Bytes that a device sends in one run of a collective.

    With n devices in a group and S bytes in the whole array, on a ring:

      all-gather, reduce-scatter, all-to-all  S (n - 1) / n
      all-reduce                              2 S (n - 1) / n
      permute, broadcast                      S
    """
    ops = self.computations[computation]
    size = sum(shape_bytes(ops[n].shape) for n in op.operands if n in ops)
    kind, n = _kind(op), group_size(op.attributes)
    if kind in ("collective-permute", "collective-broadcast"):
      return size
    if kind == "all-gather":
      return size * (n - 1)
    return size * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def _kind(op: Instruction) -> str:
  return op.opcode.removesuffix("-start")


def _constant(ops: Mapping[str, Instruction], name: str) -> int | None:
  op = ops.get(name)
  while op is not None and op.opcode in ("copy", "bitcast", "convert"):
    op = ops.get(op.operands[0])
  if op is None or op.opcode != "constant":
    return None
  found = re.match(r"\((-?\d+)\)", op.attributes)
  return int(found.group(1)) if found else None


def _parameter_index(op: Instruction) -> int:
  return int(re.match(r"\((\d+)\)", op.attributes).group(1))


def _is_kernel(op: Instruction) -> bool:
  return op.opcode == "custom-call" and "tpu_custom_call" in op.attributes


def _updates(
  inside: Mapping[str, Instruction],
) -> Iterator[tuple[float, float]]:
  """(bytes of the update, of the whole) where a fusion writes in place."""
  for op in inside.values():
    if op.opcode == "dynamic-update-slice" and op.operands[1] in inside:
      update = inside[op.operands[1]]
      yield shape_bytes(update.shape), shape_bytes(op.shape)

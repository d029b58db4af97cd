"""The text of an optimised HLO program as instructions.

Reference: XLA's HLO, https://openxla.org/xla/operation_semantics.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {
  "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16,
  "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64,
  "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*->.*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: Name of the value that it defines.
    opcode: Name of the operation, such as "fusion".
    shape: Shape of the value as text, with layout.
    operands: Names of the values that it reads.
    attributes: The rest of the line.
    root: Whether its value is the result of the computation.
  """

  name: str
  opcode: str
  shape: str
  operands: tuple[str, ...]
  attributes: str
  root: bool

  @property
  def called(self) -> tuple[str, ...]:
    """Names of the computations that it calls."""
    return tuple(_CALLED.findall(self.attributes))

  def attribute(self, name: str) -> str:
    """The computation that the attribute `name` refers to, or ""."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
    return found.group(1) if found else ""


def shape_bytes(shape: str, *, hbm: bool = False) -> float:
  """Bytes of a shape, summed over the parts of a tuple.

  Args:
    shape: Shape as text, with layout.
    hbm: Whether to count only parts that lie in the device's main memory.
  """
  total = 0.0
  for dtype, sizes, layout in _SHAPE.findall(shape):
    if hbm and re.search(r"S\([1-9]", layout):
      continue
    bits = _BITS.get(dtype, 8 if dtype.startswith("f8") else 0)
    total += math.prod(int(n) for n in sizes.split(",") if n) * bits / 8
  return total


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """Returns (computations by name, name of the entry computation).

  Args:
    text: `executable.as_text()`.

  Raises:
    ValueError: There is no entry computation in it.
  """
  computations: dict[str, Computation] = {}
  entry = ""
  current: Computation | None = None
  for line in _whole_lines(text):
    if current is None:
      header = _HEADER.match(line)
      if header:
        current = computations.setdefault(header.group(2), {})
        if header.group(1):
          entry = header.group(2)
    elif line == "}":
      current = None
    elif " = " in line:
      instruction = _parse(line)
      current[instruction.name] = instruction
  if not entry:
    raise ValueError("No ENTRY computation: this is not the text of an HLO.")
  return computations, entry


def _whole_lines(text: str) -> Iterator[str]:
  """Lines, with those that a kernel's metadata breaks put together again."""
  whole = ""
  for line in text.splitlines():
    if line == "}" or line.startswith(("  ", "%", "ENTRY ")):
      yield whole
      whole = line
    else:
      whole += line
  yield whole


def _parse(line: str) -> Instruction:
  left, right = line.split(" = ", 1)
  name = left.strip().removeprefix("ROOT ").lstrip("%")
  end = _closing(right, 0) + 1 if right[0] == "(" else right.index(" ")
  shape, rest = right[:end], right[end:].lstrip()
  start = rest.index("(")
  close = _closing(rest, start)
  operands = re.findall(r"%([\w.\-]+)", rest[start : close + 1])
  opcode, attributes = rest[:start], rest[close + 1 :]
  if opcode in ("constant", "parameter"):
    attributes = rest[start : close + 1] + attributes
  root = left.lstrip().startswith("ROOT ")
  return Instruction(name, opcode, shape, tuple(operands), attributes, root)


def _closing(text: str, start: int) -> int:
  depth = 0
  for position in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[position], 0)
    if depth == 0:
      return position
  raise ValueError(f"Unbalanced parentheses: {text[:80]!r}")


def group_size(attributes: str) -> int:
  """Number of devices in a group of a collective; 1 if it names none."""
  found = _GROUPS.search(attributes)
  if found:
    return int(found.group(2))
  on_mesh = _MESH_GROUPS.search(attributes)
  if on_mesh:  # replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}
    axes = dict(re.findall(r"'([^']+)'=(\d+)", on_mesh.group(1)))
    names = re.findall(r"'([^']+)'", on_mesh.group(2))
    return math.prod(int(axes[name]) for name in names)
  listed = _LISTED_GROUPS.search(attributes)
  if listed and listed.group(1):
    return len(listed.group(1).split(","))
  return 1

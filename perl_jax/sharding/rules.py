"""Path rules for the sharding of each leaf, and the two layouts."""

import re
from typing import Any, NamedTuple

from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
HEAD_AXIS = "tensor"


class Layout(NamedTuple):
  """Mesh axes that activations `[B, T, width]` are split over.

  Attributes:
    rows: Axes of `B`, between the layers.
    widths: Axes of the output of a kernel (heads, the MLP's width, the
      vocabulary), and of the kernel's own output dimension.
  """

  rows: tuple[str, ...]
  widths: tuple[str, ...]

  @property
  def model(self) -> tuple[str, ...]:
    """Axes that the model width `D` of the parameters is split over."""
    return () if "fsdp" in self.widths else ("fsdp",)


TRAIN = Layout(rows=BATCH_AXES, widths=("tensor",))
# "tensor" is the outer of the two: a device's columns are some of those that
# it has in training, so that only devices of one "fsdp" group exchange any.
DECODE = Layout(rows=("data",), widths=("tensor", "fsdp"))

# First match wins. Patterns are searched for in "layers/attention/q/kernel";
# paths under "layers/" have a leading layer axis.
RULES: tuple[tuple[str, P], ...] = (
  (r"(^|/)embedding$", P("tensor", "fsdp")),
  (r"(^|/)lm_head$", P("fsdp", "tensor")),
  (r"/(q|k|v|gate|up)/kernel(/qvalue)?$", P(None, "fsdp", "tensor")),
  (r"/(o|down)/kernel(/qvalue)?$", P(None, "tensor", "fsdp")),
  # Scales of a quantised kernel: one for a block of inputs, so few.
  (r"/(q|k|v|gate|up)/kernel/scale$", P(None, None, "tensor")),
  (r"/(o|down)/kernel/scale$", P(None, None, "fsdp")),
  (r"/(q|k|v|gate|up)/bias$", P(None, "tensor")),
  (r"/(o|down)/bias$", P()),
  # Adapters are thousands of times smaller than what they adapt.
  (r"/lora_[ab]$", P()),
  (r"norm/scale$", P()),
  (r"(^|/)head/(kernel|bias|likelihood)$", P()),
  (r"(^|/)(count|step|mini_step|gradient_step|beta)$", P()),
)


def path_string(path: tuple[Any, ...]) -> str:
  """A key path as "layers/attention/q/kernel"."""
  return "/".join(
    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    for k in path
  )


def spec_for(path: str, ndim: int) -> P:
  """The `PartitionSpec` of one leaf in the layout of training.

  Raises:
    ValueError: No rule matches the path.
  """
  for pattern, spec in RULES:
    if re.search(pattern, path):
      return spec if ndim >= len(spec) else P()
  raise ValueError(
    f"No sharding rule matches {path!r}; add one to sharding.RULES."
  )

"""The device mesh, and path rules that give each leaf its sharding on it.

Axes: "data" (batch), "fsdp" (batch and parameters), "tensor" (widths). One
device is the mesh (1, 1, 1) and needs no special case.

Parameters have two layouts. In `TRAIN` a kernel is split over "fsdp" along the
width of the model and gathered where it is used, which is cheap beside the
compute of many tokens. With one token a row, as in decoding, gathering would
take most of the time: in `DECODE` each device of "fsdp" and "tensor" keeps its
columns of a kernel, and the activations are gathered instead.
"""

from perl_jax.sharding.layout import (
  constrain,
  fitting,
  gather,
  gathers,
  reshard,
  shards,
  spec_in,
)
from perl_jax.sharding.lengths import Lengths, parts_by_length
from perl_jax.sharding.placing import (
  held_shards,
  local_rows,
  make_mesh,
  place,
  place_batch,
  place_whole,
  shardings,
  strided_parts,
)
from perl_jax.sharding.rules import (
  AXES,
  BATCH_AXES,
  DECODE,
  HEAD_AXIS,
  RULES,
  TRAIN,
  Layout,
  path_string,
  spec_for,
)

__all__ = [
  "AXES",
  "BATCH_AXES",
  "DECODE",
  "HEAD_AXIS",
  "RULES",
  "TRAIN",
  "Layout",
  "Lengths",
  "constrain",
  "fitting",
  "gather",
  "gathers",
  "held_shards",
  "local_rows",
  "make_mesh",
  "parts_by_length",
  "path_string",
  "place",
  "place_batch",
  "place_whole",
  "reshard",
  "shardings",
  "shards",
  "spec_for",
  "spec_in",
  "strided_parts",
]

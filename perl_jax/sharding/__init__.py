"""The mesh, and path rules that say how each leaf is laid out on it.

Axes: "data" (batch), "fsdp" (batch and parameters), "tensor" (widths). One
device is the mesh (1, 1, 1), so that nothing is special about it.

Parameters have two layouts. In that of training a kernel is split over "fsdp"
along the width of the model and gathered where it is used: a little beside what
many tokens compute with it. One token a row, as in decoding, computes so little
that gathering takes most of the time: there all devices of "fsdp" and "tensor"
keep their columns of a kernel, and what they compute is gathered instead.
"""

from perl_jax.sharding.layout import (
  constrain,
  fitting,
  gather,
  gathers,
  lay_out,
  shards,
  spec_in,
)
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
  "constrain",
  "fitting",
  "gather",
  "gathers",
  "held_shards",
  "lay_out",
  "local_rows",
  "make_mesh",
  "path_string",
  "place",
  "place_batch",
  "place_whole",
  "shardings",
  "shards",
  "spec_for",
  "spec_in",
  "strided_parts",
]

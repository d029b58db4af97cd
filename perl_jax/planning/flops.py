"""Matrix-product FLOPs of a traced function, loops multiplied out.

They are counted in the jaxpr, before any compiler: 2 m n k for a product of
`[m, k]` and `[k, n]`, times the batch dimensions, times the trips of the loops
around it. Recomputation (`jax.checkpoint`) is in the jaxpr and so is counted. A
`while_loop` counts with its largest number of trips; a kernel (`pallas_call`)
with the size of its grid. Elementwise work is not counted.
"""

import math
from typing import Any

import jax.extend.core


def matmul_flops(jaxpr: Any) -> float:
  """FLOPs of all devices together.

  Args:
    jaxpr: `jitted.trace(...).jaxpr`.

  Raises:
    ValueError: A `while_loop` has a condition that compares with no constant.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # of a closed jaxpr
  return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracting, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracting)
    return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
  if name == "scan":
    return params["length"] * matmul_flops(params["jaxpr"])
  if name == "while":
    return _limit(params) * matmul_flops(params["body_jaxpr"])
  if name == "cond":
    return max(matmul_flops(branch) for branch in params["branches"])
  if name == "shard_map":
    return _shards(params) * matmul_flops(params["jaxpr"])
  if name == "pallas_call":
    grid = [n for n in params["grid_mapping"].grid if isinstance(n, int)]
    return math.prod(grid) * matmul_flops(params["jaxpr"])
  return sum(
    matmul_flops(inner) for inner in jax.extend.core.jaxprs_in_params(params)
  )


def _limit(params: Any) -> int:
  """What a counter in the condition of a `while_loop` has to stay below."""
  condition = params["cond_jaxpr"].jaxpr
  found = [
    int(equation.invars[1].val)
    for equation in condition.eqns
    if equation.primitive.name == "lt" and hasattr(equation.invars[1], "val")
  ]
  if not found:
    raise ValueError(
      "A while_loop's condition compares with no constant: its FLOPs are"
      " unknown."
    )
  return min(found)


def _shards(params: Any) -> int:
  """Devices that a `shard_map` runs different parts on."""
  mesh = params["mesh"]
  named = {
    name
    for spec in (*params["in_specs"], *params["out_specs"])
    for axes in spec
    if axes is not None
    for name in (axes if isinstance(axes, tuple) else (axes,))
  }
  return math.prod(size for name, size in mesh.shape.items() if name in named)

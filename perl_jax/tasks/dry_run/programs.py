"""The programs of a stage, from abstract arrays.

Each command gives its own (`programs(abstract)`), put together from the very
functions that its `run` calls, so that what is compiled for a plan is what
training compiles.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from perl_jax import sharding
from perl_jax.planning import estimate
from perl_jax.tasks.training.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function of a training step.

  Attributes:
    name: "sample", "score", "learn", ...
    function: The function of the task.
    args: Abstract arrays to call it with.
    uses: Names of the trees of `StagePrograms.held` that are among them.
    runs: Number of calls in a step.
  """

  name: str
  function: Compiled
  args: tuple[Any, ...]
  uses: tuple[str, ...]
  runs: int = 1


@dataclasses.dataclass(frozen=True)
class StagePrograms:
  """What a stage keeps in memory all the time, and the programs that it runs.

  Attributes:
    name: Name of the task.
    mesh: Mesh that the trees are laid out on.
    held: Trees that are in memory whichever program runs, by name: "base", the
      roles, "optimizer".
    make_programs: Returns the programs; see `programs`.
    cache: KV cache of the sampling program, or None without one.
  """

  name: str
  mesh: Mesh
  held: Mapping[str, Any]
  make_programs: Callable[[], Sequence[Program]]
  cache: Any = None

  def programs(self) -> Sequence[Program]:
    """The programs of a training step, in the order of their calls."""
    with jax.set_mesh(self.mesh):
      return self.make_programs()

  def held_bytes(self) -> dict[str, int]:
    """Bytes on one device, by the names of `held`."""
    return {k: estimate.device_bytes(tree) for k, tree in self.held.items()}

  def cache_bytes(self) -> int:
    """Bytes of the KV cache on one device; see `kv_cache.init_cache`."""
    if self.cache is None:
      return 0
    keys = self.cache.keys
    with jax.set_mesh(self.mesh):
      spec = sharding.fitting(
        P(None, sharding.BATCH_AXES, None, sharding.HEAD_AXIS), keys.shape[:4]
      )
    where = NamedSharding(self.mesh, spec)
    laid_out = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=where)
    return 2 * estimate.device_bytes(laid_out)

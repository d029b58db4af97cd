"""Functions compiled ahead of their first call, one executable per shape.

Beside running, this tells what a stage costs: seconds spent compiling, the
compiler's own estimate of peak memory, which is what the paper compares, and
the FLOPs of the matrix products.
"""

import ctypes
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from perl_jax.planning import estimate, flops
from perl_jax.reporting import phases
from perl_jax.tasks.training import watch


@dataclasses.dataclass
class _Program:
  """The function for one set of shapes, its arguments' shapes, its calls."""

  function: Callable[..., Any]
  arguments: Any
  calls: int = 0
  flops: float | None = None


class Compiled:
  """A jitted function that compiles once for each set of argument shapes.

  A donated argument, the state of a step, comes back as the first of two
  results. It keeps its sharding, so that it can be given to the next call.

  Attributes:
    name: Name of the function in messages.
    compile_seconds: Seconds spent lowering and compiling so far.
    peak_bytes: Largest compiler estimate over all shapes, of arguments, outputs
      and temporaries, less what is donated. 0 before the first call.
  """

  def __init__(
    self, fn: Callable[..., Any], *, name: str, donate: tuple[int, ...] = ()
  ):
    self._fn, self._donate = fn, donate
    self.name = name
    self.compile_seconds = 0.0
    self.peak_bytes = 0
    self._programs: dict[Any, _Program] = {}

  @property
  def traces(self) -> int:
    """Number of executables, one for each set of shapes."""
    return len(self._programs)

  def __call__(self, *args: Any) -> Any:
    """Runs the function, compiling it first for shapes it has not seen.

    Raises:
      watch.Stop: A loop is under way and is to stop, and the function has not
        been compiled yet. Nothing was run, and nothing donated.
    """
    leaves, tree = jax.tree.flatten(args)
    key = tree, tuple((x.shape, x.dtype) for x in leaves)
    if key not in self._programs:
      self._programs[key] = self._compile(args)
    program = self._programs[key]
    program.calls += 1
    return program.function(*args)

  def jitted(self, *args: Any) -> Any:
    """The jitted function for such arguments, real or abstract arrays.

    `jitted(*args).trace(*args).lower().compile()` is what a call would run.
    """
    layout = None
    if self._donate:
      # Left to itself, the compiler would choose one that the state never had.
      (state,) = (args[i] for i in self._donate)
      layout = jax.tree.map(lambda x: getattr(x, "sharding", None), state), None
    return jax.jit(self._fn, donate_argnums=self._donate, out_shardings=layout)

  def shapes(self, *args: Any) -> Any:
    """The results of a call with such arguments, as abstract arrays."""
    return jax.eval_shape(self._fn, *args)

  def flops_run(self) -> float:
    """FLOPs of the matrix products of all calls so far, over all devices.

    Counted in the traced program (`planning.flops`), so that what is recomputed
    for a backward pass counts again.
    """
    total = 0.0
    for program in self._programs.values():
      if program.flops is None:
        traced = jax.jit(self._fn).trace(*program.arguments)
        program.flops = flops.matmul_flops(traced.jaxpr)
      total += program.calls * program.flops
    return total

  def _compile(self, args) -> _Program:
    started = time.perf_counter()
    jitted = self.jitted(*args)
    with phases.phase(f"compiling {self.name}"):
      # Traced here: what JAX is told in a `with` is told to one thread.
      lowered = jitted.lower(*args)
      executable = watch.finished(lambda: lowered.compile())
    # The jitted function finds what was just compiled. The executable itself
    # refuses values of four bits that lie on a mesh (JAX 0.10 compares layouts
    # that differ in name alone).
    self.compile_seconds += time.perf_counter() - started
    return_freed_memory()
    memory = executable.memory_analysis()
    if memory is not None:
      self.peak_bytes = max(self.peak_bytes, estimate.peak_bytes(memory))
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args
    )
    return _Program(jitted, shapes)


def return_freed_memory() -> None:
  """Gives memory that was freed back to the system, where glibc is used.

  XLA's compiler frees hundreds of MB in small pieces, which glibc would keep
  beside what the program then takes.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)

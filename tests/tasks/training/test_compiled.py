"""One executable per shape, and what it costs."""

import contextlib
import ctypes
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import process
from perl_jax import sharding
from perl_jax.tasks.training import compiled as compiled_lib
from perl_jax.tasks.training import watch as watch_lib
from perl_jax.tasks.training.compiled import Compiled
from tests.tasks.training.test_loop import watch_of


def test_compiles_once_for_each_shape():
  traces = []

  def double(tree):
    traces.append(tree["x"].shape)
    return tree["x"] * 2

  compiled = Compiled(double, name="double")
  assert (compiled.traces, compiled.peak_bytes) == (0, 0)
  for size in (3, 3, 5, 3, 5):
    value = np.arange(size, dtype=np.float32)
    np.testing.assert_array_equal(compiled({"x": value}), value * 2)
  assert traces == [(3,), (5,)] and compiled.traces == 2
  seconds = compiled.compile_seconds
  assert seconds > 0
  compiled({"x": jnp.arange(5, dtype=jnp.float32)})
  assert compiled.compile_seconds == seconds
  compiled({"x": np.arange(5, dtype=np.int32)})  # a dtype is part of a shape
  assert compiled.traces == 3


def test_optional_arguments_are_part_of_the_shape():
  compiled = Compiled(lambda x, key: x if key is None else -x, name="maybe")
  one = np.ones(1, np.float32)
  assert compiled(one, None) == 1 and compiled(one, one) == -1
  assert compiled.traces == 2


def test_donates_what_it_is_told():
  compiled = Compiled(
    lambda state, x: (state + x, x.sum()), name="step", donate=(0,)
  )
  state, x = jnp.ones(1000), jnp.ones(1000)
  compiled(state, x)
  assert state.is_deleted() and not x.is_deleted()


def test_state_comes_back_as_it_was_laid_out():
  """Else the second call would be refused, or compiled anew."""
  mesh = sharding.make_mesh(data=4, fsdp=2, tensor=1)
  spread = NamedSharding(mesh, PartitionSpec("fsdp"))
  whole = NamedSharding(mesh, PartitionSpec())
  with jax.set_mesh(mesh):
    state = {
      "kernel": jax.device_put(np.ones((8, 8), np.float32), spread),
      "scale": jax.device_put(np.ones(8, np.float32), whole),
    }

    def step(state, x):
      # What follows from a sharded operand is sharded like it.
      scale = state["scale"] + state["kernel"].sum(axis=1)
      return {"kernel": state["kernel"] * x, "scale": scale}, scale.sum()

    compiled = Compiled(step, name="step", donate=(0,))
    for _ in range(3):
      state, total = compiled(state, jnp.float32(2.0))
  assert compiled.traces == 1
  assert state["kernel"].sharding == spread and state["scale"].sharding == whole
  assert float(total) == 8 * (1 + 8 * (1 + 2 + 4))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.uint4])
def test_is_compiled_no_second_time_to_run(dtype):
  """Neither on a mesh, nor with values of four bits, nor with a donated state.

  JAX says of each compilation how long it took.
  """
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  layout = NamedSharding(mesh, PartitionSpec())
  frozen = jax.device_put(np.arange(8).astype(dtype), layout)
  state = jax.device_put(np.zeros(8, np.float32), layout)
  compiled = Compiled(
    lambda state, x: (state + x.astype(jnp.float32), jnp.sum(state)),
    name="step",
    donate=(0,),
  )
  durations = []

  def listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      durations.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    with jax.set_mesh(mesh):
      for _ in range(3):
        state, total = compiled(state, frozen)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert len(durations) == 1
  assert float(total) == 2 * 28


def test_peak_counts_what_is_donated_once():
  """1,000 float32 that are updated in place, or in a second array."""

  def step(x):
    return x * 2.0 + 1.0, jnp.zeros(())

  kept, donated = (
    Compiled(step, name="step", donate=donate) for donate in ((), (0,))
  )
  kept(jnp.ones(1000))
  donated(jnp.ones(1000))
  assert kept.peak_bytes >= 8_000
  assert kept.peak_bytes - donated.peak_bytes == 4_000


def test_peak_is_that_of_the_largest_shape():
  big = Compiled(lambda x: x + 1, name="big")
  big(jnp.ones(10))
  small = big.peak_bytes
  big(jnp.ones(100_000))
  assert big.peak_bytes > small
  top = big.peak_bytes
  big(jnp.ones(11))
  assert big.peak_bytes == top


def test_errors_of_the_function_come_through():
  def fail(x):
    raise ValueError("batch of 3")

  with pytest.raises(ValueError, match="batch of 3"):
    Compiled(fail, name="fail")(jax.numpy.ones(3))


def fragmented(count, size):
  """Small blocks freed below one that is in use, which is returned.

  What lies on top of a heap goes back to the system by itself.
  """
  libc = ctypes.CDLL(None)
  libc.malloc.restype = ctypes.c_void_p
  libc.free.argtypes = [ctypes.c_void_p]
  blocks = [libc.malloc(ctypes.c_size_t(size)) for _ in range(count)]
  for block in blocks:
    ctypes.memset(block, 1, size)
  for block in blocks[:-1]:
    libc.free(block)
  return lambda: libc.free(blocks[-1])


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library"
)
def test_compiling_leaves_no_freed_memory_behind(as_shipped):
  size, count = 2**14, 2**12
  compiled = Compiled(lambda x: x + 1, name="add")
  compiled(np.ones(2, np.float32))
  before = process.status_bytes("VmRSS")
  free_last = fragmented(count, size)
  kept = process.status_bytes("VmRSS") - before
  compiled(np.ones(3, np.float32))
  left = process.status_bytes("VmRSS") - before
  free_last()
  assert kept > 0.9 * size * count and left < 0.5 * kept


def test_other_c_libraries_are_left_alone(as_shipped, monkeypatch):
  monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
  compiled_lib.return_freed_memory()


def test_compiling_is_a_phase_once_for_each_shape(monkeypatch):
  shown = []

  def phase(name):
    shown.append(name)
    return contextlib.nullcontext()

  monkeypatch.setattr(compiled_lib.phases, "phase", phase)
  function = Compiled(lambda x: 2 * x, name="doubling")
  for width in (2, 3, 2):
    function(np.ones(width))
  assert shown == ["compiling doubling"] * 2


class Compiler:
  """Compiles nothing before it is told to: as with a large model."""

  def __init__(self, monkeypatch):
    self.begun, self.go_on = threading.Event(), threading.Event()
    self.threads, real = [], jax.stages.Lowered.compile

    def compile_(lowered, *args, **options):
      self.threads.append(threading.current_thread())
      self.begun.set()
      self.go_on.wait(20)
      return real(lowered, *args, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)


@pytest.fixture
def compiler(monkeypatch):
  made = Compiler(monkeypatch)
  monkeypatch.setattr(
    watch_lib.signals, "told", lambda: "SIGTERM" if made.begun.is_set() else ""
  )
  yield made
  made.go_on.set()
  for thread in made.threads:
    if thread is not threading.main_thread():
      thread.join()


def counting():
  return Compiled(
    lambda state, x: (state + x, x.sum()), name="step", donate=(0,)
  )


def test_a_stop_does_not_wait_for_the_compiler(compiler):
  """The state is whole, and what was compiling need not be done."""
  compiled, state = counting(), jnp.ones(8)
  with watch_lib.kept_by(watch_of()):
    with pytest.raises(watch_lib.Stop, match="SIGTERM"):
      compiled(state, jnp.ones(8))
    assert not compiler.go_on.is_set() and compiled.traces == 0
  assert not state.is_deleted()
  assert all(thread.daemon for thread in compiler.threads)


def test_what_has_begun_to_learn_waits_for_the_compiler(compiler):
  """Another state is there already, and no whole one."""
  compiled = counting()
  compiler.go_on.set()
  with watch_lib.kept_by(watch_of()), watch_lib.unbroken():
    _, total = compiled(jnp.ones(8), jnp.ones(8))
  assert float(total) == 8.0 and compiled.traces == 1


def test_a_loop_that_is_not_stopped_compiles_once(monkeypatch):
  """The thread's executable is the one that runs, and its errors are raised."""
  monkeypatch.setattr(watch_lib.signals, "told", lambda: "")
  with watch_lib.kept_by(watch_of()):
    test_is_compiled_no_second_time_to_run(jnp.float32)
    test_is_compiled_no_second_time_to_run(jnp.uint4)
    test_state_comes_back_as_it_was_laid_out()
    test_peak_counts_what_is_donated_once()

    def fails(lowered):
      raise ValueError("no such layout")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fails)
    with pytest.raises(ValueError, match="no such layout"):
      counting()(jnp.ones(8), jnp.ones(8))

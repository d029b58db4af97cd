"""What is this package's own in a process that the user's code runs in, too."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from perl_jax.starting import NAMES

# Settings of JAX that change programs or their numbers.
_SETTINGS = (
  "jax_enable_x64",
  "jax_default_matmul_precision",
  "jax_numpy_dtype_promotion",
  "jax_numpy_rank_promotion",
  "jax_default_device",
  "jax_default_prng_impl",
  "jax_threefry_partitionable",
  "jax_debug_nans",
  "jax_debug_infs",
  "jax_disable_jit",
)
# What the user's code has set of them, for its next call.
_theirs: dict[str, Any] = {}


@contextlib.contextmanager
def put_back() -> Iterator[None]:
  """Puts back what the code may change of the process under this package.

  Relative paths of the config begin where the command was started, a signal has
  to reach the loop, and programs are compiled for the types that they are
  called with. What the code sets of JAX holds in all of its own calls.
  """
  here, handlers, depth = _here(), {}, sys.getrecursionlimit()
  ours = {name: getattr(jax.config, name) for name in _SETTINGS}
  if threading.current_thread() is threading.main_thread():
    numbers = [getattr(signal, n) for n in NAMES if hasattr(signal, n)]
    handlers = {number: signal.getsignal(number) for number in numbers}
  _set(_theirs)
  try:
    with np.errstate():
      yield
  finally:
    sys.setrecursionlimit(depth)
    set_now = {name: getattr(jax.config, name) for name in _SETTINGS}
    _theirs.clear()
    _theirs.update({k: v for k, v in set_now.items() if v != ours[k]})
    _set({name: ours[name] for name in _theirs})
    for number, handler in handlers.items():
      # None: it was not put there by Python.
      if handler is not None and signal.getsignal(number) is not handler:
        signal.signal(number, handler)
    if here and _here() != here:
      with contextlib.suppress(OSError):
        os.chdir(here)


@contextlib.contextmanager
def children_end() -> Iterator[None]:
  """Ends a child that the code has forked, when it comes out of the block.

  It would go on as a second run, in the workdir of the first.
  """
  mine, status = os.getpid(), 0
  try:
    yield
  except BaseException as error:
    if os.getpid() == mine:
      raise
    status = 1
    if isinstance(error, SystemExit):
      status = (
        error.code if isinstance(error.code, int) else int(bool(error.code))
      )
    else:
      traceback.print_exc()
  if os.getpid() != mine:
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
    os._exit(status & 0xFF)


def _set(settings: Mapping[str, Any]) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)


def _here() -> str:
  """The current directory; "" if it has been removed."""
  try:
    return os.getcwd()
  except OSError:
    return ""

"""The processes of a run: joining, waiting, and ending together.

JAX's coordination service, which process 0 hosts, does the work: barriers, and
a small store of keys by which a process that fails tells the others. Whatever
is not told, because a process was killed, is noticed: by a connection that
breaks, or by heartbeats that stay out for `HEARTBEAT_SECONDS`.
"""

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
from orbax.checkpoint import multihost

T = TypeVar("T")

HEARTBEAT_SECONDS = 30
# A download or a tokenizer may take its time; who dies is noticed without it.
_BARRIER_SECONDS = 24 * 3600
_FAILED, _TOLD, _GONE = "perl_jax/failed", "perl_jax/told", "perl_jax/gone"
# Seconds that a process gives the others to hear of an error and to leave.
_GRACE_SECONDS = 5
_LOOK_SECONDS = 1

_barriers = itertools.count()
_ending = threading.Lock()
_undo: list[Callable[[], None]] = []
_failed_here, _over = threading.Event(), threading.Event()


def join(
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout_seconds: int = 300,
) -> None:
  """Joins the other processes of the run; before anything else touches JAX.

  What is None is found by JAX: on TPU VMs and GKE, and under SLURM and Open
  MPI.

  Args:
    coordinator_address: HOST:PORT of process 0, reached by all.
    num_processes: How many there are.
    process_id: Which one this is, from 0.
    timeout_seconds: How long to wait for the others.

  Raises:
    ValueError: Something is missing and cannot be found. If the others are not
      there in time, the process says so and ends.
  """
  given = (
    f"(coordinator_address={coordinator_address}, num_processes="
    f"{num_processes}, process_id={process_id}). Start the same command on"
    " every host; where JAX does not find the others by itself, give"
    " --coordinator_address=HOST:PORT (a free port of process 0, reached by"
    " all), --num_processes and --process_id."
  )

  def give_up():
    _say(
      "error: the other processes could not be joined within"
      f" {timeout_seconds} s {given}"
    )
    os._exit(1)

  # JAX itself would abort, with a stack of C++.
  patience = threading.Timer(timeout_seconds, give_up)
  patience.daemon = True
  patience.start()
  # It would take SIGTERM for a notice, and the process would live on.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      initialization_timeout=timeout_seconds + 60,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (ValueError, TypeError, RuntimeError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(
      f"the other processes could not be joined: {reason} {given}"
    ) from error
  finally:
    patience.cancel()
  if jax.process_count() > 1:
    watch = threading.Thread(target=_watch, name="watch", daemon=True)
    watch.start()

    def leave():
      _over.set()
      watch.join()

    atexit.register(leave)  # runs before what JAX registered: the goodbye


def is_primary() -> bool:
  """Whether this is process 0: the one that writes text."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns once all processes are here.

  They have to come by the same barriers in the same order.
  """
  if jax.process_count() > 1:
    multihost.get_barrier_sync_fn()(
      key=f"perl_jax/{name}/{next(_barriers)}",
      timeout_ms=_BARRIER_SECONDS * 1000,
    )


def on_primary(name: str, act: Callable[[], Any]) -> None:
  """Process 0 acts while the others wait: what writes what all will read."""
  if is_primary():
    act()
  barrier(name)


def primary_first(name: str, make: Callable[[], T]) -> T:
  """All make the same, the others after process 0: what fills a cache."""
  if is_primary():
    found = make()
    barrier(name)
    return found
  barrier(name)
  return make()


def sees(path: Path) -> bool:
  """Whether a file or directory is there, for what another process made.

  A file server is asked anew for a listing; that there is no such name may be
  remembered for a minute.
  """
  return path.parent.is_dir() and path.name in os.listdir(path.parent)


@contextlib.contextmanager
def undone_by_others(act: Callable[[], None]) -> Iterator[None]:
  """Acts before process 0 ends because another has failed within the block.

  What fails here is an exception, and the block's own affair.
  """
  _undo.append(act)
  try:
    yield
  finally:
    _undo.remove(act)


def fail(message: str) -> NoReturn:
  """Ends this process with an error, and the others with it.

  Process 0 writes the message, once, whoever failed first; the others write
  nothing, unless process 0 is gone.
  """
  message = reworded(message)
  if jax.process_count() == 1:
    sys.exit(f"error: {message}")
  _failed_here.set()
  client = multihost.get_jax_distributed_client()
  # Unless another was first, or nobody is left to tell.
  with contextlib.suppress(RuntimeError):
    client.key_value_set(_FAILED, f"{jax.process_index()} {message}")
  _end(client, jax.process_index(), message)


def reworded(message: str) -> str:
  """A broken connection, as what it means."""
  if "Gloo" not in message and "coordination service" not in message:
    return message
  return (
    "another process of the run has ended (killed, out of memory, or its host"
    " lost); its own log may say why. Run the same command again on all hosts"
    f" to go on from the last checkpoint. [{message.splitlines()[0]}]"
  )


def _watch() -> None:
  """Waits for the failure of another process; the thread `join` starts."""
  client = multihost.get_jax_distributed_client()
  found = None
  while found is None:
    if _over.wait(_LOOK_SECONDS):
      return
    with contextlib.suppress(RuntimeError):  # there is no such key yet
      found = client.key_value_try_get(_FAILED)
  who, message = found.split(" ", 1)
  if is_primary() and _failed_here.wait(_GRACE_SECONDS / 2):
    return  # all have failed alike, as with a wrong config: `fail` says so
  _end(client, int(who), message)


def _end(client: Any, who: int, message: str) -> NoReturn:
  """Says what happened, once, and ends the process as it is.

  Leaving by the usual way would wait for processes that wait for this one.
  """
  with _ending:
    mine = jax.process_index()
    said = f"error: {message}"
    if who != mine or (who and mine):
      said = f"error: process {who} of {jax.process_count()}: {message}"
    try:
      if mine == 0:
        _say(said)
        client.key_value_set(_TOLD, "")
        # With process 0 the coordinator goes, and who is still there aborts.
        for other in range(1, jax.process_count()):
          client.blocking_key_value_get(
            f"{_GONE}/{other}", _GRACE_SECONDS * 1000
          )
        time.sleep(_LOOK_SECONDS)  # they leave right after they have said so
      else:
        client.blocking_key_value_get(_TOLD, 2 * _GRACE_SECONDS * 1000)
        client.key_value_set(f"{_GONE}/{mine}", "")
    except RuntimeError:
      if mine:
        _say(said)
    if mine == 0:
      for act in reversed(_undo):
        act()
    os._exit(1)


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
  sys.stdout.flush()

"""The processes of a run: joining, waiting, and ending together.

JAX's coordination service, hosted by process 0, provides barriers and a small
key-value store through which a failing process notifies the others. A process
that was killed cannot notify; the others see a broken connection, or no
heartbeat for `HEARTBEAT_SECONDS`.
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

from perl_jax import starting

T = TypeVar("T")

HEARTBEAT_SECONDS = 30
# A download or a tokenizer may take its time; who dies is noticed without it.
_BARRIER_SECONDS = 24 * 3600
_FAILED, _HEARD, _GONE = "perl_jax/failed", "perl_jax/heard", "perl_jax/gone"
_TOLD = "perl_jax/told"
# Seconds that a process gives the others to hear of an error and to leave.
_GRACE_SECONDS = 5
_LOOK_SECONDS = 1

# Decisions that the coordination service holds for processes that lag behind.
_DECIDED, _KEPT = "perl_jax/decided", 10_000

_barriers, _decisions = itertools.count(), itertools.count()
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
  """Joins the other processes of the run; to be called before JAX is used.

  An argument that is None is found by JAX on TPU VMs and GKE, and under SLURM
  and Open MPI. If the others are not there in time, the process exits with an
  error line.

  Args:
    coordinator_address: HOST:PORT of process 0, reachable by all.
    num_processes: Number of processes of the run.
    process_id: Index of this process, from 0.
    timeout_seconds: How long to wait for the others.

  Raises:
    ValueError: An argument is missing and JAX cannot find it.
  """
  given = (
    f"(coordinator_address={coordinator_address}, num_processes="
    f"{num_processes}, process_id={process_id}). Start the same command on"
    " every host; where JAX does not find the others by itself, give"
    " --coordinator_address=HOST:PORT (a free port of process 0, reached by"
    " all), --num_processes and --process_id."
  )

  def give_up():
    say(
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
    with starting.heard_while_busy():
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
  """Whether this is process 0, which alone writes text files."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until all processes have reached this barrier.

  They have to reach the same barriers in the same order.

  Args:
    name: Name of the barrier, for error messages.
  """
  if jax.process_count() > 1:
    multihost.get_barrier_sync_fn()(
      key=f"perl_jax/{name}/{next(_barriers)}",
      timeout_ms=_BARRIER_SECONDS * 1000,
    )


def on_primary(name: str, act: Callable[[], Any]) -> None:
  """Calls `act` on process 0 while the others wait, to write shared files."""
  if is_primary():
    act()
  barrier(name)


def primary_first(name: str, make: Callable[[], T]) -> T:
  """Calls `make` on process 0 and then on the others, to fill a cache once."""
  if is_primary():
    found = make()
    barrier(name)
    return found
  barrier(name)
  return make()


def decided_by_primary(decide: Callable[[], str]) -> str:
  """What `decide` returns on process 0, on all processes.

  All have to call it, in the same order. What depends on the clock or on a
  signal is decided so: the answer goes through the coordination service, and
  the devices need not wait for each other.
  """
  if jax.process_count() == 1:
    return decide()
  client = multihost.get_jax_distributed_client()
  number = next(_decisions)
  if not is_primary():
    return client.blocking_key_value_get(
      f"{_DECIDED}/{number}", _BARRIER_SECONDS * 1000
    )
  found = decide()
  client.key_value_set(f"{_DECIDED}/{number}", found)
  if number >= _KEPT:  # nobody is so far behind
    client.key_value_delete(f"{_DECIDED}/{number - _KEPT}")
  return found


def sees(path: Path) -> bool:
  """Whether a path exists that another process may have made.

  It lists the directory: a network file system may cache for a minute that a
  name does not exist, but not a listing.
  """
  return path.parent.is_dir() and path.name in os.listdir(path.parent)


@contextlib.contextmanager
def undone_by_others(act: Callable[[], None]) -> Iterator[None]:
  """Calls `act` if process 0 is ended because another failed in the block.

  A failure of this process is an exception, which the block handles itself.
  """
  _undo.append(act)
  try:
    yield
  finally:
    _undo.remove(act)


def fail(message: str) -> NoReturn:
  """Ends all processes of the run with an error; see `end`."""
  end(f"error: {reworded(message)}", 1)


def end(message: str, status: int) -> NoReturn:
  """Ends all processes of the run, by the main thread of one of them.

  Process 0 writes the message, once, whichever process was the first; the
  others write nothing, unless process 0 is gone.

  Args:
    message: What to write on standard error.
    status: Exit status of all processes.
  """
  if jax.process_count() == 1:
    if status == 1:
      sys.exit(message)
    say(message)
    sys.exit(status)
  _end_others(message, status)


def leave(message: str, status: int, *, at_once: bool = False) -> NoReturn:
  """Ends this process as it is, by any thread.

  Args:
    message: What to write on standard error.
    status: Exit status.
    at_once: Whether to let the other processes find out by themselves.
  """
  # JAX is not asked: it would wait for what the main thread is busy with.
  several = _several()
  if several and not at_once:
    _end_others(message, status)
  say(message)
  if not several:
    for act in reversed(_undo):
      act()
  os._exit(status)


def _end_others(message: str, status: int) -> NoReturn:
  _failed_here.set()
  client = multihost.get_jax_distributed_client()
  # Unless another was first, or nobody is left to tell.
  with contextlib.suppress(RuntimeError):
    client.key_value_set(_FAILED, f"{jax.process_index()} {status} {message}")
  _end(client, jax.process_index(), message, status)


def _several() -> bool:
  """Whether there are other processes, without a look at the devices."""
  return multihost.is_jax_distributed_client_initialized()


def pass_on(name: str) -> None:
  """Lets process 0 know, by any thread, that this one was told to stop."""
  if _several():
    client = multihost.get_jax_distributed_client()
    with contextlib.suppress(RuntimeError):  # another has been told already
      client.key_value_set(_TOLD, name)


def passed_on() -> str:
  """What another process was told; "" as long as none was."""
  if jax.process_count() > 1:
    client = multihost.get_jax_distributed_client()
    with contextlib.suppress(RuntimeError):  # there is no such key yet
      return client.key_value_try_get(_TOLD)
  return ""


def reworded(message: str) -> str:
  """The message, or what it means if it is about a broken connection."""
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
  who, status, message = found.split(" ", 2)
  if is_primary() and _failed_here.wait(_GRACE_SECONDS / 2):
    return  # all have failed alike, as with a wrong config: `fail` says so
  _end(client, int(who), message, int(status))


def _end(client: Any, who: int, message: str, status: int) -> NoReturn:
  """Says what happened, once, and ends the process as it is.

  Leaving by the usual way would wait for processes that wait for this one.
  """
  with _ending:
    mine = jax.process_index()
    said = message
    if message.startswith("error: ") and (who != mine or (who and mine)):
      said = message.replace(
        "error: ", f"error: process {who} of {jax.process_count()}: ", 1
      )
    try:
      if mine == 0:
        say(said)
        client.key_value_set(_HEARD, "")
        # With process 0 the coordinator goes, and who is still there aborts.
        for other in range(1, jax.process_count()):
          client.blocking_key_value_get(
            f"{_GONE}/{other}", _GRACE_SECONDS * 1000
          )
        time.sleep(_LOOK_SECONDS)  # they leave right after they have said so
      else:
        client.blocking_key_value_get(_HEARD, 2 * _GRACE_SECONDS * 1000)
        client.key_value_set(f"{_GONE}/{mine}", "")
    except RuntimeError:
      if mine:
        say(said)
    if mine == 0:
      for act in reversed(_undo):
        act()
    os._exit(status)


def say(text: str) -> None:
  """Writes a line on standard error, if anybody is left to read it."""
  with contextlib.suppress(OSError, ValueError):  # the terminal is closed
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()

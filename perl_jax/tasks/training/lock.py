"""One run at a time in a workdir: lock.json says whose it is.

The file names host, process, job and time, and is touched every `BEAT_SECONDS`
while the run lives. Process 0 holds it for all processes of a run. Whoever
finds it goes on by what it says:

  same host, and the process lives      refused
  same host, and the process is dead    taken over
  same job of a scheduler               taken over: it was started again
  another host, seen lately             refused
  another host, not seen for long       taken over
"""

import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from perl_jax import disk, files, hosts
from perl_jax.hosts import signals

LOCK_FILE = "lock.json"
BEAT_SECONDS = 30.0
# What another host has not touched for so long is no run any more.
OLD_SECONDS = 300.0
# Variables in which schedulers name a job, the same when it is started again.
JOBS = ("PERL_JAX_JOB", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")

_DIED = (
  "ended without a word: it was killed, as for want of memory, or code of yours"
  " has called os._exit"
)

_held: set[Path] = set()


@contextlib.contextmanager
def held(workdir: str | Path) -> Iterator[None]:
  """Holds the lock of a workdir, which is made if need be, in the block.

  Raises:
    ValueError: Another run has it; says whose it is and what to do.
  """
  workdir = Path(workdir).absolute()
  if workdir.exists() and not workdir.is_dir():
    yield  # the run says what is wrong with it
    return
  made, path, mine = not workdir.exists(), workdir / LOCK_FILE, myself()
  over = threading.Event()
  release = functools.partial(_release, path, mine, made, over)
  with hosts.undone_by_others(release), _even_if_stopped(release):
    with disk.writing("the run", path.parent):
      hosts.on_primary("lock", functools.partial(_take, path, mine))
    signals.stop_if_told()
    if hosts.is_primary():
      threading.Thread(
        target=_beat, args=(path, mine, over), name="lock", daemon=True
      ).start()
    yield


@contextlib.contextmanager
def _even_if_stopped(release: Callable[[], None]) -> Iterator[None]:
  """Calls `release` on process 0 after the block, wherever a signal comes."""

  def at_end():
    if hosts.is_primary():
      with signals.deferred():
        release()

  try:
    try:
      yield
    finally:
      at_end()
  except signals.Stopped:
    at_end()
    raise


def clear(workdir: str | Path) -> None:
  """Removes the lock that a run left which was killed after its summary."""
  path = Path(workdir).absolute() / LOCK_FILE
  if hosts.is_primary() and path not in _held:
    with contextlib.suppress(ValueError, OSError):
      _take_away(path, myself())


def _take(path: Path, mine: Mapping[str, Any]) -> None:
  if path in _held:
    raise ValueError(refusal(path, mine, 0.0))
  with signals.deferred():  # half of a lock would be nobody's, and stay
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _make(path, mine):
      _take_away(path, mine)
    _held.add(path)


def _take_away(path: Path, mine: Mapping[str, Any]) -> None:
  """Removes a lock whose run has ended.

  Raises:
    ValueError: The run may live.
  """
  try:
    theirs, age = _read(path), time.time() - path.stat().st_mtime
  except FileNotFoundError:
    return  # released a moment ago
  reason = gone(theirs, mine, age)
  if not reason:
    raise ValueError(refusal(path, theirs, age))
  # Of several that find it, one moves it away; it is what was looked at.
  aside = path.with_name(f".{LOCK_FILE}.{mine['token']}")
  with contextlib.suppress(FileNotFoundError):
    path.rename(aside)
    if _read(aside) != theirs:
      aside.rename(path)
      return
    aside.unlink()
    logging.info("%s was left by a run that %s.", path, reason)


def _make(path: Path, mine: Mapping[str, Any]) -> bool:
  """Writes the lock unless there is one."""
  try:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
  except FileExistsError:
    return False
  try:
    with os.fdopen(handle, "w", encoding="ascii") as file:
      file.write(files.json_line(mine))
  except OSError:
    path.unlink()
    raise
  return True


def _read(path: Path) -> dict[str, Any]:
  """What a lock says; nothing if it is damaged or just being written."""
  try:
    found = json.loads(path.read_text(encoding="ascii"))
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _release(
  path: Path, mine: Mapping[str, Any], made: bool, over: threading.Event
) -> None:
  over.set()
  _held.discard(path)
  with contextlib.suppress(OSError):
    if _read(path) == mine:
      path.unlink()
  if made:
    with contextlib.suppress(OSError):
      path.parent.rmdir()  # unless the run has left something


def _beat(path: Path, mine: Mapping[str, Any], over: threading.Event) -> None:
  """Touches the lock; ends the process if it belongs to another run."""
  while not over.wait(BEAT_SECONDS):
    try:
      theirs = _read(path)
      if theirs == mine:
        os.utime(path)
        continue
    except FileNotFoundError:
      theirs = {}
    except OSError as error:
      logging.warning("%s cannot be touched: %s", path, error)
      continue
    if not over.is_set():
      hosts.leave(
        f"error: {path} is not of this run any more: {name(theirs)} has the"
        " workdir. This run ends, and leaves it as it is.",
        1,
      )


def gone(theirs: Mapping[str, Any], mine: Mapping[str, Any], age: float) -> str:
  """Why the run that a lock names is no more; "" if it may live."""
  here = theirs.get("host") == mine["host"]
  if here and theirs.get("boot") != mine["boot"]:
    return "ended when this host was started anew"
  if here and theirs.get("processes") == mine["processes"]:
    mine_once = theirs.get("pid") == mine["pid"]  # and is not held any more
    return _DIED if mine_once or not _lives(theirs) else ""
  if theirs.get("job") and theirs["job"] == mine["job"]:
    return f"was this job ({mine['job']}) before it was started again"
  if age > OLD_SECONDS:
    return f"was last seen {age:.0f} s ago"
  return ""


def refusal(path: str | Path, theirs: Mapping[str, Any], age: float) -> str:
  """Why a workdir is refused, and what to do."""
  workdir = str(path).rpartition("/")[0]
  return (
    f"{workdir} is in use by {name(theirs)}, last seen"
    f" {max(age, 0):.0f} s ago. Two runs in one workdir would destroy each"
    " other: end that one first, or give another --workdir. If it has ended,"
    f" remove {path}; left alone, it is taken over"
    f" {OLD_SECONDS:.0f} s after it was last seen if it is of another host."
  )


def name(who: Mapping[str, Any]) -> str:
  """A process for people, by what its lock says."""
  if not who:
    return "another run"
  job = f", job {who['job']}" if who.get("job") else ""
  return (
    f"process {who.get('pid')} on {who.get('host')}{job}, started"
    f" {who.get('since')}"
  )


def myself() -> dict[str, Any]:
  """What the lock says of this process."""
  jobs = (f"{name}={os.environ[name]}" for name in JOBS if os.environ.get(name))
  return {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "job": next(jobs, ""),
    "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    # Numbers of processes are used again: by others, after a restart, and in
    # containers.
    "started": _started(os.getpid()),
    "boot": _text("/proc/sys/kernel/random/boot_id"),
    "processes": _link("/proc/self/ns/pid"),
    "token": uuid.uuid4().hex,
  }


def _lives(who: Mapping[str, Any]) -> bool:
  pid = who.get("pid")
  if type(pid) is not int or pid < 1:
    return True  # nobody knows
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # of another user
  return _started(pid) == who.get("started")


def _started(pid: int) -> str:
  """When a process started, in ticks of the kernel; "" where it is not told."""
  fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
  if not fields or fields[0] == "Z":  # a dead one that nobody has asked about
    return ""
  return fields[19]


def _text(path: str) -> str:
  try:
    return Path(path).read_text(encoding="utf-8").strip()
  except OSError:
    return ""


def _link(path: str) -> str:
  try:
    return os.readlink(path)
  except OSError:
    return ""

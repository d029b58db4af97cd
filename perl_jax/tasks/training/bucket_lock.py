"""One run at a time in a workdir of a bucket: lock.json, created on condition.

Of several that create an object on the condition that there is none, one alone
succeeds. What the lock says, and when it is taken over, is as in `lock`; an
object cannot be touched, and so `lock.beat.json` is written anew instead.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging

from perl_jax import buckets, files, hosts
from perl_jax.hosts import signals
from perl_jax.tasks.training import lock

# Tokens of the locks of this process.
_held: set[str] = set()
_LOCK, _BEAT, _TIME = lock.LOCK_FILE, "lock.beat.json", "lock.time.json"


@contextlib.contextmanager
def held(address: str) -> Iterator[Callable[[], bool]]:
  """Holds the lock of a workdir in a bucket while the block runs.

  Of the processes of a run the first does, for all. It is given a function that
  says whether the lock is still its own.

  Raises:
    ValueError: Another run has it, or a workdir above or below; says whose it
      is and what to do.
  """
  if not hosts.is_primary():
    yield lambda: True
    return
  store, mine = buckets.Store(address), lock.myself()
  over, releasing = threading.Event(), threading.Lock()

  def release():
    with releasing:  # who comes second waits until it has been done
      _release(store, mine, over)

  try:
    _take(store, mine)
  except signals.Stopped:
    release()
    raise
  with hosts.undone_by_others(release):
    try:
      _refuse_overlap(store, mine)
      threading.Thread(
        target=_beat, args=(store, mine, over), name="bucket lock", daemon=True
      ).start()
      yield lambda: _read(store, _LOCK) == mine
    finally:
      release()


def _take(store: buckets.Store, mine: Mapping[str, Any]) -> None:
  while not store.create(_LOCK, files.json_line(mine).encode()):
    theirs = _read(store, _LOCK)
    if theirs is not None:
      _take_away(store, theirs, mine)
  _held.add(mine["token"])


def _take_away(
  store: buckets.Store, theirs: Mapping[str, Any], mine: Mapping[str, Any]
) -> None:
  """Removes a lock whose run has ended.

  Of several that find it, the one that creates an object with its token does.

  Raises:
    ValueError: The run may live, or another takes the lock over.
  """
  reason = _ended(store, _LOCK, theirs, mine)
  token = theirs.get("token", "")
  mark = f"lock.over.{token if str(token).isalnum() else ''}.json"
  if not store.create(mark, files.json_line(mine).encode()):
    raise ValueError(
      f"{store.address} is being taken over by another run just now. If it is"
      f" not, remove {store.address}/{mark}, and run the command again."
    )
  try:
    if _read(store, _LOCK) == theirs:
      store.remove(_BEAT)
      store.remove(_LOCK)
      logging.info(
        "%s/%s was left by a run that %s.", store.address, _LOCK, reason
      )
  finally:
    store.remove(mark)


def _ended(
  store: buckets.Store,
  name: str,
  theirs: Mapping[str, Any],
  mine: Mapping[str, Any],
) -> str:
  """Why the run of a lock is no more.

  Raises:
    ValueError: It may live.
  """
  beat = f"{name.removesuffix(_LOCK)}{_BEAT}"
  ages = store.ages((name, beat), f"{name.removesuffix(_LOCK)}{_TIME}")
  age = min((age for age in ages if age is not None), default=0.0)
  reason = lock.gone(theirs, mine, age)
  if not reason or theirs.get("token") in _held:
    raise ValueError(lock.refusal(f"{store.address}/{name}", theirs, age))
  return reason


def _refuse_overlap(store: buckets.Store, mine: Mapping[str, Any]) -> None:
  """Checks that no run has a workdir above this one, or below it.

  Raises:
    ValueError: One has.
  """
  for name in store.listed():
    if name.endswith(f"/{_LOCK}"):
      _require_ended(store, name, mine)
  above = store.address.split("/")[:-1]
  while len(above) > 3:
    _require_ended(buckets.Store("/".join(above)), _LOCK, mine)
    above = above[:-1]


def _require_ended(
  store: buckets.Store, name: str, mine: Mapping[str, Any]
) -> None:
  theirs = _read(store, name)
  if theirs is not None and theirs != mine:
    _ended(store, name, theirs, mine)


def _read(store: buckets.Store, name: str) -> dict[str, Any] | None:
  """What a lock says, nothing if it is damaged; None if there is none."""
  content = store.read(name)
  try:
    found = json.loads(content) if content is not None else None
  except ValueError:
    return {}
  return found if isinstance(found, dict | None) else {}


def _release(
  store: buckets.Store, mine: Mapping[str, Any], over: threading.Event
) -> None:
  if over.is_set():
    return
  over.set()
  _held.discard(mine["token"])
  with contextlib.suppress(ValueError):
    if _read(store, _LOCK) == mine:
      store.remove(_BEAT)
      store.remove(_LOCK)


def _beat(
  store: buckets.Store, mine: Mapping[str, Any], over: threading.Event
) -> None:
  """Shows that the run lives; ends it if the lock belongs to another."""
  while not over.wait(lock.BEAT_SECONDS):
    try:
      theirs = _read(store, _LOCK)
      if theirs == mine:
        store.write(_BEAT, files.json_line({"token": mine["token"]}).encode())
        continue
    except ValueError as error:
      logging.warning("%s/%s: %s", store.address, _BEAT, error)
      continue
    if not over.is_set():
      hosts.leave(
        f"error: {store.address}/{_LOCK} is not of this run any more:"
        f" {lock.name(theirs or {})} has the workdir. This run ends, and leaves"
        " it as it is.",
        1,
      )

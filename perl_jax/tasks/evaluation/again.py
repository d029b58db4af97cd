"""Whether an evaluation has been made already, of the same models and rows.

A path says where a model lies, not what it is: an evaluation notes what it was
made from, and the same command finds its result only as long as that is there.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from absl import logging

from perl_jax import checksums, files, hosts, json_text
from perl_jax.tasks.evaluation import so_far
from perl_jax.tasks.settings import paths, shared
from perl_jax.tasks.training import changes, finished, lock
from perl_jax.tasks.training import workdir as workdir_lib
from perl_jax.tasks.training.standing import Standing, differing

# SHA-256 of what the summary beside it was made from.
STANDS_ON = changes.STANDS_ON


class Read(Protocol):
  """What an evaluation has read, with models and rows of its own kind.

  Attributes:
    stands_on: SHA-256 of all of it, by name.
  """

  @property
  def stands_on(self) -> Standing:
    """SHA-256 of all of it, by name."""


R = TypeVar("R", bound=Read)


def has_result(workdir: Path) -> bool:
  """Whether there is a result, of whatever."""
  return (workdir / finished.SUMMARY).is_file()


def made_once(
  config: shared.Config,
  workdir: Path,
  read: Callable[[], R],
  make: Callable[[R, so_far.SoFar], dict[str, float]],
  *,
  ready: Callable[[R], None] = lambda found: None,
  computed_from: Callable[[R], Standing] = lambda found: found.stands_on,
) -> dict[str, float]:
  """The result that a workdir has, or the one that is made now.

  Args:
    config: Config of the evaluation, without None in it.
    workdir: Absolute path of its workdir, which is locked while it is made.
    read: Reads and checks all that the result is made from, once.
    make: Makes the result of it: calls `note`, and writes the summary last. If
      it fails, what it has written stays if something is kept in the `SoFar`,
      for the next time, and is removed otherwise.
    ready: Checks what only `make` needs, before an older result is removed.
    computed_from: What is kept there is computed from this.
  """
  found = None
  if has_result(workdir):
    workdir_lib.require_same(config, workdir)
    found = read()
    done = summary_of(config, workdir, found.stands_on)
    if done is not None:
      return done
  with lock.held(workdir), contextlib.ExitStack() as claiming:
    claiming.enter_context(workdir_lib.preparing(config, workdir))
    if found is None:
      found = read()
    else:
      so_far.clear(workdir)
    kept = so_far.SoFar(workdir, computed_from(found), claiming.close)
    ready(found)
    remove(workdir)
    with kept:
      return make(found, kept)


def summary_of(
  config: shared.Config, workdir: Path, now: Standing
) -> dict[str, Any] | None:
  """The result of this very evaluation; None if it has to be made (anew).

  What has changed since then is logged. Nothing in the workdir is changed, but
  for what a run has left that was killed when it had finished.

  Args:
    config: Config of the evaluation, without None in it.
    workdir: Workdir of the evaluation.
    now: SHA-256 of what it would be made from, by name.

  Raises:
    ValueError: The workdir belongs to a run with another config, or a file in
      it is damaged.
  """
  done = finished.summary_of(config, workdir, trains=False)
  if done is None:
    return None
  noted = json_text.object_or_none(workdir / STANDS_ON)
  # What lies at a path is compared below, and how somebody was asked is past.
  fields = (*paths.OF_STAGES, *changes.HOW_ASKED)
  compared = tuple(f"config.{field}: " for field in fields)
  changed = [
    line
    for line in workdir_lib.require_same(config, workdir)
    if not line.startswith(compared)
  ]
  if noted is None:
    changed.append(f"{STANDS_ON}, which says what it was made from, is gone")
  else:
    changed += _changed(noted, now)
  if changed:
    logging.warning(
      "%s in %s is made anew. What has changed since the last time, of which"
      " %s has noted SHA-256:\n  %s",
      config.task,
      workdir,
      STANDS_ON,
      "\n  ".join(changed),
    )
    return None
  logging.info(
    "%s in %s has finished: nothing is left to do.", config.task, workdir
  )
  lock.clear(workdir)
  so_far.clear(workdir)
  return done


def remove(workdir: Path) -> None:
  """Removes what says that there is a result, before another one is made."""

  def unlink():
    for name in (finished.SUMMARY, STANDS_ON, checksums.LISTING):
      (workdir / name).unlink(missing_ok=True)

  hosts.on_primary("old result", unlink)


def note(workdir: Path, now: Standing) -> None:
  """Writes what a result was made from; to be called before it is written."""
  if hosts.is_primary():
    files.write_json(workdir / STANDS_ON, now.digests)


def _changed(noted: Mapping[str, Any], now: Standing) -> list[str]:
  new = sorted(now.digests.keys() - noted.keys())
  before = {name: str(digest) for name, digest in noted.items()}
  return differing(before | dict.fromkeys(new, "(none)"), now)

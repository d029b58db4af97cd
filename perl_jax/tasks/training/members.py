"""Trains the members of a run in one process, on one base.

Each member is an ordinary run with a workdir of its own, `WORKDIR/members/0`
and so on: config, checkpoints, metrics and summary are those of a run that was
made alone, and whatever reads a workdir reads a member's. What members do as
one is said in `together`.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from perl_jax import files
from perl_jax.hosts import signals
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.settings import members as settings
from perl_jax.tasks.settings import paths, shared
from perl_jax.tasks.training import finished, lock, together, undone, watch
from perl_jax.tasks.training import workdir as workdir_lib

# What a member ends with whose numbers are not finite.
_OTHERS = (
  "The others have saved what they have learned. They keep their rates: a lower"
  " one of this member alone is a value of its own in"
  " --config.vary='... optimizer.learning_rate=RATE,RATE'."
)

Stage = Callable[
  [shared.Config, Path, together.Member], together.Requests[dict[str, Any]]
]


def place_of(workdir: Path, number: int) -> Path:
  """The workdir of a member."""
  return workdir / paths.MEMBERS / str(number)


def summary_of(
  config: shared.Config, workdir: str | Path
) -> dict[str, Any] | None:
  """The summary of a finished run of members; None if there is none.

  Args:
    config: Config of the run, of several members.
    workdir: Workdir of the run.

  Raises:
    ValueError: The workdir belongs to a run with another config, or members
      cannot be trained as the config asks for.
  """
  configs = settings.configs_of(config)
  workdir = Path(workdir).absolute()
  found = finished.summary_of(config, workdir, trains=False)
  for number, own in enumerate(configs):
    place = place_of(workdir, number)
    if found and finished.summary_of(own, place, trains=True) is None:
      return None
  return found


def run(
  stage: Stage, config: shared.Config, workdir: str | Path
) -> dict[str, Any]:
  """Trains what members are left to train; returns the summary of all.

  Args:
    stage: The stage of a command, `stage(config, workdir, member)`.
    config: Config of the run, of several members.
    workdir: Workdir of the run.

  Raises:
    ValueError: Members cannot be trained as the config asks for.
  """
  configs, workdir = settings.configs_of(config), Path(workdir).absolute()
  if jax.process_count() > 1:
    raise ValueError(
      f"{len(configs)} members in {jax.process_count()} processes: members are"
      " trained by one process, on all of its devices. Train them apart with"
      " launch/sweep.py, or on one host."
    )
  common = together.Shared(len(configs), settings.values_of(configs))
  summaries: dict[int, dict[str, Any]] = {}
  with contextlib.ExitStack() as stack:
    turns = _Turns(common)
    with workdir_lib.preparing(config, workdir):
      for number, own in enumerate(configs):
        place = place_of(workdir, number)
        done = finished.summary_of(own, place, trains=True)
        if done is not None:
          lock.clear(place)
          summaries[number] = done
          continue
        stack.enter_context(lock.held(place))
        member = together.Member(number, common)
        requests = stage(own, place, member)
        stack.callback(requests.close)
        turns.begin(number, requests)
    common.made.clear()  # what was read is held by those who still need it
    # The mesh of every member, so that one which ends leaves it to the others.
    with jax.set_mesh(shared.make_mesh(config)), contextlib.closing(turns):
      summaries |= turns.to_the_end()
  summary = _summary(summaries)
  with signals.deferred():  # it is done in a moment, and not left half done
    files.write_json(workdir / finished.SUMMARY, summary)  # the last of all
    sealed.write(workdir)
  return summary


def _summary(summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
  """{"members": 2, "members.0.loss": ...}, with what all have cost as one."""
  found: dict[str, Any] = {"members": len(summaries)}
  for name in ("seconds", "seconds_compiling", "peak_bytes"):
    found[name] = max(own.get(name, 0) for own in summaries.values())
  for number in sorted(summaries):
    for name, value in summaries[number].items():
      found[f"{paths.MEMBERS}.{number}.{name}"] = value
  return found


class _Turns:
  """Runs members by turns, from one request to the next."""

  def __init__(self, common: together.Shared):
    self._common = common
    self._requests: dict[int, together.Requests[dict[str, Any]]] = {}
    self._asked: dict[int, Any] = {}
    self._ended: dict[int, dict[str, Any]] = {}

  def begin(
    self, number: int, requests: together.Requests[dict[str, Any]]
  ) -> None:
    """Runs a member to its first request."""
    self._requests[number] = requests
    self._asked[number] = next(requests)

  def close(self) -> None:
    """Ends the members that have not ended, in the mesh that they are in."""
    for number in sorted(self._requests, reverse=True):
      self._requests[number].close()

  def to_the_end(self) -> dict[int, dict[str, Any]]:
    """Answers all requests; returns the summaries of the members.

    Raises:
      signals.Stopped: The run was told to stop; what each member has learned is
        saved.
      FloatingPointError: A number of a member is not finite; what the others
        have learned is saved.
    """
    while self._asked:
      try:
        answers = self._answers(self._next())
      except watch.Stop as stop:
        # As they wait for a program to be compiled, none has been changed.
        raise self._stop(str(stop)) from None
      stopped: BaseException | None = None
      for number in sorted(answers):
        try:
          self._asked[number] = self._requests[number].send(answers[number])
        except StopIteration as end:
          self._ended[number] = end.value
          del self._asked[number]
        except (signals.Stopped, undone.UndoneStepError) as error:
          stopped = stopped or error
          del self._asked[number]
        except FloatingPointError as error:
          stopped = stopped or FloatingPointError(
            f"Member {number}: {error} {_OTHERS}"
          )
          del self._asked[number]
        except watch.Stop as stop:
          # It has no step under way, and others do: a signal waits for these.
          stopped = stopped or signals.Stopped(str(stop), together=True)
          del self._asked[number]
      if stopped is not None:
        self._stop("the end of another")
        raise stopped
    return self._ended

  def _next(self) -> dict[int, Any]:
    """The requests to answer: those of the members that are behind."""
    first = min(map(_order, self._asked.values()))
    return {k: r for k, r in self._asked.items() if _order(r) == first}

  def _answers(self, asked: Mapping[int, Any]) -> dict[int, Any]:
    (kind,) = {type(request) for request in asked.values()}
    if kind is together.Call:
      return self._common.call(asked)
    if kind is together.Widest:
      ahead = [r for k, r in self._asked.items() if k not in asked]
      return together.as_wide(asked, ahead)
    if kind is together.Finished:
      # A member with a summary counts as finished: none has one before all
      # have their last checkpoint.
      for request in asked.values():
        request.settle()
      return dict.fromkeys(asked)
    return dict.fromkeys(asked, max(r.value for r in asked.values()))

  def _stop(self, by: str) -> signals.Stopped:
    """Saves what the members have learned that were not told to stop yet.

    Args:
      by: What tells them.

    Returns:
      What the first of them says that it has saved.
    """
    found = []
    for number in sorted(self._asked):
      try:
        self._requests[number].throw(watch.Stop(by))
      except signals.Stopped as stopped:
        found.append(stopped)
      except watch.Stop:
        pass  # of one that has made no step
    self._asked.clear()
    return found[0] if found else signals.Stopped(by, together=True)


def _order(request: Any) -> tuple[int, int]:
  """What is answered first has the smallest: who is in a step, then by step."""
  if isinstance(request, together.Finished):
    return 2, 0
  if isinstance(request, together.Widest):
    return 1, request.step
  return 0, 0

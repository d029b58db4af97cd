"""What every training stage opens, runs its steps in, and closes at its end."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from perl_jax import checkpoint as checkpoint_lib
from perl_jax import hosts, sharding, steps
from perl_jax import metrics as metrics_lib
from perl_jax import params as params_lib
from perl_jax.hosts import signals
from perl_jax.reporting.console import Console
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import (
  nonfinite,
  profile,
  standing,
  stepping,
  together,
)
from perl_jax.tasks.training import timing as timing_lib
from perl_jax.tasks.training import watch as watch_lib
from perl_jax.tasks.training.compiled import Compiled

Metrics = stepping.Metrics
# Shows nothing.
_SILENT = Console(quiet=True, force_terminal=False)


@dataclasses.dataclass(frozen=True)
class Run:
  """An open workdir and the state to train from.

  Attributes:
    config: Config of the stage.
    state: The state that `open_run` was given, or the restored one.
    resumed: The restored checkpoint, or None in a fresh workdir.
    checkpointer: Saves the state; open.
    writer: Writes metrics; open. Lines that a resumed run will write again have
      been dropped.
    mesh: Mesh of the run.
    guard: Counts the updates that were not finite.
    costs: Costs of the run, those of the processes before a resume included.
    workdir: Workdir whose files are listed with their SHA-256 at the end; None
      lists none.
    member: The member of a run that it is, or a run of its own.
  """

  config: shared.Config
  state: steps.TrainState
  resumed: checkpoint_lib.Resumed | None
  checkpointer: checkpoint_lib.Checkpointer
  writer: metrics_lib.Writer
  mesh: Mesh
  guard: nonfinite.Guard
  costs: timing_lib.Costs
  workdir: Path | None = None
  member: together.Member = together.ALONE

  def train(
    self,
    *,
    batches: Any,
    update: Callable,
    evaluate: Callable,
    optimizer: shared.Optimizer,
    compiled: Sequence[Compiled],
    flops_of: Sequence[Compiled] = (),
    costs_of: Sequence[Compiled] | None = None,
    updates: int = 1,
    is_score: Callable[[Metrics], bool] = lambda found: True,
  ) -> together.Requests[tuple[steps.TrainState, Metrics]]:
    """Runs a `stepping.Loop` with the state, writers and counts of this run.

    Args:
      batches: Iterator with `get_state` and `set_state`.
      update: See `stepping.Loop`.
      evaluate: `(state, step) -> metrics`; may write samples.
      optimizer: Optimiser of the stage; its learning rates are logged.
      compiled: All functions that may compile meanwhile.
      flops_of: Those whose products count for the FLOPs utilisation.
      costs_of: Functions whose compilation and memory the summary has; None for
        all.
      updates: Updates in a step.
      is_score: Whether the metrics of an evaluation say how good it is.
    """
    timing = timing_lib.StepMetrics(
      self.mesh,
      compiled=compiled,
      learning_rates=optimizer.learning_rates,
      updates=updates,
      flops_of=flops_of,
      peak=timing_lib.peak_flops(self.mesh) if flops_of else None,
    )
    self.costs.compiled = compiled if costs_of is None else costs_of
    loop = stepping.Loop(
      state=self.state,
      total_steps=self.config.steps,
      batches=batches,
      update=update,
      evaluate=evaluate,
      timing=timing,
      checkpointer=self.checkpointer,
      writer=self.writer,
      watch=self.member.once(
        "watch", lambda: watch_lib.Watch(shared.saving_of(self.config))
      ),
      resumed=self.resumed,
      eval_every=self.config.eval_every,
      log_every=self.config.log_every,
      must_change=self.config.optimizer.learning_rate > 0,
      guard=self.guard,
      costs=self.costs.so_far,
      is_score=is_score,
      profile=profile.of(self.config, self.workdir),
    )
    return (yield from loop.requests())

  def settle(self) -> None:
    """Waits until all checkpoints are on disk; a signal waits as well."""
    with signals.deferred():
      self.checkpointer.wait()

  def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Closes the checkpoints, and then writes summary.json, with the costs.

    A stage with a summary counts as finished, so that nothing may be pending.
    """
    with signals.deferred():  # it is done in a moment, and not left half done
      self.checkpointer.close()
      summary = dict(summary) | self.costs.so_far()
      self.writer.summary(summary)
      if hosts.is_primary() and self.workdir is not None:
        sealed.write(self.workdir)
    return summary


@contextlib.contextmanager
def open_run(
  config: shared.Config,
  workdir: Path,
  mesh: Mesh,
  state: steps.TrainState,
  *,
  started: float,
  stands_on: Mapping[str, str],
  best: tuple[str, str],
  show: tuple[str, ...],
  member: together.Member = together.ALONE,
) -> Iterator[Run]:
  """Opens checkpoints and writers, and restores the last state if there is one.

  Args:
    config: Config of the stage.
    workdir: Workdir of the stage.
    mesh: Mesh of the run.
    state: State to start from where nothing was saved yet.
    started: `time.perf_counter()` at the beginning of this process.
    stands_on: SHA-256 of what the run is made from, by name.
    best: (metric, "min" or "max") that the best checkpoint is kept by.
    show: Metrics on the progress line.
    member: The member of a run that it is; the first has a progress line.
  """
  metric, mode = best
  keep = shared.saving_of(config).keep
  with checkpoint_lib.Checkpointer(
    workdir, metric=metric, mode=mode, keep=keep
  ) as saver:
    resumed = saver.restore(state)
    state = resumed.state if resumed else state
    if int(state.step) < config.steps:
      saver.require_room(state)
    with metrics_lib.Writer(
      workdir,
      total_steps=config.steps,
      name=config.task,
      resume_step=stepping.first_line(resumed),
      show=show,
      enabled=hosts.is_primary(),
      written=resumed.meta.get("written") if resumed else None,
      console=_SILENT if member.number else None,
    ) as writer:
      guard = nonfinite.Guard(
        workdir,
        mode=config.nonfinite,
        limit=config.nonfinite_limit,
        learning_rate=config.optimizer.learning_rate,
        saved=resumed.meta.get("nonfinite") if resumed else None,
        last_saved=int(state.step),
      )
      spent = resumed.meta.get("costs", {}) if resumed else {}
      costs = timing_lib.Costs(started, spent)
      saver.notes = lambda: {
        standing.ENTRY: dict(stands_on),
        "written": writer.written,
        "config": shared.as_written(config),
      }
      run = config, state, resumed, saver, writer, mesh, guard, costs
      yield Run(*run, workdir=workdir, member=member)


def make_update(
  mesh: Mesh,
  train_step: Compiled,
  frozen: params_lib.Params,
  key: jax.Array,
  prepare: Callable[[Any], Any] = lambda batch: batch,
) -> Callable[
  [steps.TrainState, Any, int],
  together.Requests[tuple[steps.TrainState, Metrics]],
]:
  """Returns `update(state, batch, step)` of a stage with one train step.

  Args:
    mesh: Mesh that batches are placed on.
    train_step: `train_step(state, frozen, batch, key)`, `Member.step`.
    frozen: The frozen base, on the mesh.
    key: Key of the stage; each step folds in its number.
    prepare: Makes of a batch on the mesh what the step is given.
  """

  def update(state, batch, step):
    batch = prepare(sharding.place_batch(mesh, batch))
    key_of_step = jax.random.fold_in(key, step)
    state, found = yield together.Call(
      train_step, (state, frozen, batch, key_of_step)
    )
    faults = nonfinite.Faults(
      (found.pop("fault"),), lambda: {nonfinite.FROZEN: frozen}
    )
    named = {f"train/{k}": v for k, v in found.items()}
    return state, named | {nonfinite.KEY: faults}

  return update

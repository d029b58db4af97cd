"""The loop that every training stage runs: step, log, evaluate, save, resume.

A line of metrics.jsonl at step k describes update k, or the state after k
updates. A checkpoint at step k follows all lines of step k, so that a run that
is killed anywhere and started again drops what came after its checkpoint,
writes it anew, and ends with the same bits. Checkpoints are made at each
evaluation, and between them as `config.save` says; when they are made changes
no line.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from perl_jax import checkpoint as checkpoint_lib
from perl_jax import hosts, sharding, steps
from perl_jax import metrics as metrics_lib
from perl_jax import params as params_lib
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import timing as timing_lib
from perl_jax.tasks.training import watch as watch_lib
from perl_jax.tasks.training.compiled import Compiled

Metrics = dict[str, float]


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
  """

  config: shared.Config
  state: steps.TrainState
  resumed: checkpoint_lib.Resumed | None
  checkpointer: checkpoint_lib.Checkpointer
  writer: metrics_lib.Writer
  mesh: Mesh

  def train(
    self,
    *,
    batches: Any,
    update: Callable,
    evaluate: Callable,
    optimizer: shared.Optimizer,
    compiled: Sequence[Compiled],
    flops_of: Sequence[Compiled] = (),
    updates: int = 1,
  ) -> tuple[steps.TrainState, Metrics]:
    """`run_loop` with the state, writers and counts of this run.

    Args:
      batches: Iterator with `get_state` and `set_state`.
      update: `(state, batch, step) -> (state, metrics)`; step counts from 1.
      evaluate: `(state, step) -> metrics`; may write samples.
      optimizer: Optimiser of the stage; its learning rates are logged.
      compiled: All functions that may compile meanwhile.
      flops_of: Those whose products count for the FLOPs utilisation.
      updates: Updates in a step.
    """
    timing = timing_lib.StepMetrics(
      self.mesh,
      compiled=compiled,
      learning_rates=optimizer.learning_rates,
      updates=updates,
      flops_of=flops_of,
      peak=timing_lib.peak_flops(self.mesh) if flops_of else None,
    )
    return run_loop(
      state=self.state,
      total_steps=self.config.steps,
      batches=batches,
      update=update,
      evaluate=evaluate,
      timing=timing,
      checkpointer=self.checkpointer,
      writer=self.writer,
      watch=watch_lib.Watch(shared.saving_of(self.config)),
      resumed=self.resumed,
      eval_every=self.config.eval_every,
      log_every=self.config.log_every,
      must_change=self.config.optimizer.learning_rate > 0,
    )

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes summary.json once the last checkpoint is on disk.

    A stage with a summary counts as finished, so that nothing may be pending.
    """
    self.checkpointer.wait()
    self.writer.summary(summary)


@contextlib.contextmanager
def open_run(
  config: shared.Config,
  workdir: Path,
  mesh: Mesh,
  state: steps.TrainState,
  *,
  best: tuple[str, str],
  show: tuple[str, ...],
) -> Iterator[Run]:
  """Opens checkpoints and writers, and restores the last state if there is one.

  Args:
    config: Config of the stage.
    workdir: Workdir of the stage.
    mesh: Mesh of the run.
    state: State to start from where nothing was saved yet.
    best: (metric, "min" or "max") that the best checkpoint is kept by.
    show: Metrics on the progress line.
  """
  metric, mode = best
  keep = shared.saving_of(config).keep
  with checkpoint_lib.Checkpointer(
    workdir, metric=metric, mode=mode, keep=keep
  ) as saver:
    resumed = saver.restore(state)
    state = resumed.state if resumed else state
    with metrics_lib.Writer(
      workdir,
      total_steps=config.steps,
      name=config.task,
      resume_step=int(state.step) + 1 if resumed else 0,
      show=show,
      enabled=hosts.is_primary(),
    ) as writer:
      yield Run(config, state, resumed, saver, writer, mesh)


def make_update(
  mesh: Mesh,
  train_step: Compiled,
  frozen: params_lib.Params,
  key: jax.Array,
  prepare: Callable[[Any], Any] = lambda batch: batch,
) -> Callable[[steps.TrainState, Any, int], tuple[steps.TrainState, Metrics]]:
  """Returns `update(state, batch, step)` of a stage with one train step.

  Args:
    mesh: Mesh that batches are placed on.
    train_step: `train_step(state, frozen, batch, key)`.
    frozen: The frozen base, on the mesh.
    key: Key of the stage; each step folds in its number.
    prepare: Makes of a batch on the mesh what the step is given.
  """

  def update(state, batch, step):
    batch = prepare(sharding.place_batch(mesh, batch))
    key_of_step = jax.random.fold_in(key, step)
    state, found = train_step(state, frozen, batch, key_of_step)
    return state, {f"train/{k}": v for k, v in found.items()}

  return update


def run_loop(
  *,
  state: steps.TrainState,
  total_steps: int,
  batches: Any,
  update: Callable[
    [steps.TrainState, Any, int], tuple[steps.TrainState, Metrics]
  ],
  evaluate: Callable[[steps.TrainState, int], Metrics],
  timing: timing_lib.StepMetrics,
  checkpointer: checkpoint_lib.Checkpointer,
  writer: metrics_lib.Writer,
  watch: watch_lib.Watch,
  resumed: checkpoint_lib.Resumed | None,
  eval_every: int,
  log_every: int,
  must_change: bool,
) -> tuple[steps.TrainState, Metrics]:
  """Trains to `total_steps` and returns the state and its last evaluation.

  Args:
    state: State to start from, or the restored one.
    total_steps: Number of updates, those before a resume included.
    batches: Iterator with `get_state` and `set_state`.
    update: `(state, batch, step) -> (state, metrics)`; step counts from 1.
    evaluate: `(state, step) -> metrics`; may write samples.
    timing: Metrics of time and throughput; just made.
    checkpointer: Saves at each evaluation, whose metrics must have its own.
    writer: Open metrics writer of this stage.
    watch: Says when to save between evaluations; just made.
    resumed: The restored checkpoint, or None in a fresh workdir.
    eval_every: Updates between evaluations; the last step always has one.
    log_every: Updates between lines; the first of all, the last, and those with
      an evaluation always have one.
    must_change: Whether it is an error if the first update with a signal
      changes nothing.

  Raises:
    FloatingPointError: A metric is not finite; names the steps since it last
      was.
    ValueError: The first update with a signal changed nothing.
  """
  first = int(state.step) + 1
  must_change = must_change and resumed is None
  evaluated: Metrics = dict(resumed.meta["evaluated"]) if resumed else {}
  if resumed:
    batches.set_state(resumed.meta["data"])
    logging.info("Resuming after step %d.", first - 1)
  last_finite = first - 1
  for step in range(first, total_steps + 1):
    batch = next(batches)
    state, metrics = update(state, batch, step)
    timing.count(batch, metrics)
    due = step % eval_every == 0 or step == total_steps
    shown = due or step == 1 or step % log_every == 0
    save = watch.save_is_due(step) or due
    if shown or save:
      # Fetching the metrics waits for all steps that were dispatched before.
      metrics = {k: float(v) for k, v in hosts.to_host(metrics).items()}
      _require_finite(metrics, last_finite, step)
      must_change = must_change and _is_unchanged(metrics, step)
      last_finite = step
    if shown:
      metrics |= timing.of_steps(step)
      writer.write(step, metrics)
    else:
      writer.tick(step)
    if due:
      timing.skip()
      evaluated = evaluate(state, step)
      writer.write(step, evaluated | timing.of_evaluation())
    if save:
      saved = {"data": batches.get_state(), "evaluated": evaluated}
      with timing.stopped():
        checkpointer.save(step, state, saved, evaluated if due else None)
      watch.saved()
  return state, evaluated


def _is_unchanged(metrics: Mapping[str, float], step: int) -> bool:
  """Whether an update changed nothing, and rightly so.

  A batch in which all rewards are equal has no advantages, so that nothing can
  be learned from it: the next one is looked at then.

  Args:
    metrics: Metrics of the step. `rollout/signal` is the share of tokens whose
      loss has a gradient; without it, every batch has one.
    step: Number of the step.

  Raises:
    ValueError: There was a signal, and nothing changed: an adapter that the
      loss does not read.
  """
  if metrics["train/update_norm"] > 0:
    return False
  if metrics.get("rollout/signal", 1.0) == 0.0:
    logging.warning(
      "Step %d had no training signal: no response was better than expected or"
      " than the others to its prompt. Nothing was learned from it.",
      step,
    )
    return True
  raise ValueError(
    "The first update changed no trainable leaf, though there was something to"
    f" learn (step {step}). Check that optimizer.learning_rate is above 0 and"
    " that the targets of lora.targets are read by the loss."
  )


def _require_finite(
  metrics: Mapping[str, float], last_finite: int, step: int
) -> None:
  bad = [k for k, v in metrics.items() if not math.isfinite(v)]
  if bad:
    raise FloatingPointError(
      f"{', '.join(bad)} became non-finite between steps {last_finite + 1}"
      f" and {step}. Likely causes: optimizer.learning_rate too high,"
      " optimizer.clip_norm off, or a base in too low a precision."
    )

"""The loop that every training stage runs: step, log, evaluate, save, resume.

A line of metrics.jsonl at step k describes update k, or the state after k
updates. A checkpoint at step k follows all lines of step k, so that a run that
is killed anywhere and started again drops what came after its checkpoint,
writes it anew, and ends with the same bits.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from perl_jax import checkpoint as checkpoint_lib
from perl_jax import hosts, steps
from perl_jax import metrics as metrics_lib
from perl_jax.tasks.settings import shared

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Run:
  """An open workdir and the state to go on from.

  Attributes:
    config: Of the stage.
    state: As given to `open_run`, or restored.
    resumed: What was restored, if anything.
    checkpointer: Open.
    writer: Open; what a resumed run will do again has been dropped.
  """

  config: shared.Config
  state: steps.TrainState
  resumed: checkpoint_lib.Resumed | None
  checkpointer: checkpoint_lib.Checkpointer
  writer: metrics_lib.Writer

  def train(
    self, *, batches: Any, update: Callable, evaluate: Callable
  ) -> tuple[steps.TrainState, Metrics]:
    """`run_loop` with the state, writers and counts of this run."""
    return run_loop(
      state=self.state,
      total_steps=self.config.steps,
      batches=batches,
      update=update,
      evaluate=evaluate,
      checkpointer=self.checkpointer,
      writer=self.writer,
      resumed=self.resumed,
      eval_every=self.config.eval_every,
      log_every=self.config.log_every,
      must_change=self.config.optimizer.learning_rate > 0,
    )


@contextlib.contextmanager
def open_run(
  config: shared.Config,
  workdir: Path,
  state: steps.TrainState,
  *,
  name: str,
  best: tuple[str, str],
  show: tuple[str, ...],
) -> Iterator[Run]:
  """Opens checkpoints and writers, and restores the last state if there is one.

  Args:
    config: Of the stage.
    workdir: Of the stage.
    state: To start from where nothing was saved yet.
    name: Of the stage.
    best: (metric, "min" or "max") that the best checkpoint is kept by.
    show: Metrics on the progress line.
  """
  metric, mode = best
  with checkpoint_lib.Checkpointer(workdir, metric=metric, mode=mode) as saver:
    resumed = saver.restore(state)
    state = resumed.state if resumed else state
    with metrics_lib.Writer(
      workdir,
      total_steps=config.steps,
      name=name,
      resume_step=int(state.step) + 1 if resumed else 0,
      show=show,
      enabled=hosts.is_primary(),
    ) as writer:
      yield Run(config, state, resumed, saver, writer)


def run_loop(
  *,
  state: steps.TrainState,
  total_steps: int,
  batches: Any,
  update: Callable[
    [steps.TrainState, Any, int], tuple[steps.TrainState, Metrics]
  ],
  evaluate: Callable[[steps.TrainState, int], Metrics],
  checkpointer: checkpoint_lib.Checkpointer,
  writer: metrics_lib.Writer,
  resumed: checkpoint_lib.Resumed | None,
  eval_every: int,
  log_every: int,
  must_change: bool,
  meta: Mapping[str, Any] | None = None,
) -> tuple[steps.TrainState, Metrics]:
  """Trains to `total_steps` and returns the state and its last evaluation.

  Args:
    state: Where to start, or the restored state.
    total_steps: Updates in all, those before a resume included.
    batches: Iterator with `get_state` and `set_state`.
    update: `(state, batch, step) -> (state, metrics)`; step counts from 1.
    evaluate: `(state, step) -> metrics`; may write samples.
    checkpointer: Saves at each evaluation; its metric must be among them.
    writer: Open metrics writer of this stage.
    resumed: What was restored, if anything.
    eval_every: Updates between evaluations; the last step always has one.
    log_every: Updates between lines; the first and last always have one.
    must_change: Whether an update that changes nothing is an error.
    meta: JSON-able facts that go into each checkpoint's meta.

  Raises:
    FloatingPointError: A loss is not finite; names the steps since it last was.
    ValueError: The first update changed nothing.
  """
  first = int(state.step) + 1
  evaluated: Metrics = dict(resumed.meta["evaluated"]) if resumed else {}
  if resumed:
    batches.set_state(resumed.meta["data"])
    logging.info("Resuming after step %d.", first - 1)
  last_finite = first - 1
  for step in range(first, total_steps + 1):
    started = time.perf_counter()
    state, metrics = update(state, next(batches), step)
    due = step % eval_every == 0 or step == total_steps
    if due or step == first or step % log_every == 0:
      metrics = {k: float(v) for k, v in hosts.to_host(metrics).items()}
      metrics["seconds/step"] = time.perf_counter() - started
      _require_finite(metrics, last_finite, step)
      if step == 1 and must_change and metrics["train/update_norm"] == 0.0:
        raise ValueError(
          "The first update changed no trainable leaf. Check that"
          " optimizer.learning_rate is above 0 and that the targets of"
          " lora.targets are read by the loss."
        )
      last_finite = step
      writer.write(step, metrics)
    else:
      writer.tick(step)
    if due:
      started = time.perf_counter()
      evaluated = evaluate(state, step)
      timed = {"seconds/evaluate": time.perf_counter() - started}
      writer.write(step, evaluated | timed)
      saved = {"data": batches.get_state(), "evaluated": evaluated}
      checkpointer.save(step, state, saved | dict(meta or {}), evaluated)
  return state, evaluated


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

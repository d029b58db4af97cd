"""The loop that every training stage runs: step, log, evaluate, save, resume.

A line of metrics.jsonl at step k describes update k, or the state after k
updates. A checkpoint at step k follows all lines of step k, so that a run that
is killed anywhere and started again drops what came after its checkpoint,
writes it anew, and ends with the same bits.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from perl_jax import checkpoint as checkpoint_lib
from perl_jax import metrics as metrics_lib
from perl_jax import steps

Metrics = dict[str, float]


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
      metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
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

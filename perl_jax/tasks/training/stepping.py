"""The loop that every training stage runs: step, log, evaluate, save, resume.

A line of metrics.jsonl at step k describes update k, or the state after k
updates. A checkpoint at step k follows all lines of step k, so that a run that
is killed anywhere and started again drops what came after its checkpoint,
writes it anew, and ends with the same bits. Checkpoints are made at each
evaluation, and between them as `config.save` says; when they are made changes
no line.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, NoReturn

import jax
from absl import logging

from perl_jax import checkpoint as checkpoint_lib
from perl_jax import hosts, steps
from perl_jax import metrics as metrics_lib
from perl_jax.hosts import signals
from perl_jax.tasks.initial import saved
from perl_jax.tasks.training import live, nonfinite, together, undone
from perl_jax.tasks.training import profile as profile_lib
from perl_jax.tasks.training import timing as timing_lib
from perl_jax.tasks.training import watch as watch_lib

Metrics = dict[str, float]
# In a checkpoint that was made before the evaluation of its step: the line of
# that step, which is written anew with it.
UNJUDGED = "unjudged"
# Steps of this length or more are not dispatched ahead.
_LONG_SECONDS = 1.0


def first_line(resumed: checkpoint_lib.Resumed | None) -> int:
  """The first step whose lines are to be written, 0 in a fresh workdir."""
  if resumed is None:
    return 0
  return int(resumed.state.step) + (UNJUDGED not in resumed.meta)


class Dispatched:
  """Steps that have been dispatched, of which the first may be done."""

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Holds none; `clock` returns seconds."""
    self._steps = collections.deque()
    self._clock, self._waited = clock, clock()

  def count(self, step: int, results: Any) -> None:
    """Takes a step, and a tree with the arrays that it will have made."""
    arrays = [a for a in jax.tree.leaves(results) if hasattr(a, "is_ready")]
    self._steps.append((step, arrays[:1]))  # those of a program come together

  def wait(self) -> None:
    """Waits until one of them at most is under way, or none if they are long.

    The next is dispatched while one is, so that the devices are never idle. A
    run that is told to stop waits for what is dispatched, however rarely it
    writes a line; where steps take a second or more, that is one step, since
    the milliseconds between two of them do not count there.
    """
    steps = [arrays for _, arrays in self._steps]
    jax.block_until_ready(steps[:-1])
    now = self._clock()
    if now - self._waited >= _LONG_SECONDS:
      jax.block_until_ready(steps)
      now = self._clock()
    self._waited = now

  def done(self) -> int | None:
    """The last step whose results are there, None if no further one's are."""
    found = None
    while self._steps and all(a.is_ready() for a in self._steps[0][1]):
      found, _ = self._steps.popleft()
    return found


@dataclasses.dataclass
class Loop:
  """Trains from a state to `total_steps`.

  Attributes:
    state: State to start from, or the restored one; then that after the last
      update.
    total_steps: Number of updates, those before a resume included.
    batches: Iterator with `get_state` and `set_state`.
    update: `(state, batch, step) -> (state, metrics)`, or the requests that
      lead to it (`together.Requests`); step counts from 1. It may raise
      `watch.Stop` or `UndoneStepError` as long as it has not changed the state.
    evaluate: `(state, step) -> metrics`; may write samples at its end.
    timing: Metrics of time and throughput; just made.
    checkpointer: Saves at each evaluation, whose metrics must have its own.
    writer: Open metrics writer of this stage.
    watch: Says when to save between evaluations, and when to stop; just made.
    resumed: The restored checkpoint, or None in a fresh workdir.
    eval_every: Updates between evaluations; the last step always has one.
    log_every: Updates between lines; the first of all, the last, and those with
      an evaluation always have one.
    costs: What the run has cost so far, kept in checkpoints.
    is_score: Whether the metrics of an evaluation say how good the checkpoint
      is; else it is kept to resume from alone.
    profile: Traces some of the steps; by default none.
    must_change: Whether it is an error if the first update with a signal
      changes nothing.
    guard: Counts the updates that were not finite.
  """

  state: steps.TrainState
  total_steps: int
  batches: Any
  update: Callable[
    [steps.TrainState, Any, int],
    tuple[steps.TrainState, Metrics]
    | together.Requests[tuple[steps.TrainState, Metrics]],
  ]
  evaluate: Callable[[steps.TrainState, int], Metrics]
  timing: timing_lib.StepMetrics
  checkpointer: checkpoint_lib.Checkpointer
  writer: metrics_lib.Writer
  watch: watch_lib.Watch
  resumed: checkpoint_lib.Resumed | None
  eval_every: int
  log_every: int
  must_change: bool
  guard: nonfinite.Guard
  costs: Callable[[], Metrics] = dict
  is_score: Callable[[Metrics], bool] = lambda found: True
  profile: profile_lib.Profile = dataclasses.field(
    default_factory=profile_lib.Profile
  )

  def run(self) -> tuple[steps.TrainState, Metrics]:
    """`requests` of a run of its own."""
    return together.alone(self.requests())

  def requests(
    self,
  ) -> together.Requests[tuple[steps.TrainState, Metrics]]:
    """The state after the last step, and its evaluation.

    Raises:
      FloatingPointError: A number is not finite; see `nonfinite.Guard.settle`.
      ValueError: The first update with a signal changed nothing.
      UndoneStepError: A step or an evaluation was not made; what was learned
        before it is saved.
      signals.Stopped: The run was told to stop; what it has learned is saved.
    """
    first = int(self.state.step) + 1
    self._evaluated: Metrics = {}
    self._saved = first - 1
    self._unseen: Mapping[str, Any] = {}  # metrics that nobody has looked at
    self._dispatched = Dispatched()
    with watch_lib.kept_by(self.watch), self.profile:
      if self.resumed:
        self.must_change = False
        self._go_on(self.resumed.meta, first - 1)
      for step in range(first, self.total_steps + 1):
        yield from self._step(step)
      yield together.Finished(self.checkpointer.wait, self.batches)
    return self.state, self._evaluated

  def _go_on(self, meta: Mapping[str, Any], step: int) -> None:
    self.batches.set_state(meta["data"])
    self._evaluated = dict(meta["evaluated"])
    logging.info("Resuming after step %d.", step)
    line = meta.get(UNJUDGED)
    if line is not None:
      self.writer.write(step, line)
      self._judge(step, line)

  def _step(self, step: int) -> together.Requests[None]:
    self._dispatched.wait()
    position = self.batches.get_state()
    self.checkpointer.check()
    try:
      self.watch.look()
      batch = next(self.batches)
      batch = yield together.Widest(batch, step, self.batches)
      with self.profile.step(step):
        found = self.update(self.state, batch, step)
        if isinstance(found, Generator):
          found = yield from found
        self.state, metrics = found
    except watch_lib.Stop as stop:
      self._stop(step - 1, position, str(stop))
    except undone.UndoneStepError:
      self._keep(step - 1, position)
      raise
    self.profile.made(step, self.state)
    self.guard.count(step, batch, metrics)
    self.timing.count(batch, metrics)
    self._unseen = metrics
    self._dispatched.count(step, metrics)
    due = step % self.eval_every == 0 or step == self.total_steps
    shown = due or step == 1 or step % self.log_every == 0
    save = self.watch.save_is_due(step)
    if shown or save or due:
      metrics = self._look_at_metrics(step)
    done = self._dispatched.done()
    if shown:
      metrics |= self.timing.of_steps(step, self.guard.skipped_before)
      self.writer.write(step, metrics)
    elif done is not None:
      self.writer.tick(done)
    if due:
      self._judge(step, metrics)
    elif save:
      self._save(step, self.batches.get_state())

  def _look_at_metrics(self, step: int) -> Metrics:
    """Those of the last step on the host, which are finite.

    Fetching them waits for all steps that were dispatched before.
    """
    fetched = hosts.to_host(self._unseen)
    metrics = {k: float(v) for k, v in fetched.items()}
    metrics |= self.guard.settle(self.state, metrics)
    self.must_change = self.must_change and _is_unchanged(metrics, step)
    self._unseen = {}
    return metrics

  def _judge(self, step: int, line: Metrics) -> None:
    """Evaluates the state and saves it with its score."""
    self.timing.skip()
    try:
      with profile_lib.named(profile_lib.EVALUATION):
        found = self.evaluate(self.state, step)
    except watch_lib.Stop as stop:
      self._stop(step, self.batches.get_state(), str(stop), line)
    except undone.UndoneStepError:
      self._keep(step, self.batches.get_state(), line)
      raise
    self._evaluated = found
    self.writer.write(step, found | self.timing.of_evaluation())
    score = found if self.is_score(found) else None
    self._save(step, self.batches.get_state(), score, evaluated=True)
    with self.timing.stopped():
      live.evaluated()

  def _save(
    self,
    step: int,
    position: Any,
    score: Metrics | None = None,
    unjudged: Metrics | None = None,
    evaluated: bool = False,
  ) -> None:
    meta = {"data": position, "evaluated": self._evaluated}
    if evaluated and score is None:
      meta[saved.UNSCORED] = True
    meta |= self.guard.to_save()
    meta["costs"] = self.costs()
    if unjudged is not None:
      meta[UNJUDGED] = unjudged
    traced = profile_lib.named(profile_lib.CHECKPOINT)
    with self.timing.stopped(), self.guard.saving(step), traced:
      self.checkpointer.save(step, self.state, meta, score)
    self._saved = step
    self.watch.saved()

  def _stop(
    self, step: int, position: Any, by: str, unjudged: Metrics | None = None
  ) -> NoReturn:
    """Saves the state after `step`, and ends the run."""
    what = self._keep(step, position, unjudged)
    raise signals.Stopped(by, what, together=True) from None

  def _keep(
    self, step: int, position: Any, unjudged: Metrics | None = None
  ) -> str:
    """Saves the state after `step`; what and where, in words."""
    if self._unseen:
      self._look_at_metrics(step)
    if step > self._saved:
      self._save(step, position, None, unjudged)
    self.checkpointer.wait()
    if not step:
      return ""
    path = self.checkpointer.path(step)
    what = f" after step {step} of {self.total_steps}, saved as {path}"
    logging.info("The state%s.", what)
    return what


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
  if not math.isfinite(metrics["train/update_norm"]):
    return True  # it was skipped
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

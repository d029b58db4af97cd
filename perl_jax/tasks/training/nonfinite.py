"""What a run does when a number is not finite: it stops, or skips the update.

Every step says as its fault which array was the first that is not finite, and
has then changed nothing (`steps.finite`). The loop reads the faults with its
metrics. By `config.nonfinite` it

  stop   ends with an error that names step, phase and array,
  skip   goes on without that update, which is counted as `train/skipped`, and
         ends as well after `config.nonfinite_limit` of them in a row.

A run that ends so leaves in its workdir

  nonfinite/step-12.npz   the batch of that step, and in RL its rollout; read it
                          with `numpy.load`, by names such as "batch/tokens"
  nonfinite/stop.json     the step, the phase and the array

and may go on from its last checkpoint with another learning rate.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from perl_jax import (
  buckets,
  checkpoint,
  checksums,
  disk,
  files,
  hosts,
  json_text,
  sharding,
  steps,
)

DIRECTORY = "nonfinite"
STOP = "stop.json"
# Where an update of the loop puts its `Faults` among its metrics.
KEY = "faults"
# Evidence that is the same in every step, and so never written.
FROZEN = "base"


class Faults(NamedTuple):
  """What the updates of one step say of their numbers.

  Attributes:
    codes: Fault of each update, int32 scalars, on the devices or the host.
    evidence: Returns what the step computed from, in that order: trees of
      arrays by the phase that made them, for people who look for the reason.
      Called only if there is a fault, on all processes.
  """

  codes: tuple[Any, ...]
  evidence: Callable[[], Mapping[str, Any]] = dict


class Guard:
  """Counts the faults of a run, and ends it where they are too many."""

  def __init__(
    self,
    workdir: Path,
    *,
    mode: str = "stop",
    limit: int = 1,
    learning_rate: float = math.nan,
    saved: Mapping[str, int] | None = None,
    last_saved: int = 0,
  ):
    """Starts to count.

    Args:
      workdir: Workdir of the stage.
      mode: `config.nonfinite`.
      limit: Skipped updates in a row that end the run.
      learning_rate: Learning rate of the config, for messages.
      saved: What `to_save` returned for the checkpoint that the run resumes.
      last_saved: Step of that checkpoint; 0 in a fresh workdir.
    """
    self._workdir, self._mode, self._limit = workdir, mode, limit
    self._learning_rate = learning_rate
    counts = {"skipped": 0, "in_a_row": 0} | dict(saved or {})
    self._skipped, self._in_a_row = counts["skipped"], counts["in_a_row"]
    self._before_last = self._skipped
    self._saved, self._last = last_saved, last_saved
    self._pending: list[tuple[int, Any, Faults]] = []

  @property
  def skipped_before(self) -> int:
    """Updates skipped before the last step that was settled."""
    return self._before_last

  def count(self, step: int, batch: Any, metrics: dict[str, Any]) -> None:
    """Takes the faults of a step out of its metrics; does not wait for them.

    Args:
      step: Number of the step.
      batch: Batch of the step, of this process and on the host.
      metrics: What the update returned.
    """
    self._pending.append((step, batch, metrics.pop(KEY, Faults(()))))

  def settle(
    self, state: steps.TrainState, metrics: Mapping[str, float]
  ) -> dict[str, float]:
    """Looks at all steps since the last call; to be called before saving.

    Args:
      state: State after the last of them.
      metrics: Metrics of the last of them, on the host.

    Returns:
      {"train/skipped": updates skipped so far} if the run skips.

    Raises:
      FloatingPointError: A number is not finite, and `mode` is "stop", or it
        was so `limit` times in a row, or it is not that of a skipped update.
    """
    pending, self._pending = self._pending, []
    codes = hosts.to_host([faults.codes for _, _, faults in pending])
    bad_step = False
    for (step, batch, faults), found in zip(pending, codes, strict=True):
      self._before_last, bad_step = self._skipped, False
      for code in map(int, found):
        if not code:
          self._in_a_row = 0
          continue
        bad_step = True
        self._skipped += 1
        self._in_a_row += 1
        fault = steps.describe_fault(code, state.trainable)
        if self._mode == "stop" or self._in_a_row >= self._limit:
          self._stop(step, batch, faults, fault, state)
        logging.warning("Step %d was skipped: %s.", step, _said(fault))
    if pending and not bad_step:
      self._require_finite(metrics, pending, state)
    self._last = pending[-1][0] if pending else self._last
    return {"train/skipped": self._skipped} if self._mode == "skip" else {}

  def to_save(self) -> dict[str, Any]:
    """What a checkpoint keeps of the counts; nothing if none was skipped."""
    if not self._skipped:
      return {}
    counts = {"skipped": self._skipped, "in_a_row": self._in_a_row}
    return {"nonfinite": counts}

  @contextlib.contextmanager
  def saving(self, step: int) -> Iterator[None]:
    """Around the saving of `step`, which refuses an evaluation without a value.

    Raises:
      FloatingPointError: It did; says what may change.
    """
    try:
      yield
    except FloatingPointError as error:
      said = str(error).partition(";")[0]
      self._end(step, "evaluation", said, f"Evaluation: {said}", None)
    self._saved = step

  def _require_finite(self, metrics, pending, state) -> None:
    bad = [k for k, v in metrics.items() if not math.isfinite(v)]
    if not bad:
      return
    step, batch, faults = pending[-1]
    said = (
      f"{', '.join(bad)} became non-finite between steps {self._last + 1} and"
      f" {step}"
    )
    found = first_bad(batch, state, faults) or ("metrics", bad[0])
    self._end(step, *found, said, (batch, faults))

  def _stop(self, step, batch, faults, fault, state) -> NoReturn:
    said = f"Step {step}: {_said(fault)}"
    phase, array = f"learn, {fault.phase}", fault.path
    found = first_bad(batch, state, faults)
    if found:
      phase, array = found
      said = f"Step {step}: {array} ({phase}) is not finite; so {_said(fault)}"
    if self._mode == "skip":
      said += f"; {self._in_a_row} updates in a row were skipped"
    self._end(step, phase, array, said, (batch, faults))

  def _end(self, step, phase, array, said, evidence) -> NoReturn:
    stop = {"step": step, "phase": phase, "array": array}
    kept = self._keep(step, stop, evidence)
    start = f"the checkpoint of step {self._saved}"
    raise FloatingPointError(
      f"{said}. The update was not applied.{kept} The same command goes on from"
      f" {start if self._saved else 'the start'} {_way_out(phase)} a lower"
      f" --config.optimizer.learning_rate (it is {self._learning_rate:g}),"
      " another optimizer.clip_norm or optimizer.warmup_steps, or"
      " --config.nonfinite=skip, which leaves such updates out."
    )

  def _keep(self, step, stop, evidence) -> str:
    """Writes what the stop was and its batch; what to say of it.

    A disk that is full does not hide why the run has stopped.
    """
    directory, name = self._workdir / DIRECTORY, f"step-{step}"
    # Where each host has a copy of the workdir, that of process 0 is kept.
    apart = buckets.is_apart(self._workdir)
    if jax.process_count() > 1 and not apart:
      name += f"-process-{jax.process_index()}"
    path, arrays = directory / f"{name}.npz", None
    if evidence is not None:
      batch, faults = evidence
      # All processes take part in that.
      arrays = host_arrays({"batch": batch} | dict(faults.evidence()))
    try:
      with disk.writing("what the run stopped at", directory):
        directory.mkdir(parents=True, exist_ok=True)
      if hosts.is_primary():
        files.write_json(directory / STOP, stop)
      if arrays is None:
        return ""
      if hosts.is_primary() or not apart:
        write_arrays(path, arrays)
    except disk.CannotWrite as error:
      return f" Its batch was not kept: {error}"
    return f" Its batch is in {path}, for numpy.load."


def is_stopped(workdir: Path) -> bool:
  """Whether a stage has ended at such a number, and has not got past it since.

  The optimiser's settings may then change; a later checkpoint ends that.

  Args:
    workdir: Workdir of the stage.
  """
  path = workdir / DIRECTORY / STOP
  if not path.is_file():
    return False
  way_out = "Remove it to go on with the settings of before."
  step = json_text.read_object(path, way_out).get("step")
  if type(step) is not int:
    raise ValueError(f"{path} is damaged: step={step!r:.80}. {way_out}")
  directory = workdir / checkpoint.DIRECTORY
  made = checksums.numbered(directory) if directory.is_dir() else []
  return all(int(path.name) < step for path in made)


def first_bad(
  batch: Any, state: steps.TrainState, faults: Faults
) -> tuple[str, str] | None:
  """(phase, path) of the first array that an update read and is not finite.

  Args:
    batch: Batch of the step.
    state: State before the step, or after it, as a fault changes nothing.
    faults: Faults of the step, with the evidence for them.
  """
  read = {"parameters": state.trainable, "data": batch}
  for phase, tree in (read | dict(faults.evidence())).items():
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      dtype = getattr(leaf, "dtype", np.int32)  # a number of Python's
      if not jnp.issubdtype(dtype, jnp.inexact):
        continue
      bad = ~jnp.isfinite(leaf)
      if hosts.to_host(jnp.any(bad)):
        first = int(hosts.to_host(jnp.argmax(bad.ravel())))
        index = ", ".join(map(str, np.unravel_index(first, leaf.shape)))
        return phase, f"{sharding.path_string(path)}[{index}]"
  return None


def host_arrays(trees: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The arrays of trees, whole and by their names, the frozen ones left out.

  Args:
    trees: Trees of arrays by name, the first part of the names.
  """
  arrays = {}
  for name, tree in trees.items():
    if name != FROZEN:
      for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = f"{name}/{sharding.path_string(keys)}"
        arrays[key] = np.asarray(hosts.to_host(leaf))
  return arrays


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by their names as one NumPy file, "*.npz".

  Raises:
    disk.CannotWrite: The file system refuses.
  """
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  files.write_bytes(path, content.getvalue())


def _said(fault: steps.Fault) -> str:
  """A fault in words: "the gradient of policy/.../lora_b overflows ..."."""
  what = f"the {fault.phase}"
  if fault.phase != "loss":
    what += f" of {fault.path}" if fault.path else ", as a whole,"
  member = "" if fault.member is None else f" (member {fault.member})"
  return f"{what}{member} overflows or is not a number"


def _way_out(phase: str) -> str:
  """What to mend first, where learning is not what went wrong."""
  if phase == FROZEN:
    return "once the file with the base is whole, or else with"
  if phase == "data":
    return "once that row is mended or removed, or else with"
  return "with"

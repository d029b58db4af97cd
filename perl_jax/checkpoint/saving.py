"""Saves the state of a stage, and restores it when the stage goes on."""

import contextlib
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import flags, logging
from orbax.checkpoint import checkpoint_managers, multihost

from perl_jax import buckets, checksums, disk, hosts, steps
from perl_jax import params as params_lib
from perl_jax.checkpoint import apart, reading

# How Orbax names a directory that it has not finished.
_UNFINISHED = "*.orbax-checkpoint-tmp"
# Where checkpoints that cannot be read any more are put aside.
DAMAGED = "damaged"
# Orbax writes these last of all, after the list of checksums.
_LAST = ("_CHECKPOINT_METADATA", "commit_success.txt")


def _beside_trainable(state: steps.TrainState) -> dict[str, Any]:
  """The item "optimizer": all of the state but the trainable tree."""
  rest = {"opt_state": state.opt_state, "step": state.step}
  return rest | ({"controls": state.controls} if state.controls else {})


@contextlib.contextmanager
def _without_devices(alone: bool) -> Iterator[None]:
  """In the block Orbax waits for the other processes without their devices.

  By default it runs programs for that, which begin when the sampling has ended
  that a stop has just abandoned. Without them it waits for five minutes at the
  most, so that all processes begin the block together.

  Args:
    alone: Whether this process alone is in the block.
  """
  if not alone:
    hosts.barrier("to save")
  flag = flags.FLAGS["experimental_orbax_use_distributed_barrier"]
  before, flag.value = flag.value, True
  try:
    yield
  finally:
    flag.value = before


class Resumed(NamedTuple):
  """The state and the metadata that a run resumes from."""

  state: steps.TrainState
  meta: dict[str, Any]


class Checkpointer:
  """Saves and restores the state of one stage under `workdir/checkpoints`.

  Attributes:
    metric: Name of the metric, among those given to `save`, that decides which
      checkpoint is best.
    mode: Whether the best is the largest ("max") or the smallest ("min").
    notes: Returns what every checkpoint says of its run, as JSON, beside what
      `save` is given.
  """

  def __init__(
    self, workdir: str | Path, *, metric: str, mode: str, keep: int = 2
  ):
    """Opens the checkpoints of a workdir, and puts damaged ones aside.

    Args:
      workdir: Workdir of the stage.
      metric: See the attributes.
      mode: See the attributes.
      keep: Number of latest checkpoints to keep beside the best.

    Raises:
      ValueError: All checkpoints are damaged; names the files.
    """
    if mode not in ("max", "min"):
      raise ValueError(f"mode={mode!r} must be 'max' or 'min'.")
    self.metric, self.mode = metric, mode
    self.notes: Callable[[], Mapping[str, Any]] = dict
    # Stored so that larger is better: a reader of "best" need not know the
    # metric of the stage.
    self._sign = 1.0 if mode == "max" else -1.0
    policy = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(
          get_metric_fn=reading.score,
          n=1,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    )
    self._directory = Path(workdir).absolute() / reading.DIRECTORY
    # Hosts have copies of the workdir: process 0 writes, for all.
    self._apart = buckets.is_apart(workdir)
    self._closed = self._failed = False
    # What is written, and how many bytes that takes, for errors.
    self._writes, self._needed = "a checkpoint", 0
    checksums.put_damaged_aside(
      self._directory, self._directory.parent / DAMAGED
    )
    self._manager = None
    if hosts.is_primary() or not self._apart:
      with self._writing():
        self._manager = self._opened(policy)
    self._steps = self._known()

  def _opened(self, policy: Any) -> ocp.CheckpointManager:
    options = {}
    if self._apart:
      self._directory.mkdir(exist_ok=True)
      options = {
        "create": False,
        "multiprocessing_options": ocp.options.MultiprocessingOptions(
          primary_host=0, active_processes={0}
        ),
      }
    return ocp.CheckpointManager(
      self._directory,
      item_names=("trainable", "optimizer", "meta"),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=reading.score,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(
          barrier_sync_fn=self._barrier,
          post_finalization_callback=self._list_files,
        ),
        **options,
      ),
    )

  def _known(self) -> tuple[int | None, int | None]:
    """The steps of the latest and the best checkpoint, on all processes."""

    def steps():
      return self._manager.latest_step(), self._manager.best_step()

    if not self._apart:
      return steps()
    found = hosts.decided_by_primary(lambda: json.dumps(steps()))
    return tuple(json.loads(found))

  def _barrier(self, *, key: str, timeout_ms: int) -> None:
    """Where Orbax's threads wait for those of other processes.

    After an error, its last thread comes here before it raises that error. The
    others may wait elsewhere, for ever, and are not waited for: the main thread
    is to raise the error and to end them.
    """
    if self._apart:
      return
    mine = threading.current_thread() is not threading.main_thread()
    if mine and sys.exc_info()[1] is not None:
      self._failed = True
    else:
      multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

  def _list_files(self) -> None:
    """Writes the checksums of what is about to become a checkpoint.

    Orbax calls it once all files are written, and before the directory is known
    as a checkpoint.
    """
    if not hosts.is_primary():
      return
    for path in self._directory.iterdir():
      if path.is_dir() and not (path / checksums.LISTING).exists():
        checksums.write(path, lambda file: file.name not in _LAST)

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    if self._closed:
      return
    try:
      self.close()
    except disk.CannotWrite as error:
      if kind is None:
        raise
      # What ended the run is said first, and is often this very error.
      if kind is not disk.CannotWrite:
        logging.warning("%s", error)

  @property
  def latest_step(self) -> int | None:
    """Step of the latest complete checkpoint."""
    return self._steps[0]

  @property
  def best_step(self) -> int | None:
    """Step of the best complete checkpoint."""
    return self._steps[1]

  def save(
    self,
    step: int,
    state: steps.TrainState,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
  ) -> None:
    """Starts to save; returns as soon as the arrays may be donated.

    A checkpoint of the same step is replaced.

    Args:
      step: Number of steps that the state has made.
      state: The state.
      meta: What else the loop needs to go on, as JSON.
      metrics: What an evaluation of the state has measured; None if there was
        none, or nothing that checkpoints are compared by, and the checkpoint is
        only to resume from.

    Raises:
      FloatingPointError: The metric is not finite, and cannot be compared.
      disk.CannotWrite: There is no room for it, or for the one before, whose
        writing has gone on until now.
    """
    score = None
    if metrics is not None:
      score = {"score": self._sign * self._finite(step, metrics)}
    self.wait()
    self._writes = f"the checkpoint of step {step}"
    self.require_room(state)
    items = state.trainable, _beside_trainable(state)
    if self._apart:
      items = apart.gathered(items)
    if self._manager is not None:
      if step in self._manager.all_steps():
        self._manager.delete(step)
      trainable, optimizer = items
      with self._writing(), _without_devices(self._apart):
        self._manager.save(
          step,
          args=ocp.args.Composite(
            trainable=ocp.args.StandardSave(trainable),
            optimizer=ocp.args.StandardSave(optimizer),
            meta=ocp.args.JsonSave({**self.notes(), **meta}),
          ),
          metrics=score,
        )
    self._steps = self._known()

  def require_room(self, state: steps.TrainState) -> None:
    """Raises `disk.CannotWrite` if there is no room for one more checkpoint.

    It takes as much as the latest one, or else as the arrays do in memory.
    """
    if self._manager is None:
      return
    latest = self.latest_step
    self._needed = params_lib.nbytes((state.trainable, state.opt_state))
    if latest is not None:
      self._needed = disk.size(self._directory / str(latest))
    disk.require_room(self._writes, self._directory, self._needed)

  def _writing(self) -> contextlib.AbstractContextManager[None]:
    """Around what writes a checkpoint, of which it leaves all or nothing."""
    return disk.writing(
      self._writes, self._directory, self._needed, unfinished=_UNFINISHED
    )

  def _finite(self, step: int, metrics: Mapping[str, float]) -> float:
    score = float(metrics[self.metric])
    if not math.isfinite(score):
      raise FloatingPointError(
        f"{self.metric}={score} after step {step}; nothing was saved. Likely"
        " causes: optimizer.learning_rate too high, or optimizer.clip_norm off."
      )
    return score

  def restore(self, like: steps.TrainState) -> Resumed | None:
    """The latest state, sharded like `like`; None in a fresh workdir."""
    step = self.latest_step
    if step is None:
      return None
    items = {"trainable": like.trainable, "optimizer": _beside_trainable(like)}
    found = self._read(step, items, meta=ocp.args.JsonRestore())
    state = steps.TrainState(found["trainable"], **found["optimizer"])
    return Resumed(state, found["meta"])

  def _read(
    self, step: int, like: Mapping[str, Any], **more: Any
  ) -> dict[str, Any]:
    """Items of a checkpoint, those of `like` sharded as it is."""

    def read(abstract):
      wanted = {k: ocp.args.StandardRestore(v) for k, v in abstract.items()}
      args = ocp.args.Composite(**wanted, **more)
      return dict(self._manager.restore(step, args=args))

    if not self._apart:
      return read(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
    found = read(apart.on_host(like)) if hosts.is_primary() else {}
    arrays = {name: found.pop(name, None) for name in like}
    rest = hosts.content_from_primary(json.dumps(found).encode())
    return apart.spread(arrays, like) | json.loads(rest)

  def best_trainable(self, like: params_lib.Params) -> dict[str, Any]:
    """The trainable tree of the best checkpoint, sharded like `like`."""
    if self._manager is not None:
      self._manager.wait_until_finished()
      checksums.require_whole(self._directory / str(self.best_step))
    return self._read(self.best_step, {"trainable": like})["trainable"]

  def path(self, step: int) -> Path:
    """Directory of the checkpoint of a step."""
    return self._directory / str(step)

  def check(self) -> None:
    """Raises the error of a write that has failed, if any; does not wait."""
    if self._failed:
      self.wait()

  def wait(self) -> None:
    """Waits until all that was saved is on disk; raises a write's error."""
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending writes; their errors are raised here."""
    self._closed = True
    try:
      self.wait()
    finally:
      if self._manager is not None:
        with self._writing():
          self._manager.close()

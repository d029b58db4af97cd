"""Where the time of a run goes: computing, compiling, throughput."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from perl_jax import sharding
from perl_jax.planning import chips
from perl_jax.tasks.training.compiled import Compiled

Clock = Callable[[], float]


class Lap(NamedTuple):
  """Seconds since the lap before.

  Attributes:
    running: Wall-clock seconds, less those spent compiling.
    compiling: Seconds that the watched functions spent compiling.
  """

  running: float
  compiling: float


class Stopwatch:
  """Laps of wall-clock time, in which compilation is counted apart."""

  def __init__(
    self, compiled: Sequence[Compiled], clock: Clock = time.perf_counter
  ):
    """Starts the first lap.

    Args:
      compiled: Functions that may compile during a lap.
      clock: Returns seconds; only differences matter.
    """
    self._compiled, self._clock = tuple(dict.fromkeys(compiled)), clock
    self._last = self._read()

  def _read(self) -> tuple[float, float]:
    return self._clock(), sum(f.compile_seconds for f in self._compiled)

  def lap(self) -> Lap:
    """Ends a lap and starts the next.

    Computations are dispatched without waiting for them: wait for their results
    first.
    """
    now = self._read()
    seconds, compiling = (b - a for a, b in zip(self._last, now, strict=True))
    self._last = now
    return Lap(seconds - compiling, compiling)

  @contextlib.contextmanager
  def stopped(self) -> Iterator[None]:
    """Leaves the time of a block out of the lap that is under way."""
    lap = self.lap()
    yield
    self._last = self._read()
    self.add(lap)

  def add(self, lap: Lap) -> None:
    """Counts a lap as part of the one that is under way."""
    clock, compiling = self._last
    self._last = (
      clock - lap.running - lap.compiling,
      compiling - lap.compiling,
    )


def peak_flops(mesh: Mesh) -> float | None:
  """Peak bfloat16 FLOP/s of a mesh's devices together; None if not known."""
  device = chips.device_of(list(mesh.devices.flat))
  return None if device is None else device.flops * mesh.size


class Costs:
  """Entries of summary.json: what a stage has cost, over all its processes.

  `seconds` is wall-clock time, `seconds_compiling` that of compilation, and
  `peak_bytes` the compiler's estimate for the function that needs most. What a
  killed process did after its last checkpoint is not counted.
  """

  def __init__(self, started: float, before: Mapping[str, float]):
    """Starts with the cost of nothing compiled.

    Args:
      started: `time.perf_counter()` at the beginning of this process.
      before: What `so_far` was at the checkpoint that is resumed from.
    """
    self._started, self._before = started, before
    self.compiled: Sequence[Compiled] = ()

  def so_far(self) -> dict[str, float]:
    """The entries, for a checkpoint or the summary."""
    before, compiled = self._before, self.compiled
    return {
      "seconds": before.get("seconds", 0.0)
      + time.perf_counter()
      - self._started,
      "seconds_compiling": before.get("seconds_compiling", 0.0)
      + sum(f.compile_seconds for f in compiled),
      "peak_bytes": max(
        [before.get("peak_bytes", 0), *(f.peak_bytes for f in compiled)]
      ),
    }


class StepMetrics:
  """Metrics of how a stage runs: time, throughput, learning rates.

  seconds/step          mean wall-clock seconds of a step since the last
                        synchronisation with the device, its input included and
                        compilation, evaluation and saving excluded
  seconds/compile       seconds spent compiling in that time, if any
  rate/tokens           tokens per second, of prompts and responses without
                        padding
  rate/mfu              model FLOPs utilisation: FLOPs of the step's matrix
                        products over what the devices' peak allows in that
                        time; only where the peak is known
  train/learning_rate   learning rate of the last update
  """

  def __init__(
    self,
    mesh: Mesh,
    *,
    compiled: Sequence[Compiled],
    learning_rates: Mapping[str, optax.Schedule],
    updates: int = 1,
    flops_of: Sequence[Compiled] = (),
    peak: float | None = None,
    clock: Clock = time.perf_counter,
  ):
    """Starts the clock.

    Args:
      mesh: Mesh of the run.
      compiled: Functions that may compile during a step or an evaluation.
      learning_rates: Schedules by the name of their metric, as functions of the
        number of updates before.
      updates: Updates in a step.
      flops_of: The functions of a step whose products count for `rate/mfu`.
      peak: FLOP/s of all devices together; None leaves `rate/mfu` out.
      clock: Returns seconds.
    """
    held, shards = sharding.held_shards(mesh)
    self._share = shards / len(held)  # rows of all processes for one of mine
    self._watch = Stopwatch(compiled, clock)
    self._rates, self._updates = learning_rates, updates
    self._flops_of, self._peak = flops_of, peak
    self._steps = self._tokens = 0
    self._flops = self._flops_run()

  def _flops_run(self) -> float:
    if not self._peak:
      return 0.0
    return sum(f.flops_run() for f in self._flops_of)

  def count(self, batch: Any, metrics: Mapping[str, Any]) -> None:
    """Counts a step on a batch of this process that returned `metrics`.

    A step that makes more tokens than its batch holds says how many it had, on
    all processes together, as "rollout/tokens".
    """
    self._steps += 1
    if "rollout/tokens" in metrics:
      self._tokens += metrics["rollout/tokens"]
    else:
      self._tokens += self._share * batch.num_tokens

  def of_steps(self, step: int, skipped: int = 0) -> dict[str, float]:
    """Metrics of the steps since the last call, up to `step`.

    The results of `step` have to be there already.

    Args:
      step: Number of the last step.
      skipped: Updates before it that were not applied, and so not counted by
        the schedule of the learning rate.
    """
    lap = self._watch.lap()
    found = {
      "seconds/step": lap.running / self._steps,
      "rate/tokens": self._tokens / lap.running,
    }
    if lap.compiling:
      found["seconds/compile"] = lap.compiling
    if self._peak and self._flops_of:
      before, self._flops = self._flops, self._flops_run()
      done = self._flops - before
      found["rate/mfu"] = done / (lap.running * self._peak)
    for name, schedule in self._rates.items():
      found[f"train/{name}"] = float(
        schedule(step * self._updates - 1 - skipped)
      )
    self._steps = self._tokens = 0
    return found

  def of_evaluation(self) -> dict[str, float]:
    """Seconds since the last call of any of these, compilation apart."""
    lap = self._watch.lap()
    found = {"seconds/evaluate": lap.running}
    if lap.compiling:
      found["seconds/evaluate_compile"] = lap.compiling
    return found

  def skip(self) -> None:
    """Leaves out the time since the last call, such as that of saving."""
    self._watch.lap()

  def stopped(self) -> contextlib.AbstractContextManager[None]:
    """Leaves out the time of a block between two steps, such as that of saving.

    The steps before it still count.
    """
    return self._watch.stopped()

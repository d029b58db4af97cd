"""The loop, on a state that counts: what is written when, and when it stops."""

import contextlib
import json

import jax
import jax.numpy as jnp
import pytest

from perl_jax import disk, files, metrics, sharding, steps
from perl_jax.checkpoint import Resumed
from perl_jax.tasks.settings.shared import Saving
from perl_jax.tasks.training import nonfinite, stepping
from perl_jax.tasks.training import timing as timing_lib
from perl_jax.tasks.training import watch as watch_lib


class Batch(int):
  """A number that stands for a batch of ten tokens."""

  num_tokens = 10


class Batches:
  """Numbers from 0 on, with a position."""

  def __init__(self):
    self.next = 0

  def __next__(self):
    self.next += 1
    return Batch(self.next - 1)

  def get_state(self):
    return {"next": self.next}

  def set_state(self, state):
    self.next = state["next"]


class Saver:
  """Remembers what it was given, through JSON as the real one."""

  def __init__(self):
    self.saved = {}

  def save(self, step, state, meta, found):
    meta = json.loads(json.dumps(meta))
    score = None if found is None else dict(found)
    self.saved[step] = (int(state.trainable), meta, score)

  def check(self):
    pass

  def wait(self):
    pass

  def path(self, step):
    return f"checkpoints/{step}"


def start():
  return steps.TrainState(jnp.int32(0), (), jnp.int32(0))


def update(state, batch, step):
  assert step == int(state.step) + 1
  state = steps.TrainState(state.trainable + batch, (), state.step + 1)
  loss = jnp.float32(state.trainable)
  return state, {"train/loss": loss, "train/update_norm": jnp.float32(1.0)}


class Function:
  """A compiled function: only how long it has compiled is looked at."""

  compile_seconds = 0.0

  def __init__(self, flops=0.0):
    self._flops, self.calls = flops, 0

  def flops_run(self):
    return self._flops * self.calls


def timing_of(compiled=(), **options):
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
  rates = {"learning_rate": lambda count: 0.1 * count}
  return timing_lib.StepMetrics(
    mesh, compiled=compiled, learning_rates=rates, **options
  )


def watch_of(every_steps=0, every_seconds=0.0, **options):
  return watch_lib.Watch(Saving(every_steps, every_seconds, 2), **options)


@contextlib.contextmanager
def opened(workdir, first=0):
  with metrics.Writer(workdir, total_steps=7, resume_step=first) as writer:
    yield writer


def run(workdir, *, resumed=None, saver=None, **changes):
  """Runs 7 steps with an evaluation every 3 and a line every 2."""
  saver = saver or Saver()
  state = resumed.state if resumed else start()
  with opened(workdir, stepping.first_line(resumed)) as writer:
    arguments = dict(
      state=state, total_steps=7, batches=Batches(), update=update,
      evaluate=lambda state, step: {"validation/sum": int(state.trainable)},
      checkpointer=saver, writer=writer, resumed=resumed, eval_every=3,
      log_every=2, must_change=True, timing=timing_of(), watch=watch_of(),
      guard=nonfinite.Guard(workdir),
    )  # fmt: skip
    return *stepping.Loop(**arguments | changes).run(), saver


def rows(workdir):
  return [
    {k: v for k, v in row.items() if not k.startswith(("seconds/", "rate/"))}
    for row in files.read_jsonl(workdir / "metrics.jsonl")
  ]


def test_a_write_that_has_failed_ends_the_run_before_the_next_one(tmp_path):
  class Refused(Saver):
    def check(self):
      if 3 in self.saved and len(rows(tmp_path)) > 2:
        raise disk.CannotWrite("the checkpoint of step 3 cannot be written")

  saver = Refused()
  with pytest.raises(disk.CannotWrite, match="of step 3"):
    run(tmp_path, saver=saver)
  assert list(saver.saved) == [3]


def test_lines_evaluations_and_checkpoints(tmp_path):
  state, evaluated, saver = run(tmp_path)
  total = sum(range(7))
  assert (int(state.trainable), int(state.step)) == (total, 7)
  assert evaluated == {"validation/sum": total}
  found = rows(tmp_path)
  # First, every second, those with an evaluation, last.
  trained = [row["step"] for row in found if "train/loss" in row]
  assert trained == [1, 2, 3, 4, 6, 7]
  judged = {r["step"]: r["validation/sum"] for r in found if len(r) == 2}
  assert judged == {3: 3, 6: 15, 7: 21}
  assert list(saver.saved) == [3, 6, 7]
  value, meta, score = saver.saved[6]
  assert value == 15 and score == {"validation/sum": 15}
  assert meta == {"data": {"next": 6}, "evaluated": score, "costs": {}}


def test_checkpoint_follows_the_lines_of_its_step(tmp_path):
  """So that what a kill in between leaves is dropped, not missing."""

  class Killing(Saver):
    def save(self, step, *args):
      super().save(step, *args)
      if step == 6:
        raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, saver=Killing())
  assert [row["step"] for row in rows(tmp_path)][-2:] == [6, 6]


def test_resume_goes_on_with_the_next_batch(tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  state, evaluated, saver = run(whole)
  with pytest.raises(RuntimeError, match="killed"):
    run(broken, update=dies_after(4))
  value, meta, _ = saver.saved[3]
  found = Resumed(steps.TrainState(jnp.int32(value), (), jnp.int32(3)), meta)
  again, judged, other = run(broken, resumed=found)
  assert (again, judged) == (state, evaluated)
  assert {k: v for k, v in saver.saved.items() if k > 3} == other.saved
  assert rows(broken)[:-1] == rows(whole)[:-1]
  assert rows(broken) == rows(whole)


def dies_after(count):
  def dying(state, batch, step):
    if step > count:
      raise RuntimeError("killed")
    return update(state, batch, step)

  return dying


def test_resume_at_the_end_evaluates_nothing(tmp_path):
  state, evaluated, saver = run(tmp_path)
  before = (tmp_path / "metrics.jsonl").read_bytes()
  found = Resumed(state, saver.saved[7][1])
  again, judged, other = run(tmp_path, resumed=found, evaluate=None)
  assert again is state and judged == evaluated and other.saved == {}
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def nan_from(first):
  def nan(state, batch, step):
    state, found = update(state, batch, step)
    if step >= first:
      found["train/loss"] = jnp.float32("nan")
    return state, found

  return nan


@pytest.mark.parametrize(
  "first, between", [(1, "1 and 1"), (2, "2 and 2"), (5, "5 and 6")]
)
def test_non_finite_loss_names_the_steps(tmp_path, first, between):
  with pytest.raises(FloatingPointError) as caught:
    run(tmp_path, update=nan_from(first))
  message = str(caught.value)
  assert "train/loss" in message and f"between steps {between}" in message
  assert "optimizer.learning_rate" in message


def still(state, batch, step):
  state, found = update(state, batch, step)
  return state, found | {"train/update_norm": jnp.float32(0.0)}


def test_update_that_changes_nothing_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="first update changed no"):
    run(tmp_path, update=still)
  run(tmp_path, update=still, must_change=False)


def signal_from(first, moves):
  """Updates without a signal before step `first`; then they move, or not."""

  def make(state, batch, step):
    state, found = update(state, batch, step)
    norm = float(moves and step >= first)
    found |= {"rollout/signal": jnp.float32(step >= first)}
    return state, found | {"train/update_norm": jnp.float32(norm)}

  return make


def test_a_batch_without_a_signal_need_not_change_anything(tmp_path):
  """0 / 1 rewards that are all equal: the adapter is judged by a later one."""
  state, *_ = run(tmp_path / "learns", update=signal_from(3, moves=True))
  assert int(state.step) == 7
  run(tmp_path / "silent", update=signal_from(99, moves=False))
  with pytest.raises(ValueError, match=r"changed no .* \(step 4\)"):
    run(tmp_path / "stuck", update=signal_from(4, moves=False))


def test_seconds_of_a_step_are_a_mean_since_the_last_line(tmp_path):
  """A clock by hand: each part of the run moves it by a known time.

  Input takes 1 s, a step 2 s, compilation in the first step 100 s; an
  evaluation 1000 s, and 300 s of compilation in the first; saving 10 000 s.
  """
  now, function, learn = [0.0], Function(), Function(flops=30.0)

  class SlowBatches(Batches):
    def __next__(self):
      now[0] += 1
      return super().__next__()

  class SlowSaver(Saver):
    def save(self, *args):
      now[0] += 10_000
      super().save(*args)

  def slow(state, batch, step):
    now[0] += 2
    learn.calls += 1
    if step == 1:
      now[0] += 100
      function.compile_seconds += 100
    return update(state, batch, step)

  def evaluate(state, step):
    now[0] += 1000
    if step == 3:
      now[0] += 300
      function.compile_seconds += 300
    return {"validation/sum": int(state.trainable)}

  run(
    tmp_path,
    batches=SlowBatches(),
    update=slow,
    evaluate=evaluate,
    saver=SlowSaver(),
    timing=timing_of(
      (function, function),  # the same one counts once
      clock=lambda: now[0],
      flops_of=(learn,),
      peak=100.0,
    ),
  )
  lines = files.read_jsonl(tmp_path / "metrics.jsonl")
  steps_ = {r["step"]: r for r in lines if "train/loss" in r}
  # Lines at 1, 2, 3 and 4, 6, 7: that of 6 is of two steps.
  assert [r["seconds/step"] for r in steps_.values()] == [3.0] * 6
  assert {k: r.get("seconds/compile") for k, r in steps_.items()} == {
    1: 100.0, 2: None, 3: None, 4: None, 6: None, 7: None,
  }  # fmt: skip
  for row in steps_.values():
    assert row["rate/tokens"] == pytest.approx(10 / 3)
    assert row["rate/mfu"] == pytest.approx(30 / (3 * 100))
    rate = 0.1 * (row["step"] - 1)
    assert row["train/learning_rate"] == pytest.approx(rate)
  evaluated = {r["step"]: r for r in lines if "validation/sum" in r}
  assert [r["seconds/evaluate"] for r in evaluated.values()] == [1000.0] * 3
  compiled = [r.get("seconds/evaluate_compile") for r in evaluated.values()]
  assert compiled == [300.0, None, None]


def test_no_mfu_without_a_known_peak(tmp_path):
  run(tmp_path)
  lines = files.read_jsonl(tmp_path / "metrics.jsonl")
  assert not any("rate/mfu" in row for row in lines)
  assert (
    timing_lib.peak_flops(sharding.make_mesh(data=-1, fsdp=1, tensor=1)) is None
  )


def test_a_step_may_have_more_tokens_than_its_batch(tmp_path):
  """As an iteration of RL has; the rate is that of its last update."""
  now = [0.0]

  def sampling(state, batch, step):
    now[0] += 4.0
    state, found = update(state, batch, step)
    return state, found | {"rollout/tokens": 1000}

  timing = timing_of(clock=lambda: now[0], updates=3)
  run(tmp_path, update=sampling, timing=timing)
  rows_ = files.read_jsonl(tmp_path / "metrics.jsonl")
  rows_ = [row for row in rows_ if "train/loss" in row]
  assert all(row["rate/tokens"] == 250.0 for row in rows_)
  assert [round(10 * row["train/learning_rate"]) for row in rows_] == [
    2, 5, 8, 11, 17, 20,
  ]  # fmt: skip

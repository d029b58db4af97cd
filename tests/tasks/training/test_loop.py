"""The loop, on a state that counts: what is written when, and when it stops."""

import contextlib
import json

import jax.numpy as jnp
import pytest

from perl_jax import files, metrics, steps
from perl_jax.checkpoint import Resumed
from perl_jax.tasks.training import loop


class Batches:
  """Numbers from 0 on, with a position."""

  def __init__(self):
    self.next = 0

  def __next__(self):
    self.next += 1
    return self.next - 1

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
    self.saved[step] = (int(state.trainable), meta, dict(found))


def start():
  return steps.TrainState(jnp.int32(0), (), jnp.int32(0))


def update(state, batch, step):
  assert step == int(state.step) + 1
  state = steps.TrainState(state.trainable + batch, (), state.step + 1)
  loss = jnp.float32(state.trainable)
  return state, {"train/loss": loss, "train/update_norm": jnp.float32(1.0)}


@contextlib.contextmanager
def opened(workdir, first=0):
  with metrics.Writer(workdir, total_steps=7, resume_step=first) as writer:
    yield writer


def run(workdir, *, resumed=None, saver=None, **changes):
  """Runs 7 steps with an evaluation every 3 and a line every 2."""
  saver = saver or Saver()
  state = resumed.state if resumed else start()
  with opened(workdir, int(state.step) + 1 if resumed else 0) as writer:
    arguments = dict(
      state=state, total_steps=7, batches=Batches(), update=update,
      evaluate=lambda state, step: {"validation/sum": int(state.trainable)},
      checkpointer=saver, writer=writer, resumed=resumed, eval_every=3,
      log_every=2, must_change=True,
    )  # fmt: skip
    return *loop.run_loop(**arguments | changes), saver


def rows(workdir):
  return [
    {k: v for k, v in row.items() if not k.startswith("seconds/")}
    for row in files.read_jsonl(workdir / "metrics.jsonl")
  ]


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
  assert meta == {"data": {"next": 6}, "evaluated": score}
  timed = files.read_jsonl(tmp_path / "metrics.jsonl")
  assert all(r["seconds/step"] > 0 for r in timed if "train/loss" in r)
  assert all(r["seconds/evaluate"] > 0 for r in timed if len(r) == 3)


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


def test_checkpoint_carries_what_the_task_gives(tmp_path):
  *_, saver = run(tmp_path, meta={"shift": 0.5})
  assert all(meta["shift"] == 0.5 for _, meta, _ in saver.saved.values())

"""Saves between evaluations: when they are made, and that no line tells."""

import jax.numpy as jnp
import pytest

from perl_jax import steps
from perl_jax.checkpoint import Resumed
from perl_jax.hosts import signals
from perl_jax.tasks.training import watch as watch_lib
from tests.tasks.training.test_loop import (
  Saver,
  nan_from,
  rows,
  run,
  update,
  watch_of,
)


def test_saves_between_evaluations_change_no_line(tmp_path):
  """Nor are they judged; a run resumes from one as if nothing had happened."""
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  *_, saver = run(whole)
  often = {"watch": watch_of(every_steps=1)}
  *_, other = run(broken, **often)
  assert rows(broken) == rows(whole)
  assert list(other.saved) == [1, 2, 3, 4, 5, 6, 7]
  for step, (_, meta, score) in other.saved.items():
    assert meta["data"] == {"next": step}
    assert score == (saver.saved[step][2] if step in saver.saved else None)
  assert other.saved[5][1]["evaluated"] == other.saved[3][2]
  # Killed after step 6's lines: goes on after 5, and line 5 is not one of
  # its own, although it is the first that this process does not make.
  for at in (1, 2, 4, 5):
    value, meta, _ = other.saved[at]
    found = Resumed(steps.TrainState(jnp.int32(value), (), jnp.int32(at)), meta)
    run(broken, resumed=found)
    assert rows(broken) == rows(whole), at


def test_saves_by_the_clock(tmp_path):
  """Every 10 s of steps of 3 s; an evaluation's checkpoint counts."""
  now = [0.0]

  def slow(state, batch, step):
    now[0] += 3.0
    return update(state, batch, step)

  watch = watch_of(every_seconds=10.0, clock=lambda: now[0])
  *_, saver = run(tmp_path, update=slow, watch=watch, eval_every=6)
  assert [s for s, (*_, score) in saver.saved.items() if not score] == [4]
  assert list(saver.saved) == [4, 6, 7]


def test_processes_do_not_ask_at_every_short_step(monkeypatch):
  """Of two processes; a save is late by half a second at most."""
  asked, now = [], [0.0]
  monkeypatch.setattr(watch_lib.jax, "process_count", lambda: 2)
  monkeypatch.setattr(watch_lib.hosts, "passed_on", lambda: "")
  monkeypatch.setattr(
    watch_lib.hosts,
    "decided_by_primary",
    lambda decide: asked.append(step) or decide(),
  )
  watch = watch_of(every_seconds=100.0, clock=lambda: now[0])
  due = []
  for step in range(1, 2001):
    now[0] += 0.1
    watch.look()
    if watch.save_is_due(step):
      due.append(step)
      watch.saved()
  assert len(asked) < 500
  assert len(due) == 1 and 1000 <= due[0] <= 1006


@pytest.mark.parametrize("seconds", [0.02, 0.3, 1.0, 20.0])
def test_several_processes_hear_a_signal_within_a_step(monkeypatch, seconds):
  """All of a step's seconds are before one of its two questions."""
  now = [0.0]
  told = {"at": float("inf")}
  monkeypatch.setattr(watch_lib.jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    watch_lib.hosts,
    "passed_on",
    lambda: "SIGTERM" if now[0] >= told["at"] else "",
  )
  monkeypatch.setattr(
    watch_lib.hosts, "decided_by_primary", lambda decide: decide()
  )
  for after in range(40):
    now[0], told["at"] = 0.0, (100 + 0.37 * after) * seconds
    watch = watch_of(every_seconds=1e9, clock=lambda: now[0])
    with pytest.raises(watch_lib.Stop):
      for step in range(1, 1000):
        watch.look()
        now[0] += 0.001  # to dispatch it
        watch.save_is_due(step)
        now[0] += seconds
    assert now[0] - told["at"] <= max(1.1 * seconds, 1.1)


def test_what_is_not_finite_is_not_saved(tmp_path):
  """A checkpoint between two lines is looked at as well as a line."""
  saver = Saver()
  with pytest.raises(FloatingPointError, match="between steps 5 and 5"):
    run(
      tmp_path, update=nan_from(5), saver=saver, watch=watch_of(every_steps=1)
    )
  assert max(saver.saved) == 4


def told_at(monkeypatch, question):
  """The process is told to stop when it is asked for the n-th time."""
  left = iter(range(question - 1))
  monkeypatch.setattr(
    watch_lib.signals,
    "told",
    lambda: "SIGTERM" if next(left, None) is None else "",
  )


def evaluate(state, step):
  """In three batches, as a pass over held-out rows."""
  for _ in range(3):
    watch_lib.look()
  return {"validation/sum": int(state.trainable)}


def sampling(state, batch, step):
  """Samples and scores before it learns."""
  watch_lib.wait(batch)
  watch_lib.look()
  return update(state, batch, step)


# Of 37: those of steps 1 and 3, with its evaluation, and the last ones.
@pytest.mark.parametrize("question", [1, 2, 3, 4, *range(9, 17), 36, 37, 38])
def test_stopped_anywhere_it_ends_with_the_same_lines(
  tmp_path, monkeypatch, question
):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  parts = {"evaluate": evaluate, "update": sampling}
  state, judged, saver = run(whole, **parts)
  stopped = Saver()
  with monkeypatch.context() as patches:
    told_at(patches, question)
    try:
      run(broken, saver=stopped, **parts)
    except signals.Stopped as found:
      assert found.together and found.by == "SIGTERM"
    else:
      assert question == 38
  last, resumed = max(stopped.saved, default=0), None
  # At most the step under way is lost.
  made = {row["step"] for row in rows(broken) if "train/loss" in row}
  assert max(made, default=0) in (last, last - 1)
  if last:
    value, meta, _ = stopped.saved[last]
    began = steps.TrainState(jnp.int32(value), (), jnp.int32(last))
    resumed = Resumed(began, meta)
  again, other, later = run(broken, resumed=resumed, **parts)
  assert (again, other) == (state, judged)
  assert rows(broken) == rows(whole)
  kept = stopped.saved | later.saved
  assert {k: kept[k] for k in saver.saved} == saver.saved


def test_what_is_not_finite_is_not_saved_by_a_stop_either(
  tmp_path, monkeypatch
):
  saver = Saver()
  told_at(monkeypatch, 10)  # before step 6, whose predecessor has no line
  with pytest.raises(FloatingPointError, match="between steps 5 and 5"):
    run(tmp_path, update=nan_from(5), saver=saver)
  assert max(saver.saved) == 3

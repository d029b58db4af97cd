"""Saves between evaluations: when they are made, and that no line tells."""

import jax.numpy as jnp
import pytest

from perl_jax import steps
from perl_jax.checkpoint import Resumed
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


def test_the_clock_is_not_asked_at_every_short_step(monkeypatch):
  asked, now = [], [0.0]
  decide = watch_lib.hosts.decided_by_primary
  monkeypatch.setattr(
    watch_lib.hosts,
    "decided_by_primary",
    lambda act: asked.append(step) or decide(act),
  )
  watch = watch_of(every_seconds=100.0, clock=lambda: now[0])
  due = []
  for step in range(1, 2001):
    now[0] += 0.1
    if watch.save_is_due(step):
      due.append(step)
      watch.saved()
  assert len(asked) < 500  # every half a second
  # A save is late by less than that.
  assert len(due) == 1 and 1000 <= due[0] <= 1006


def test_what_is_not_finite_is_not_saved(tmp_path):
  """A checkpoint between two lines is looked at as well as a line."""
  saver = Saver()
  with pytest.raises(FloatingPointError, match="between steps 5 and 5"):
    run(
      tmp_path, update=nan_from(5), saver=saver, watch=watch_of(every_steps=1)
    )
  assert max(saver.saved) == 4

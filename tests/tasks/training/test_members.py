"""Members that take turns, on stages that add up numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import steps
from perl_jax.data.batches import prompts
from perl_jax.hosts import signals
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import members, together, watch
from tests.tasks import tiny

LAST = 4


class Batches:
  """A prompt of ones, as many as the seed and the step say."""

  def __init__(self, seed):
    self.seed = seed

  def at(self, number):
    rows = [prompts.EncodedPrompt([1] * (self.seed + number), 0)]
    return prompts.collate_prompts(rows, self.seed + number, 1)


class Log:
  """What members have done, in order.

  Attributes:
    events: (name, number of the member) of what has opened and closed.
    widths: Widths of the batches of each call of the step.
  """

  def __init__(self):
    self.events, self.widths = [], []


def make_step(log):
  def make(values):
    def step(state, frozen, batch, key):
      del key
      log.widths.append(batch.tokens.shape[1])
      rate = values.get("optimizer.learning_rate", 1.0)
      total = state.trainable + frozen * rate * batch.tokens.sum()
      return state._replace(trainable=total), {"sum": total}

    return step

  return make


def stage_of(log, first=(0, 0, 0), ends=lambda number, step: None):
  """A stage whose members begin after so many steps, with a sum of 100."""

  def stage(config, workdir, member):
    most = yield together.Most(config.seed)
    batches, number = Batches(config.seed), member.number
    step_fn = member.step(make_step(log), name="sum")
    log.events.append(("open", number))
    state = steps.TrainState(jnp.float32(100 * first[number]), (), 0)
    state = state._replace(step=jnp.int32(first[number]))
    try:
      with jax.set_mesh(shared.make_mesh(config)):
        for step in range(first[number] + 1, LAST + 1):
          ends(number, step)
          batch = batches.at(step - 1)
          batch = yield together.Widest(batch, step, batches)
          args = state, jnp.float32(1.0), batch, jax.random.key(0)
          state, found = yield together.Call(step_fn, args)
          log.events.append((step, number, batch.tokens.shape[1]))
          np.testing.assert_array_equal(found["sum"], state.trainable)
      yield together.Finished(
        lambda: log.events.append(("settle", number)), batches
      )
    except watch.Stop as stop:
      log.events.append(("saved", number))
      raise signals.Stopped(str(stop)) from None
    finally:
      log.events.append(("close", number))
    summary = {"sum": float(state.trainable), "most": most, "seconds": number}
    place = members.place_of(workdir.parents[1], number)
    assert place == workdir
    return summary

  return stage


def config(**fields):
  fields = {"tuning": "lora", "members": 3, "seed": 1} | fields
  return tiny.config("reward", **fields)


def run(tmp_path, stage, **fields):
  return members.run(stage, config(**fields), tmp_path / "run")


def added(seed, rate=1.0, first=0):
  """The sum of all that a member reads, by hand."""
  return 100 * first + rate * sum(seed + step for step in range(first, LAST))


def test_members_are_answered_together(tmp_path):
  log = Log()
  found = run(tmp_path, stage_of(log))
  for k in range(3):
    assert found[f"members.{k}.sum"] == added(1 + k)
    assert found[f"members.{k}.most"] == 3
  assert found["members"] == 3 and found["seconds"] == 2
  assert json.loads((tmp_path / "run/summary.json").read_text()) == found
  # All steps have the width of the widest, and one trace of it.
  assert [e for e in log.events if e[0] in range(1, LAST + 1)] == [
    (step, k, 2 + step) for step in range(1, LAST + 1) for k in range(3)
  ]
  assert log.widths == [3, 4, 5, 6]
  # None has an end before all are on disk.
  assert log.events[-6:] == [
    ("settle", 0), ("settle", 1), ("settle", 2),
    ("close", 0), ("close", 1), ("close", 2),
  ]  # fmt: skip


def test_values_are_each_member_s_own(tmp_path):
  found = run(
    tmp_path,
    stage_of(Log()),
    members=1,
    vary="seed=1,1,2 optimizer.learning_rate=1,2,4",
  )
  sums = [found[f"members.{k}.sum"] for k in range(3)]
  assert sums == [added(1), added(1, 2.0), added(2, 4.0)]


def test_one_that_is_ahead_waits_and_lends_its_widths(tmp_path):
  log = Log()
  found = run(tmp_path, stage_of(log, first=(0, 2, LAST)))
  sums = [found[f"members.{k}.sum"] for k in range(3)]
  assert sums == [added(1), added(2, first=2), added(3, first=LAST)]
  made = [event for event in log.events if event[0] in range(1, LAST + 1)]
  # As wide as if all had taken part.
  assert made == [
    (1, 0, 3), (2, 0, 4), (3, 0, 5), (3, 1, 5), (4, 0, 6), (4, 1, 6),
  ]  # fmt: skip


def test_any_of_them_may_be_ahead(tmp_path):
  found = run(tmp_path, stage_of(Log(), first=(LAST, 0, 3)))
  sums = [found[f"members.{k}.sum"] for k in range(3)]
  assert sums == [added(1, first=LAST), added(2), added(3, first=3)]


def test_all_save_when_one_is_told_to_stop(tmp_path):
  def ends(number, step):
    if (number, step) == (2, 3):
      raise watch.Stop("SIGTERM")

  log = Log()
  with pytest.raises(signals.Stopped, match="Stopped by SIGTERM"):
    run(tmp_path, stage_of(log, ends=ends))
  saved = [number for event, number, *_ in log.events if event == "saved"]
  assert saved == [2, 0, 1]
  assert not (tmp_path / "run/summary.json").exists()
  assert (tmp_path / "run/config.json").exists()


def test_all_save_when_told_to_stop_while_their_step_compiles(
  tmp_path, monkeypatch
):
  def stops(self, calls):
    del self
    assert sorted(calls) == [0, 1, 2]
    raise watch.Stop("SIGTERM")

  monkeypatch.setattr(together.Shared, "call", stops)
  log = Log()
  with pytest.raises(signals.Stopped, match="Stopped by"):
    run(tmp_path, stage_of(log))
  saved = [number for event, number, *_ in log.events if event == "saved"]
  assert saved == [0, 1, 2]
  assert not (tmp_path / "run/summary.json").exists()


def test_one_that_has_no_step_under_way_is_told_to_stop(tmp_path):
  """While the others have one: they save it."""
  log = Log()
  made = stage_of(log)

  def stage(config, workdir, member):
    if member.number < 2:
      return (yield from made(config, workdir, member))
    yield together.Most()
    raise watch.Stop("SIGTERM")  # as of an evaluation before the first step

  with pytest.raises(signals.Stopped, match="Stopped by SIGTERM"):
    run(tmp_path, stage)
  assert [e for e in log.events if e[0] == "saved"] == [
    ("saved", 0), ("saved", 1),
  ]  # fmt: skip


def test_others_save_where_a_number_of_one_is_not_finite(tmp_path):
  """Also one that has its step only after the error of another."""

  def ends(number, step):
    if (number, step) == (1, 3):
      raise FloatingPointError("a NaN.")

  log = Log()
  with pytest.raises(FloatingPointError, match=r"Member 1: a NaN\. .*vary="):
    run(tmp_path, stage_of(log, ends=ends))
  assert [e for e in log.events if e[0] in (2, 3, "saved")] == [
    (2, 0, 4), (2, 1, 4), (2, 2, 4), ("saved", 0), ("saved", 2),
  ]  # fmt: skip
  assert not (tmp_path / "run/summary.json").exists()
  assert not list((tmp_path / "run").rglob("lock.json"))


def test_a_summary_that_is_written_anew_is_whole(tmp_path):
  """As by a run whose member has lost its last checkpoint."""
  for first in ((0, 0, 0), (0, 1, 2)):
    run(tmp_path, stage_of(Log(), first=first))
    sealed.require(tmp_path / "run", "config.json", "summary.json")


def test_an_error_closes_all_in_order(tmp_path):
  def ends(number, step):
    if (number, step) == (0, 2):
      raise ValueError("a loss")

  log = Log()
  with pytest.raises(ValueError, match="a loss"):
    run(tmp_path, stage_of(log, ends=ends))
  closed = [number for event, number, *_ in log.events if event == "close"]
  assert closed == [0, 2, 1]
  assert jax.sharding.get_mesh().empty
  assert not list((tmp_path / "run").rglob("lock.json"))


def test_what_cannot_begin_leaves_nothing(tmp_path):
  def stage(config, workdir, member):
    if member.number:
      raise ValueError("no rows")
    yield together.Most()

  with pytest.raises(ValueError, match="no rows"):
    run(tmp_path, stage)
  assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match=r"3 members in 2 processes.*sweep"):
    run(tmp_path, stage_of(Log()))
  assert not (tmp_path / "run").exists()


def test_a_run_of_its_own_meets_nobody():
  batch = Batches(1).at(2)

  def requests():
    most = yield together.Most(4)
    widest = yield together.Widest(batch, 1, None)
    found = yield together.Call(lambda *args: sum(args), (1, 2, 3, 4))
    nothing = yield together.Finished(lambda: 1 / 0, None)
    return most, widest, found, nothing

  assert together.alone(requests()) == (4, batch, 10, None)


def test_what_fails_for_one_is_raised_where_it_was_asked_for():
  seen = []

  class Request:
    def alone(self):
      raise KeyError("no such step")

  def stage():
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
      try:
        yield Request()
      except KeyError as error:
        seen.append(error)
        raise

  with pytest.raises(KeyError, match="no such step") as kept:
    together.alone(stage())
  assert seen == [kept.value]
  assert jax.sharding.get_mesh().empty

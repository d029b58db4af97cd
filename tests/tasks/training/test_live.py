"""When a run that is still going writes its report."""

import itertools
import logging
import os

import pytest

from perl_jax import hosts
from perl_jax.tasks.training import live
from tests.tasks.training import test_loop

pytestmark = pytest.mark.usefixtures("as_shipped")


class Reports:
  """Writes no report, but takes some seconds for it."""

  def __init__(self, seconds=1.0):
    self.seconds, self.now, self.at = seconds, 0.0, []

  def __call__(self):
    self.at.append(self.now)
    self.now += self.seconds

  def evaluations(self, every, count):
    made = live.Live(self, clock=lambda: self.now)
    for _ in range(count):
      self.now += every
      made.evaluated()
    return self.at


def test_not_more_often_than_every_half_minute():
  assert Reports().evaluations(every=10, count=9) == [30, 61, 92]


def test_at_each_evaluation_that_takes_longer():
  assert Reports().evaluations(every=100, count=3) == [100, 201, 302]


def test_a_slow_report_takes_a_small_share_of_the_time():
  found = Reports(seconds=60).evaluations(every=300, count=20)
  assert found[0] == 300 and all(
    (later - earlier - 60) * live.MOST_SHARE >= 60 - 1e-6
    for earlier, later in itertools.pairwise(found)
  )
  assert len(found) > 3


@pytest.fixture
def at_once(as_shipped, monkeypatch):
  monkeypatch.setattr(live, "LEAST_SECONDS", 0.0)
  monkeypatch.setattr(live, "MOST_SHARE", 1.0)


def test_what_is_around_comes_first(at_once):
  """The stages of a pipeline write the pipeline's report."""
  told = []
  with live.reported(lambda: told.append("pipeline")):
    for _ in range(2):
      with live.reported(lambda: told.append("stage")):
        live.evaluated()
    assert told == ["pipeline", "pipeline"]
  assert told == ["pipeline"] * 3  # and once more at the end
  live.evaluated()  # outside of a run
  assert len(told) == 3


def test_none_is_written_at_the_end_of_a_short_run():
  told = []
  with live.reported(lambda: told.append(1)):
    live.evaluated()
  assert told == []


@pytest.fixture
def ended(tmp_path, as_shipped, monkeypatch):
  """Returns a function that ends a run, and says whether it has its report."""
  report, summary = tmp_path / "report.html", tmp_path / "summary.json"

  def end(least, *, finished=False):
    monkeypatch.setattr(live, "LEAST_SECONDS", least)
    with live.reported(lambda: report.write_text("drawn"), tmp_path):
      (tmp_path / "config.json").write_text("{}")
      if not finished:
        summary.write_text("{}")
    return report.exists() and report.read_text() == "drawn"

  end.report, end.summary = report, summary
  return end


def test_a_run_that_was_long_ends_with_one(ended):
  assert not ended(1e9)
  assert ended(0.0)


def test_a_run_that_goes_on_ends_with_one(ended):
  ended(1e9)
  assert ended(1e9)


def test_one_of_before_the_summary_is_written_anew(ended):
  ended(1e9)
  ended.report.write_text("so far")
  os.utime(ended.summary, (5, 5))
  os.utime(ended.report, (4, 4))
  assert ended(1e9, finished=True)


def test_the_last_one_is_left_alone(ended):
  ended(1e9)
  ended.report.write_text("the last")
  os.utime(ended.summary, (5, 5))
  os.utime(ended.report, (5, 5))
  assert not ended(1e9, finished=True)
  assert ended.report.read_text() == "the last"


def test_only_process_0_writes(monkeypatch, at_once):
  monkeypatch.setattr(hosts, "is_primary", lambda: False)
  with live.reported(lambda: pytest.fail("written")):
    live.evaluated()


def test_a_run_goes_on_without_its_report(at_once, caplog):
  def fail():
    raise OSError("no space left")

  with caplog.at_level(logging.WARNING), live.reported(fail):
    live.evaluated()
  assert "could not be written: OSError: no space left" in caplog.text


def test_it_follows_the_checkpoint_of_each_evaluation(tmp_path, at_once):
  saver, told = test_loop.Saver(), []
  with live.reported(lambda: told.append(sorted(saver.saved))):
    test_loop.run(tmp_path, saver=saver)
  assert told == [[3], [3, 6], [3, 6, 7], [3, 6, 7]]

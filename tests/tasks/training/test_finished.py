"""What says that a stage has finished, and what a finished one does."""

import json
import os
import subprocess
import time

import pytest
from absl import logging

from perl_jax import tasks
from perl_jax.hosts import signals
from perl_jax.tasks import pipeline, sft
from perl_jax.tasks.dry_run import memory_check
from perl_jax.tasks.training import lock, loop, timing, together
from perl_jax.tasks.training import workdir as workdir_lib
from tests.tasks import tiny
from tests.tasks.training.test_loop import Saver, opened


def test_a_stage_is_finished_only_with_its_last_checkpoint(tmp_path):
  """What says that a stage is done is written after what it is about."""

  class Pending(Saver):
    def close(self):
      assert signals._deferred  # a signal does not leave it half done
      assert not (tmp_path / "summary.json").exists()
      if broken:
        raise OSError("no space left")

  costs = timing.Costs(0.0, {})
  for broken in (True, False):
    with opened(tmp_path) as writer:
      stage = loop.Run(None, None, None, Pending(), writer, None, None, costs)
      if broken:
        with pytest.raises(OSError, match="no space left"):
          stage.finish({"loss": 1.0})
        assert not (tmp_path / "summary.json").exists()
      else:
        stage.finish({"loss": 1.0})
  found = json.loads((tmp_path / "summary.json").read_text())
  assert found["loss"] == 1.0


@pytest.fixture
def ran(monkeypatch):
  """Workdirs in which a stage has been started instead of taken as finished."""
  found = []

  def stage(config, workdir):
    assert (workdir / lock.LOCK_FILE).is_file()
    found.append(workdir)
    yield together.Most()
    return {}

  monkeypatch.setattr(sft, "stage", stage)
  monkeypatch.setattr(memory_check, "check", lambda *_: None)
  return found


def finish(workdir):
  """What a stage of four steps leaves."""
  config = tasks.resolved(tiny.config("sft"), workdir)
  with workdir_lib.preparing(config, workdir):
    pass
  (workdir / "checkpoints" / "4").mkdir(parents=True)
  (workdir / "summary.json").write_text('{"loss": 1.5}')


def stamps(directory):
  places = [directory, *directory.rglob("*")]
  return {path: path.stat().st_mtime_ns for path in places}


def test_a_finished_stage_says_so_and_changes_nothing(tmp_path, ran, caplog):
  workdir = tmp_path / "run"
  finish(workdir)
  before, when = tiny.tree(workdir), stamps(workdir)
  logging.set_verbosity(logging.INFO)
  with caplog.at_level("INFO", logger="absl"):
    assert tasks.run(tiny.config("sft"), workdir) == {"loss": 1.5}
  assert "has finished" in caplog.text
  assert tiny.tree(workdir) == before and stamps(workdir) == when
  assert not ran
  with pytest.raises(ValueError, match=r"config\.seed: 0 -> 3"):
    tasks.run(tiny.config("sft", seed=3), workdir)
  assert tiny.tree(workdir) == before and stamps(workdir) == when


def test_a_run_killed_after_its_summary_leaves_no_lock(tmp_path, ran):
  """Nobody would take the workdir again, and so find the lock."""
  workdir, where = tmp_path / "run", tmp_path / "run" / lock.LOCK_FILE
  finish(workdir)
  dead = subprocess.Popen(["true"])
  dead.wait()
  for pid, left in ((dead.pid, False), (os.getppid(), True)):
    theirs = lock.myself() | {"pid": pid, "started": lock._started(pid)}
    where.write_text(json.dumps(theirs))
    assert tasks.run(tiny.config("sft"), workdir) == {"loss": 1.5}
    assert where.exists() == left
    where.write_text(json.dumps(theirs))
    pipeline.run_stage(tiny.config("sft"), workdir)
    assert where.exists() == left
  assert not ran


@pytest.mark.parametrize("lost", ["summary.json", "checkpoints"])
def test_a_stage_without_its_last_checkpoint_has_not_finished(
  tmp_path, ran, lost, caplog
):
  workdir = tmp_path / "run"
  finish(workdir)
  if lost == "checkpoints":
    (workdir / lost / "4").rename(workdir / lost / "2")
  else:
    (workdir / lost).unlink()
  tasks.run(tiny.config("sft"), workdir)
  assert ran == [workdir]
  told = "the checkpoint of its last step, is not" in caplog.text
  assert told == (lost == "checkpoints")


def test_seconds_add_up_over_resumes():
  class Function:
    compile_seconds, peak_bytes = 2.0, 100

  costs = timing.Costs(time.perf_counter() - 10, {})
  costs.compiled = [Function()]
  first = costs.so_far()
  assert 10 <= first["seconds"] < 11
  costs = timing.Costs(time.perf_counter() - 5, first)
  second = costs.so_far()  # nothing was compiled: there was nothing left to do
  assert 15 <= second["seconds"] < 17
  assert (second["seconds_compiling"], second["peak_bytes"]) == (2.0, 100)

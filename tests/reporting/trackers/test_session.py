"""What a tracker is sent, whatever happens to it and to the run."""

import json
import math
import time

import pytest
from absl import logging

from perl_jax import files, metrics
from perl_jax.reporting.trackers import sending, session
from tests.reporting.trackers.recorder import Died, run, tracking
from tests.test_metrics import plain_console

SUMMARY = {"kl": 0.25, "reward_after": "nan", "path": "runs/x", "ok": True}


def steps(rows):
  return [step for step, _ in rows]


def writer_of(workdir):
  return metrics.Writer(workdir, total_steps=9, console=plain_console())


def wait_until(done):
  until = time.monotonic() + 20
  while not done() and time.monotonic() < until:
    time.sleep(0.01)
  assert done()


def test_all_rows_once_and_the_files(tmp_path, recorder):
  url = "https://me:secret@host/score"
  config = {"lora": {"rank": 4}, "reward": {"fn": url}, "trackers": ["wandb"]}
  files.write_json(tmp_path / "config.json", config)
  run(tmp_path, range(4), summary=SUMMARY)
  (found,) = recorder.runs.values()
  assert steps(found["rows"]) == [0, 0, 1, 2, 2, 3, 3]
  assert found["rows"][0] == (0, {"train/loss": 1.0})
  assert math.isnan(found["rows"][1][1]["validation/loss"])
  last = found["rows"][-1][1]
  assert math.isnan(last.pop("summary/reward_after"))
  assert last == {"summary/kl": 0.25, "summary/ok": 1.0}
  assert found["config"]["lora.rank"] == 4
  assert found["config"]["reward.fn"] == "https://host/score"
  assert found["files"].keys() == {"config.json", "summary.json", "report.html"}
  assert "secret" not in json.dumps(found["files"])
  assert found["files"]["report.html"] == "<p>report"
  assert found["state"] == "finished"
  start = found["starts"][0]
  assert (start.name, start.group, start.task) == (
    "pipeline/rl", "pipeline", "rl",
  )  # fmt: skip


def test_samples_only_if_asked(tmp_path, recorder):
  run(tmp_path / "no", range(1), summary=SUMMARY)
  run(tmp_path / "yes", range(1), summary=SUMMARY, samples=True)
  no, yes = recorder.runs.values()
  assert "private" not in str(no)
  assert "private" in yes["files"]["samples.jsonl"]


def test_a_run_that_goes_on_is_the_same_one(tmp_path, recorder):
  """Killed after step 5, it goes on from 3; no row is sent twice."""
  with pytest.raises(Died):
    run(tmp_path, range(6))
  (found,) = recorder.runs.values()
  assert found["state"] == "stopped"
  assert found["files"] == {}
  run(tmp_path, range(3, 8), resume_step=3, summary={})
  assert len(recorder.runs) == 1
  assert steps(found["rows"]) == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]
  assert found["state"] == "finished"


def test_a_kill_between_the_rows_of_a_step(tmp_path, recorder):
  note = {"wandb": {"id": "x", "project": "", "step": 2, "lines": 1}}
  files.write_json(tmp_path / session.STATE_FILE, note)
  run(tmp_path, range(4), summary={})
  (found,) = recorder.runs.values()
  assert found["starts"][0].known == "x"
  assert steps(found["rows"]) == [2, 3]
  assert "validation/loss" in found["rows"][0][1]


def test_another_project_gets_all_of_it(tmp_path, recorder):
  with pytest.raises(Died):
    run(tmp_path, range(2))
  run(tmp_path, range(2, 4), resume_step=2, summary={}, project="other")
  _, other = recorder.runs.values()
  assert steps(other["rows"]) == [0, 0, 1, 2, 2, 3]


def test_an_evaluation_made_again_is_another_run(
  tmp_path,
  recorder,
):
  for _ in range(2):
    run(tmp_path, [1], summary=SUMMARY, goes_on=False)
  assert [steps(run["rows"]) for run in recorder.runs.values()] == 2 * [[1, 1]]


def test_a_finished_run_has_nothing_pending(tmp_path, recorder):
  run(tmp_path, [1], summary=SUMMARY)
  with session.opened(tmp_path, None) as opened:
    assert not opened.pending
  before = dict(recorder.runs["id0"]), len(recorder.runs["id0"]["rows"])
  with session.opened(tmp_path, tracking()) as opened:
    assert not opened.pending
  assert before == (recorder.runs["id0"], len(recorder.runs["id0"]["rows"]))


def test_a_failure_is_one_line_and_is_tried_again(
  tmp_path,
  recorder,
  caplog,
):
  recorder.broken = 3
  with (
    caplog.at_level("INFO", logger=logging.get_absl_logger().name),
    session.opened(tmp_path, tracking()),
    writer_of(tmp_path) as writer,
  ):
    writer.write(1, {"loss": 0.5})
    wait_until(lambda: "there again" in caplog.text)
    writer.summary({})
  warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
  assert len(warned) == 1, warned
  assert warned[0].startswith("wandb failed, tried again in 0 s")
  assert "no way to http://somewhere/api at all" in warned[0]
  assert "secret" not in caplog.text
  (found,) = recorder.runs.values()
  assert steps(found["rows"]) == [1]


def test_a_tracker_that_hangs_holds_nothing_up(
  tmp_path,
  recorder,
  caplog,
  monkeypatch,
):
  """And the same command sends the rest."""
  monkeypatch.setitem(session.CLOSE_SECONDS, "finished", 0.1)
  recorder.hangs.clear()
  begun = time.monotonic()
  run(tmp_path, range(3), summary=SUMMARY)
  assert time.monotonic() - begun < 5
  assert "wandb has not got all" in caplog.text
  recorder.broken = 1  # what has hung fails in the end
  recorder.hangs.set()
  wait_until(lambda: not recorder.broken)
  monkeypatch.setitem(session.CLOSE_SECONDS, "finished", 20)
  with session.opened(tmp_path, tracking()) as opened:
    assert opened.pending
  (found,) = recorder.runs.values()
  assert steps(found["rows"]) == [0, 0, 1, 2, 2, 2]


def test_a_damaged_note_is_said(tmp_path, recorder, caplog):
  (tmp_path / session.STATE_FILE).write_text('{"wandb": {"id"')
  run(tmp_path, [1], summary=SUMMARY)
  assert "trackers.json is damaged" in caplog.text
  assert steps(recorder.runs["id0"]["rows"]) == [1, 1]
  noted = json.loads((tmp_path / session.STATE_FILE).read_text())
  assert noted["wandb"]["complete"]


def test_a_run_that_fails_says_so(tmp_path, recorder):
  with (
    pytest.raises(ZeroDivisionError),
    session.opened(tmp_path, tracking()),
    writer_of(tmp_path) as writer,
  ):
    writer.write(1, {"loss": 1 / 0})
  assert recorder.runs["id0"]["state"] == "failed"


def test_without_trackers_nothing_is_written(tmp_path):
  with session.opened(tmp_path, None), writer_of(tmp_path) as writer:
    writer.write(1, {"loss": 1.0})
  assert not (tmp_path / session.STATE_FILE).exists()


def test_passwords_in_addresses():
  text = 'at https://a:b@host/x, "http://t@h:1/" and a@b or //c/d@e'
  cleaned = 'at https://host/x, "http://h:1/" and a@b or //c/d@e'
  assert sending.without_passwords(text) == cleaned

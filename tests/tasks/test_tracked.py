"""Commands that send what they write to a tracker."""

import json

import pytest

from perl_jax import checkpoint, hosts, tasks
from perl_jax.reporting.trackers import session
from tests.reporting.trackers.recorder import recorder_fixture  # noqa: F401
from tests.tasks import tiny

WAIT = {"finished": 60.0, "stopped": 60.0, "failed": 60.0}


@pytest.fixture(autouse=True)
def patient(monkeypatch):
  """A busy machine may take long to send."""
  monkeypatch.setattr(session, "CLOSE_SECONDS", WAIT)


class Killed(BaseException):
  """No `except` of ours or of a library may catch it."""


def sent(run):
  """What a tracker has of metrics.jsonl, as its lines would be."""
  return [
    {"step": step, **scalars}
    for step, scalars in run["rows"]
    if not any(name.startswith("summary/") for name in scalars)
  ]


def written(workdir):
  rows = tiny.lines(workdir)
  return [
    {k: v if k == "step" else float(v) for k, v in row.items()} for row in rows
  ]


def as_text(rows):
  """Rows to compare, without times; NaN is itself."""
  return json.dumps([tiny.untimed(row) for row in rows])


@pytest.mark.slow
def test_a_killed_run_goes_on_as_the_same_one(tmp_path, monkeypatch, recorder):
  workdir, save = tmp_path / "mine", checkpoint.Checkpointer.save

  def killed(self, step, *args):
    if step == 4:
      raise Killed
    save(self, step, *args)

  fields = {"trackers": ("wandb",), "eval_every": 2}
  with monkeypatch.context() as patches:
    patches.setattr(checkpoint.Checkpointer, "save", killed)
    with pytest.raises(Killed):
      tiny.run(workdir, "sft", **fields)
  (run,) = recorder.runs.values()
  assert max(step for step, _ in run["rows"]) == 4
  summary = tiny.run(workdir, "sft", **fields)
  assert len(recorder.runs) == 1
  assert as_text(sent(run)) == as_text(written(workdir))
  last = run["rows"][-1][1]
  numbers = {k: v for k, v in summary.items() if not isinstance(v, str)}
  assert last == {
    f"summary/{name}": pytest.approx(value, nan_ok=True)
    for name, value in numbers.items()
  }
  assert run["starts"][0].name == "mine"
  assert run["config"]["data.name"] == "coffee_bar"
  assert json.loads(run["files"]["config.json"])["steps"] == 4
  page = run["files"]["report.html"]
  assert "Supervised fine-tuning" in page
  sample = tiny.lines(workdir, "samples.jsonl")[0]
  assert json.dumps(sample["prompt"])[1:-1] not in page
  assert "samples.jsonl" not in run["files"]
  # Nothing is left to do.
  before = len(run["rows"])
  tiny.run(workdir, "sft", **fields)
  assert len(run["rows"]) == before and len(recorder.runs) == 1


@pytest.fixture
def finished_pipeline(finished):
  """The shared one, which is left without a trace of trackers."""
  yield finished
  for path in finished.rglob(session.STATE_FILE):
    path.unlink()


@pytest.mark.slow
def test_a_finished_pipeline_is_sent_without_training(
  finished_pipeline, recorder, monkeypatch
):
  workdir, name = finished_pipeline, finished_pipeline.name
  before = (workdir / "rl" / "metrics.jsonl").read_bytes()
  stages = ("sft", "reward", "rl", "evaluate")
  monkeypatch.setattr(
    tasks, "_train", lambda *_: pytest.fail("nothing is to be trained")
  )
  tasks.run(tiny.pipeline(trackers=("wandb",)), workdir)
  runs = {run["starts"][0].name: run for run in recorder.runs.values()}
  assert runs.keys() == {name, *(f"{name}/{stage}" for stage in stages)}
  for stage in stages:
    run = runs[f"{name}/{stage}"]
    assert as_text(sent(run)) == as_text(written(workdir / stage))
    assert run["starts"][0].group == name
  assert sent(runs[name]) == []
  assert "Reinforcement learning" in runs[name]["files"]["report.html"]
  assert (workdir / "rl" / "metrics.jsonl").read_bytes() == before


def test_no_command_line_is_sent(tmp_path, recorder):
  """It may have passwords in it; the report of the workdir shows it."""
  command = "perl_jax --config=sft --config.reward.fn=http://x/y?key=hunter2"
  config = tiny.config("sft", trackers=("wandb",))
  written = {
    "command.txt": command,
    "config.json": config.to_json(),
    "metrics.jsonl": '{"step": 1, "train/loss": 0.5}\n',
    "summary.json": '{"seconds": 3.0}',
  }
  for name, text in written.items():
    (tmp_path / name).write_text(text)
  with tasks.tracked(config, tmp_path):
    pass
  (run,) = recorder.runs.values()
  assert run["files"].keys() == {"config.json", "summary.json", "report.html"}
  assert "Resolved config" in run["files"]["report.html"]
  assert "hunter2" not in run["files"]["report.html"]
  assert "hunter2" in tasks.TASKS["report"].module().render(tmp_path)


def test_other_processes_send_nothing(tmp_path, monkeypatch, recorder):
  monkeypatch.setattr(hosts, "is_primary", lambda: False)
  config = tiny.config("sft", trackers=("wandb",))
  with tasks.tracked(config, tmp_path):
    assert session.find(tmp_path) is None
  assert recorder.runs == {}

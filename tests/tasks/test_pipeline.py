"""All stages in one run: what it leaves, and how it goes on after a kill."""

import json
import logging

import pytest
from tensorboardX.proto import event_pb2

from configs import quickstart, sft
from perl_jax import files, tasks
from perl_jax.tasks import pipeline
from tests.tasks import tiny
from tests.tasks.stages import Stages

# What a pipeline's summary.json has to have.
KEYS = (
  "sft.gold", "reward.accuracy", "reward.auroc", "reward.trainable_share",
  "rl.gold_before", "rl.gold_after", "rl.reward_before", "rl.reward_after",
  "rl.kl", "rl.kl_at_step_0", "seconds.sft", "seconds.reward", "seconds.rl",
  "seconds.evaluate", "seconds.total",
)  # fmt: skip


def test_summary_has_what_was_asked_for(finished):
  summary = tiny.summary(finished)
  for key in KEYS:
    assert isinstance(summary[key], int | float), key
  assert summary["rl.kl_at_step_0"] == 0.0
  assert summary["rl.kl"] != 0.0
  for key in ("sft.gold", "rl.gold_before", "rl.gold_after", "reward.accuracy"):
    assert 0.0 <= summary[key] <= 1.0
  assert 0.0 < summary["reward.trainable_share"] < 0.05
  times = [v for k, v in summary.items() if k.startswith("seconds.")]
  assert summary["seconds.total"] == pytest.approx(sum(times) / 2)
  for stage in ("sft", "reward", "rl"):
    assert summary[f"memory.{stage}"] > 0
  for stage in tiny.STAGES:
    own = tiny.summary(finished / stage)
    assert (
      own.items()
      >= {
        k.removeprefix(f"{stage}."): v
        for k, v in summary.items()
        if k.startswith(f"{stage}.")
      }.items()
    )


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_workdir_of_a_stage(finished, stage):
  workdir = finished / stage
  config = json.loads((workdir / "config.json").read_text())
  assert config["task"] == stage
  assert config["data"]["prompt_len"] == 88
  rows = files.read_jsonl(workdir / "metrics.jsonl")
  assert rows and all(type(row["step"]) is int for row in rows)
  assert json.loads((workdir / "summary.json").read_text())
  events = list((workdir / "tensorboard").iterdir())
  assert events and b"brain.Event" in events[0].read_bytes()
  assert event_pb2.Event  # what wrote them
  if stage == "evaluate":
    assert not (workdir / "checkpoints").exists()
  else:
    assert tiny.kept(workdir)
    assert (workdir / "model.json").exists()
    assert (workdir / "tokenizer" / "tokenizer.json").exists()
  if stage != "reward":
    assert files.read_jsonl(workdir / "samples.jsonl")
  if stage in ("reward", "evaluate"):
    assert len(files.read_jsonl(workdir / "scores.jsonl")) == 8


def test_report_shows_every_stage(finished):
  page = (finished / "report.html").read_text()
  assert "rl.gold_after" in page or "gold" in page
  for stage in ("sft", "reward", "rl"):
    assert stage in page
  assert "<svg" in page and "http://" not in page.replace(
    "http://www.w3.org", ""
  )


def test_second_run_computes_nothing(finished, monkeypatch):
  """Every stage has its summary: they are read, and nothing is run."""
  before = tiny.tree(finished)
  monkeypatch.setattr(tasks, "run", None)
  summary = pipeline.run(tiny.pipeline(), finished)
  assert summary == tiny.summary(finished)
  after = tiny.tree(finished)
  assert before == after


@pytest.mark.nightly
def test_lengths_of_the_quickstart_fit_its_model(tmp_path):
  """It is what a newcomer types, but for the number of steps and rows."""
  small = {"steps": 1, "eval_every": 1, "batch_size": 8, "microbatches": 1}
  values = {
    f"{task}.{name}": value
    for task in ("sft", "reward", "rl")
    for name, value in (small | {"model.scan_unroll": 1}).items()
  }
  values |= {
    f"{task}.{name}": value
    for task in tiny.STAGES
    for name, value in {
      "data.options.size": 48, "data.options.validation_size": 8,
      "eval.rows": 8, "eval.batch_size": 8, "model.preset": "tiny",
    }.items()
  }  # fmt: skip
  values["rl.value.warmup_steps"] = 0
  config = tiny.override(quickstart.get_config(), values)
  data = config.rl.data
  assert data.prompt_len + data.response_len == data.max_len
  assert pipeline.run(config, tmp_path / "run")["rl.kl_at_step_0"] == 0.0


def test_killed_pipeline_goes_on_with_the_stage_it_was_in(
  tmp_path, monkeypatch
):
  workdir, config = tmp_path / "run", tiny.pipeline()
  first, second = Stages(killed="rl"), Stages()
  monkeypatch.setattr(tasks, "run", first)
  with pytest.raises(KeyboardInterrupt):
    pipeline.run(config, workdir)
  assert [task for task, *_ in first.calls] == ["sft", "reward", "rl"]
  assert not (workdir / "summary.json").exists()
  monkeypatch.setattr(tasks, "run", second)
  summary = pipeline.run(config, workdir)
  assert [task for task, *_ in second.calls] == ["rl", "evaluate"]
  assert summary["seconds.total"] == 8.0
  assert summary["memory.rl"] == 10 and summary["rl.kl"] == 0.5
  assert summary == tiny.summary(workdir)


def test_a_signal_at_the_end_of_a_stage_starts_no_other(tmp_path, monkeypatch):
  """The stage writes its summary; the pipeline stops before the next."""
  stages, told = Stages(), []
  monkeypatch.setattr(pipeline.signals, "told", lambda: "".join(told))

  def run(config, workdir):
    if config.task == "reward":
      told.append("SIGTERM")
    return stages(config, workdir)

  monkeypatch.setattr(tasks, "run", run)
  with pytest.raises(pipeline.signals.Stopped, match="SIGTERM"):
    pipeline.run(tiny.pipeline(), tmp_path / "run")
  assert [task for task, *_ in stages.calls] == ["sft", "reward"]
  told.clear()
  pipeline.run(tiny.pipeline(), tmp_path / "run")
  assert [task for task, *_ in stages.calls][2:] == ["rl", "evaluate"]


def test_stage_takes_the_one_before_and_what_the_run_says(
  tmp_path, monkeypatch
):
  stages = Stages()
  monkeypatch.setattr(tasks, "run", stages)
  config = tiny.pipeline(seed=5, data__dir="copies", rl__beta=0.2)
  pipeline.run(config, tmp_path / "run")
  configs = {task: found for task, found, _ in stages.calls}
  places = {task: workdir for task, _, workdir in stages.calls}
  for task, found in configs.items():
    assert found.is_locked and found.task == task
    assert found.seed == 5 and found.data.dir == "copies"
    assert found.data.prompt_len == 88  # empty fields leave the stage's own
    assert places[task] == tmp_path / "run" / task
  assert configs["rl"].beta == 0.2
  assert configs["sft"].policy.init == ""
  assert configs["reward"].reward.init == str(places["sft"])
  assert configs["rl"].policy.init == str(places["sft"])
  assert configs["rl"].reward.init == str(places["reward"])
  assert configs["evaluate"].policy.init == str(places["rl"])
  assert configs["evaluate"].reward.init == str(places["reward"])
  assert config.rl.policy.init == ""  # the run's own config is as it was


@pytest.mark.parametrize(
  "fields, named",
  [
    ({"data__path": "a", "sft__data__path": "b"}, "config.sft.data.path='b'"),
    ({"rl__seed": 5}, "config.rl.seed=5"),
    ({"seed": 4, "rl__seed": 5}, "config.rl.seed=5"),
    ({"base": "a", "reward__base": "b"}, "config.reward.base='b'"),
    ({"rl__reward__init": "mine"}, "config.rl.reward.init='mine'"),
  ],
)
def test_what_a_stage_sets_is_not_overwritten(tmp_path, fields, named):
  with pytest.raises(ValueError) as caught:
    pipeline.run(tiny.pipeline(**fields), tmp_path / "run")
  assert named in str(caught.value) and "own commands" in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_a_stage_may_have_what_the_run_leaves_open(tmp_path, monkeypatch):
  stages = Stages()
  monkeypatch.setattr(tasks, "run", stages)
  config = tiny.pipeline(seed=5, rl__seed=5, sft__data__path="demos")
  pipeline.run(config, tmp_path / "run")
  configs = {task: found for task, found, _ in stages.calls}
  assert configs["sft"].data.path == "demos"
  assert configs["reward"].data.path == ""


def test_without_sft_the_stages_start_from_the_base(tmp_path, monkeypatch):
  stages = Stages()
  monkeypatch.setattr(tasks, "run", stages)
  config = tiny.pipeline(base="models/llama")
  with config.unlocked():
    del config.sft
  pipeline.run(config, tmp_path / "run")
  configs = {task: found for task, found, _ in stages.calls}
  assert list(configs) == ["reward", "rl", "evaluate"]
  assert all(found.base == "models/llama" for found in configs.values())
  assert configs["reward"].reward.init == configs["rl"].policy.init == ""
  assert configs["rl"].reward.init == str(tmp_path / "run" / "reward")
  assert configs["evaluate"].policy.init == str(tmp_path / "run" / "rl")


def test_without_sft_and_base_there_is_nothing_to_start_from(tmp_path):
  config = tiny.pipeline()
  with config.unlocked():
    del config.sft
  with pytest.raises(ValueError, match=r"--config\.base=PATH"):
    pipeline.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_base_that_names_a_package_becomes_its_file(tmp_path, monkeypatch):
  seen = []

  class Task:
    @staticmethod
    def run(config, workdir):
      seen.append(config)

  monkeypatch.setattr(tasks.Task, "module", lambda self: Task)
  monkeypatch.setattr(tasks.packages, "resolve", lambda base: f"found {base}")
  config = tiny.pipeline(base="package:llm")
  tasks.run(config, tmp_path)
  assert seen[0].base == "found package:llm" and seen[0].is_locked
  assert config.base == "package:llm"  # the caller's own is as it was


def test_fields_that_depend_on_the_backbone_are_filled_in(
  tmp_path, monkeypatch, caplog
):
  seen = []

  class Task:
    programs = None

    @staticmethod
    def stage(config, workdir):
      seen.append(config)
      yield from ()
      return {}

  monkeypatch.setattr(tasks.Task, "module", lambda self: Task)
  config = sft.get_config("jsonl")
  config.fit = "off"
  with caplog.at_level(logging.INFO, logger="absl"):
    tasks.run(config, tmp_path)
    config.base = "model.gguf"
    tasks.run(config, tmp_path)
  assert [found.tuning for found in seen] == ["full", "lora"]
  assert seen[1].optimizer.learning_rate < seen[0].optimizer.learning_rate / 5
  assert "sft: chosen for the backbone: tuning=lora" in caplog.text
  assert config.tuning is None  # the caller's own is as it was


def test_conversations_are_printed_at_the_end(tmp_path, monkeypatch, capsys):
  class WithSamples(Stages):
    def __call__(self, config, workdir):
      found = super().__call__(config, workdir)
      rows = [{"step": 0, "prompt": f"user: {i}", "anchor": "a", "policy": "p"}
              for i in range(9)]  # fmt: skip
      files.write_jsonl(workdir / "samples.jsonl", rows)
      return found

  monkeypatch.setattr(tasks, "run", WithSamples())
  pipeline.run(tiny.pipeline(conversations=2), tmp_path / "run")
  shown = capsys.readouterr().out
  assert "user: 0" in shown and "user: 1" in shown and "user: 2" not in shown
  assert "What was achieved" in shown.partition("user: 1")[2]
  pipeline.run(tiny.pipeline(), tmp_path / "quiet")
  assert "user: 0" not in capsys.readouterr().out


def test_finished_stage_of_another_config_is_not_taken(tmp_path, monkeypatch):
  """An edited stage below the run is refused, not silently mixed in."""
  monkeypatch.setattr(tasks, "run", Stages())
  workdir = tmp_path / "run"
  pipeline.run(tiny.pipeline(), workdir)
  path = workdir / "reward" / "config.json"
  path.write_text(path.read_text().replace('"rank": 2', '"rank": 9'))
  with pytest.raises(ValueError, match=r"config\.lora\.rank: 9 -> 2"):
    pipeline.run(tiny.pipeline(), workdir)

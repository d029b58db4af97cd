"""Which checkpoint is measured and shipped; no run is made for it."""

import json

import numpy as np
import pytest

from perl_jax import checkpoint, steps
from perl_jax.tasks.initial import saved
from perl_jax.tasks.training import card, facts, reported
from tests.tasks import tiny


def stage(workdir, task="rl", **changes):
  workdir.mkdir()
  config = tiny.config(task, **changes)
  (workdir / "config.json").write_text(config.to_json())
  return config


def test_what_is_asked_for_is_taken(tmp_path):
  stage(tmp_path / "rl")
  for which in ("best", "last"):
    assert reported.checkpoint_of(tmp_path / "rl", which) == which


def test_the_best_where_others_are_judged_on(tmp_path):
  """RL has chosen its best on its held-out prompts."""
  data = stage(tmp_path / "rl").data.to_dict()
  of = lambda **changes: reported.checkpoint_of(  # noqa: E731
    tmp_path / "rl", "auto", data | changes
  )
  assert reported.checkpoint_of(tmp_path / "rl", "auto") == "last"
  assert of() == "last"
  assert of(options={"size": 8}) == "last"  # of the training rows
  assert of(limit=3) == "last"
  assert of(name="jsonl", path="rows.jsonl") == "best"
  assert of(fold=1) == "best"
  assert of(validation_path="test.jsonl") == "best"


def test_one_file_of_held_out_rows_however_it_is_spelled(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  data = stage(
    tmp_path / "rl", data__path="a.jsonl", data__validation_path="b.jsonl"
  ).data.to_dict()
  for path, expected in (
    (str(tmp_path / "b.jsonl"), "last"), ("c.jsonl", "best"),
  ):  # fmt: skip
    other = data | {"path": "z.jsonl", "validation_path": path}
    found = reported.checkpoint_of(tmp_path / "rl", "auto", other)
    assert found == expected


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_reward_model_says_what_its_summary_is_of(tmp_path, which):
  stage(tmp_path / "reward", "reward", report_checkpoint=which)
  assert reported.checkpoint_of(tmp_path / "reward", "auto") == which


@pytest.mark.parametrize("init", ["", "somewhere/else"])
def test_models_of_others_have_one(init):
  assert reported.checkpoint_of(init, "auto") == "best"


def test_a_card_quotes_the_checkpoint_that_it_names(tmp_path):
  workdir = tmp_path / "rl"
  stage(workdir)
  (workdir / "model.json").write_text("{}")
  summary = {"reward_before": 0.25, "reward_after": 9.0, "kl": 9.0}
  (workdir / "summary.json").write_text(json.dumps(summary))
  tree = {"policy": {"a": np.ones(2, np.float32)}}
  rewards = {1: 0.5, 2: 0.75, 3: 0.625}
  rates = {"validation/win_rate": 0.5, "validation/win_rate_low": 0.25}
  rates |= {"validation/win_rate_high": 0.625, "validation/loss": 2.5}
  with checkpoint.Checkpointer(workdir, metric="validation/reward",
                               mode="max") as saver:  # fmt: skip
    for step, reward in rewards.items():
      found = {"validation/reward": reward, "validation/kl": step / 8} | rates
      state = steps.TrainState(tree, (), np.int32(step))
      saver.save(step, state, {"evaluated": found}, found)
  best = facts.training_facts(workdir, "best")
  assert best["checkpoint"].startswith("best, step 2 (chosen on the rows")
  last = facts.training_facts(workdir, "last")
  assert last["checkpoint"] == "last, step 3"
  for told, step in ((best, 2), (last, 3)):
    assert told["reward_before"] == 0.25
    assert (told["reward_after"], told["kl"]) == (rewards[step], step / 8)
    assert (told["win_rate_after"], told["loss"]) == (0.5, 2.5)
    ends = told["win_rate_after_low"], told["win_rate_after_high"]
    assert ends == (0.25, 0.625)
    assert "kl_low" not in told
    labels = [result.label for result in card.results_of(told, "rl")]
    assert "loss" in labels and not any("end of" in x for x in labels)


def test_a_checkpoint_between_evaluations_has_no_numbers(tmp_path):
  workdir = tmp_path / "rl"
  stage(workdir)
  (workdir / "model.json").write_text("{}")
  found = {"validation/reward": 0.5, "validation/kl": 0.125}
  with checkpoint.Checkpointer(workdir, metric="validation/reward",
                               mode="max") as saver:  # fmt: skip
    for step, judged, more in (
      (1, found, {}), (2, None, {}), (3, None, {saved.UNSCORED: True}),
    ):  # fmt: skip
      state = steps.TrainState({"policy": {}}, (), np.int32(step))
      saver.save(step, state, {"evaluated": found} | more, judged)
      if step > 1:
        saver.wait()
        told = facts.training_facts(workdir, "last")
        assert told["checkpoint"] == f"last, step {step}"
        # One that nobody could compare with others has been evaluated.
        assert ("kl" in told) == (step == 3)

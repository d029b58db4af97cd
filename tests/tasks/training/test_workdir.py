"""Claiming a workdir, and the checks before anything is read."""

import json

import jax
import numpy as np
import optax
import pytest

from perl_jax.tasks.initial import manifest
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import workdir as workdir_lib
from tests.tasks import tiny


def test_differences_are_listed_by_their_path():
  theirs = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": 0}
  mine = {"a": 1, "b": {"c": [1, 3], "d": "x"}, "new": None}
  assert workdir_lib.differences(theirs, mine) == [
    "config.b.c: [1, 2] -> [1, 3]",
    "config.gone: 0 -> '(absent)'",
    "config.new: '(absent)' -> None",
  ]
  assert workdir_lib.differences(mine, mine) == []


def test_workdir_is_claimed_at_the_end(tmp_path, monkeypatch):
  monkeypatch.setattr("sys.argv", ["bin/perl_jax", "--config=a b.py"])
  config = tiny.config("sft")
  with workdir_lib.preparing(config, tmp_path / "deep" / "run") as workdir:
    assert workdir == tmp_path / "deep" / "run" and workdir.is_dir()
    assert not (workdir / "config.json").exists()
  written = json.loads((workdir / "config.json").read_text())
  assert written == json.loads(config.to_json())
  assert written["data"]["vocab_size"] == 400
  command = (workdir / "command.txt").read_text()
  assert command == "perl_jax '--config=a b.py'\n"
  with workdir_lib.preparing(config, workdir):
    pass  # the same config again is a resume


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_what_was_there(tmp_path, error):
  config = tiny.config("sft")

  def fail(workdir):
    with (
      pytest.raises(error),
      workdir_lib.preparing(config, workdir) as claimed,
    ):
      (claimed / "tokenizer").mkdir()
      (claimed / "tokenizer" / "tokenizer.json").write_text("{}")
      (claimed / "model.json").write_text("{}")
      raise error

  fail(tmp_path / "fresh")
  assert list(tmp_path.iterdir()) == []
  mine = tmp_path / "mine"
  mine.mkdir()
  (mine / "notes").write_text("keep")
  fail(mine)
  assert [path.name for path in mine.iterdir()] == ["notes"]


def test_failure_leaves_what_another_run_has_begun_below(tmp_path):
  """As where the name of a run has been forgotten: --workdir=runs."""
  runs = tmp_path / "runs"
  runs.mkdir()
  preparing = workdir_lib.preparing(tiny.config("sft"), runs)
  with pytest.raises(KeyboardInterrupt), preparing:
    for name, file in (("a", "lock.json"), ("b", "config.json")):
      (runs / name).mkdir()
      (runs / name / file).write_text("{}")
    (runs / "tokenizer").mkdir()
    raise KeyboardInterrupt
  assert sorted(path.name for path in runs.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("written", [{"model_type": "llama"}, {"task": None}])
def test_a_folder_of_something_else_is_not_to_be_removed(tmp_path, written):
  """As of a model that was downloaded."""
  (tmp_path / "config.json").write_text(json.dumps(written))
  config = tiny.config("sft")
  with (
    pytest.raises(
      ValueError, match=r"not of a run.*another --workdir"
    ) as caught,
    workdir_lib.preparing(config, tmp_path),
  ):
    pytest.fail("it is not claimed")
  said = str(caught.value)
  assert "remove" not in said and "\n" not in said
  assert json.loads((tmp_path / "config.json").read_text()) == written


def test_lora_spec_is_empty_with_full_tuning():
  assert shared.lora_spec(tiny.config("reward")).rank == 2
  assert shared.lora_spec(tiny.config("reward", tuning="full")).rank == 0


def test_optimizer_is_scheduled_over_the_steps():
  """A cosine of 4 steps: the last update is the smallest, the fifth is 0."""
  config = tiny.config(
    "sft", optimizer__name="sgd", optimizer__b1=0.0, optimizer__clip_norm=0.0,
    optimizer__learning_rate=1.0, optimizer__warmup_steps=0,
  )  # fmt: skip
  optimizer = shared.make_optimizer(config).transformation
  params = {"w": np.ones(3, np.float32)}
  state, rates = optimizer.init(params), []
  for _ in range(5):
    updates, state = optimizer.update(params, state, params)
    rates.append(-float(updates["w"][0]))
    params = optax.apply_updates(params, jax.tree.map(np.zeros_like, updates))
  expected = [0.5 * (1 + np.cos(np.pi * t / 4)) for t in range(5)]
  np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_share_counts_and_refuses_nothing():
  trainable = {"a": np.zeros((2, 3), np.float32)}
  frozen = {"b": np.zeros(18, np.float16)}
  assert shared.share(trainable, frozen) == {
    "trainable_parameters": 6,
    "trainable_share": 0.25,
    "trainable_bytes": 24,
    "frozen_bytes": 36,
  }
  with pytest.raises(ValueError, match="Nothing is trainable"):
    shared.share({}, frozen)


@pytest.mark.parametrize("field", ["batch_size", "eval.batch_size"])
def test_batches_divide_over_the_mesh(field):
  config = tiny.override(tiny.config("sft"), {"mesh.data": 4, field: 6})
  with pytest.raises(ValueError, match=rf"config\.{field}=6 does not divide"):
    shared.check_counts(config, shared.make_mesh(config))
  fits = tiny.override(tiny.config("sft"), {"mesh.data": 4, field: 12})
  shared.check_counts(fits, shared.make_mesh(fits))


def test_a_warmup_that_takes_the_whole_run(caplog):
  for warmup, told in ((19, False), (20, True)):
    changed = {"optimizer.warmup_steps": warmup, "steps": 20}
    config = tiny.override(tiny.config("sft"), changed)
    shared.check_counts(config, shared.make_mesh(config))
    assert (f"warmup_steps={warmup}: in 20 steps" in caplog.text) == told


def test_a_mesh_that_leaves_a_process_out(monkeypatch):
  assert shared.make_mesh(tiny.config("sft")).size == 1
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match=r"only 1 of 2 processes.*size to -1"):
    shared.make_mesh(tiny.config("sft"))


def test_when_a_run_saves_may_change(tmp_path):
  with workdir_lib.preparing(tiny.config("sft"), tmp_path):
    pass
  other = tiny.config("sft", save__every_steps=3, save__keep=5)
  with workdir_lib.preparing(other, tmp_path):
    pass
  path = tmp_path / "config.json"
  assert json.loads(path.read_text())["save"]["keep"] == 5
  older = json.loads(path.read_text())
  del older["save"]  # as before there was such a field
  path.write_text(json.dumps(older))
  with workdir_lib.preparing(other, tmp_path):
    pass


def test_a_field_that_an_older_config_lacks_means_what_it_meant():
  """By the end of its name, at any depth; other fields stay absent."""
  theirs = {"steps": 3, "kl": {"target": 0.0}, "rl": {"kl": {}}}
  mine = {"steps": 3, "kl": {"target": 0.0, "horizon": 5},
          "rl": {"kl": {"horizon": 7}}, "new": 1}  # fmt: skip
  found = workdir_lib.complete(theirs, mine, {"kl.horizon": 5})
  assert found == {"steps": 3, "kl": {"target": 0.0, "horizon": 5},
                   "rl": {"kl": {"horizon": 5}}}  # fmt: skip
  assert workdir_lib.differences(found, mine) == [
    "config.new: '(absent)' -> 1",
    "config.rl.kl.horizon: 5 -> 7",
  ]


def test_an_older_workdir_goes_on_with_a_field_that_was_added(
  tmp_path, monkeypatch
):
  config = tiny.config("sft")
  with workdir_lib.preparing(config, tmp_path):
    pass
  path = tmp_path / "config.json"
  older = json.loads(path.read_text())
  del older["batch_size"]
  path.write_text(json.dumps(older))
  with (
    pytest.raises(ValueError, match=r"config\.batch_size: '\(absent\)' -> 8"),
    workdir_lib.preparing(config, tmp_path),
  ):
    pass
  monkeypatch.setattr(workdir_lib, "ADDED", {"batch_size": 8})
  with workdir_lib.preparing(config, tmp_path):
    pass
  assert json.loads(path.read_text())["batch_size"] == 8


@pytest.mark.parametrize("task", ["sft", "pipeline"])
def test_an_older_workdir_has_the_folds_of_its_seed(tmp_path, task):
  config = tiny.pipeline() if task == "pipeline" else tiny.config(task)
  stages = [config.sft, config.rl] if task == "pipeline" else [config]
  config.seed = 3
  for stage in stages:
    stage.seed = stage.data.split_seed = 3
  with workdir_lib.preparing(config, tmp_path):
    pass
  path = tmp_path / "config.json"
  older = json.loads(path.read_text())
  for part in (older, *(older.get(name, {}) for name in ("sft", "rl"))):
    part.get("data", {}).pop("split_seed", None)
  path.write_text(json.dumps(older))
  with workdir_lib.preparing(config, tmp_path):
    pass
  path.write_text(json.dumps(older))
  for stage in stages:
    stage.data.split_seed = 0
  with (
    pytest.raises(ValueError, match=r"data\.split_seed: 3 -> 0"),
    workdir_lib.preparing(config, tmp_path),
  ):
    pass


@pytest.mark.parametrize(
  ("task", "field"), [("reward", "score_at"), ("rl", "reward.score_at")]
)
def test_an_older_workdir_says_how_it_goes_on(tmp_path, task, field):
  """Its rewards were read at the end of the turn."""
  with workdir_lib.preparing(tiny.config(task), tmp_path) as workdir:
    pass
  path = workdir / "config.json"
  older = json.loads(path.read_text())
  del (older["reward"] if task == "rl" else older)["score_at"]
  path.write_text(json.dumps(older))
  with (
    pytest.raises(ValueError) as caught,
    workdir_lib.preparing(tiny.config(task), workdir),
  ):
    pass
  assert f"To go on with it: --config.{field}='turn', " in str(caught.value)
  same = tiny.config(task, **{field.replace(".", "__"): "turn"})
  with workdir_lib.preparing(same, workdir):
    pass


@pytest.mark.parametrize(
  ("version", "age"), [(None, "an older"), (1, "an older"), (99, "a newer")]
)
def test_a_workdir_of_another_version_is_refused_with_the_way_out(
  tmp_path, version, age
):
  """By the stage that would resume it, and by one that starts from it."""
  config = tiny.config("sft")
  with workdir_lib.preparing(config, tmp_path / "run") as workdir:
    described = {"model": {}} | (
      {} if version is None else {"version": version}
    )
    (workdir / "model.json").write_text(json.dumps(described))
  before = tiny.tree(workdir)
  for call in (
    lambda: workdir_lib.preparing(config, workdir).__enter__(),
    lambda: manifest.read_model(workdir, "policy.init"),
  ):
    with pytest.raises(ValueError) as caught:
      call()
    message = str(caught.value)
    assert f"{age} version" in message and str(workdir) in message
    assert "Run that stage again" in message
  assert tiny.tree(workdir) == before

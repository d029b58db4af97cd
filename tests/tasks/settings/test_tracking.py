"""Which trackers a config asks for, and how its runs are called."""

import re
import tomllib
from pathlib import Path

import pytest

from perl_jax import tasks
from perl_jax.reporting import trackers
from perl_jax.reporting.trackers import clients
from perl_jax.tasks import pipeline
from perl_jax.tasks.settings import tracking
from tests.architecture import ROOT
from tests.tasks import tiny


@pytest.fixture
def installed(monkeypatch):
  """Says that every package is there."""
  monkeypatch.setattr(trackers, "missing", lambda names: [])


def asked(task="rl", workdir="runs/rl", **overrides):
  config = tiny.config(task, **overrides)
  return tracking.tracking_of(config, Path(workdir), goes_on=True)


def test_none_is_the_default():
  assert asked() is None


def test_a_run_is_called_as_its_workdir(installed):
  found = asked(trackers=("wandb", "mlflow", "wandb"))
  assert found.names == ("wandb", "mlflow")
  assert (found.run, found.group, found.task) == ("rl", "", "rl")
  assert not found.samples


def test_the_name_says_the_group(installed):
  found = asked(trackers=("wandb",), tracking__run="sweep 3/rank 4")
  assert (found.run, found.group) == ("sweep 3/rank 4", "sweep 3")


def test_a_member_is_called_after_its_run(installed):
  found = asked(workdir="runs/rates/members/1", trackers=("wandb",))
  assert (found.run, found.group) == ("rates/1", "rates")


def test_an_unknown_tracker_is_refused(installed):
  with pytest.raises(ValueError, match="Did you mean 'mlflow'"):
    asked(trackers=("ml-flow",))


def test_one_that_is_not_installed_is_refused_before_anything_is_made(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(clients.importlib.util, "find_spec", lambda name: None)
  config = tiny.config("sft", trackers=("mlflow",))
  with pytest.raises(ValueError, match="-m pip install mlflow-skinny"):
    tasks.run(config, tmp_path / "sft")
  assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize(("run", "name"), [("", "mine"), ("a", "a")])
def test_stages_are_called_after_their_pipeline(installed, run, name):
  config = tiny.pipeline(trackers=("wandb",), tracking__run=run)
  workdir = Path("runs/mine")
  stage = pipeline.stage_config(config, "reward", workdir)
  found = tracking.tracking_of(stage, workdir / "reward", goes_on=True)
  assert (found.run, found.group) == (f"{name}/reward", name)


def test_the_extra_has_every_tracker():
  text = (ROOT / "pyproject.toml").read_text()
  extras = tomllib.loads(text)["project"]["optional-dependencies"]
  named = {re.match(r"[\w-]+", line)[0] for line in extras["trackers"]}
  assert named == set(trackers.PACKAGES.values())

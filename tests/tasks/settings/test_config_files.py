"""Configs are found by name or path, from any directory."""

import pathlib
import shutil
import sys

import pytest

from perl_jax import tasks
from perl_jax.tasks.settings import config_files, overrides

ROOT = pathlib.Path(__file__).parents[3]
WRONG = "There is no config"


@pytest.fixture
def away(monkeypatch, tmp_path):
  """A directory from which Python finds nothing of the clone by itself."""
  (tmp_path / "away").mkdir()
  monkeypatch.chdir(tmp_path / "away")
  monkeypatch.setattr(sys, "path", [p for p in sys.path if not is_root(p)])
  return tmp_path / "away"


def is_root(path):
  return pathlib.Path(path or ".").resolve() == ROOT


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


CONFIG = """
from ml_collections import ConfigDict

def get_config(arg="none"):
  return ConfigDict({"task": "mine", "arg": arg})
"""


def test_every_config_has_its_name(away):
  files = {path.stem for path in (ROOT / "configs").glob("*.py")}
  assert set(config_files.known()) == files - {"__init__", "common"}
  for name in config_files.known():
    config = config_files.load(name)
    assert config.is_locked and config.task
    assert config == config_files.load(f"{ROOT}/configs/{name}.py")


def test_a_name_with_a_data_set(away):
  config = config_files.load("rl:taskmaster_coffee")
  assert config == tasks.get_config("rl:taskmaster_coffee")
  assert config.task == "rl" and config.data.name == "taskmaster_coffee"


def test_nothing_stays_imported(away):
  before = {n: m for n, m in sys.modules.items() if n.startswith("configs")}
  config_files.load("smollm2")
  with pytest.raises(ValueError, match="coffee_bar"):
    config_files.load("smollm2:coffee_bar")
  after = {n: m for n, m in sys.modules.items() if n.startswith("configs")}
  assert after == before


@pytest.mark.parametrize("given", ["mine.py", "./mine.py", "{}/mine.py"])
def test_a_path_with_an_argument(away, given):
  write(away / "mine.py", CONFIG)
  assert config_files.load(given.format(away)).arg == "none"
  assert config_files.load(f"{given.format(away)}:a:b").arg == "a:b"


def test_a_name_is_not_a_file_of_the_current_directory(away):
  write(away / "rl", CONFIG)
  write(away / "rl.py", CONFIG)
  assert config_files.load("rl").task == "rl"
  assert config_files.load("rl.py").task == "mine"


def test_a_users_config_imports_the_projects(away):
  write(
    away / "mine.py",
    "from configs import rl\n\n\ndef get_config():\n"
    "  from configs import common\n  config = rl.get_config('hh_rlhf')\n"
    "  config.data = common.data('coffee_bar')\n  return config\n",
  )
  config = config_files.load("mine.py")
  assert config.task == "rl" and config.data.name == "coffee_bar"


def test_a_clone_has_its_own(away):
  """A clone's own configs, whichever package is installed."""
  write(away / "clone/perl_jax/__init__.py", "")
  shutil.copytree(ROOT / "configs", away / "clone/configs")
  with (away / "clone/configs/common.py").open("a") as file:
    file.write("\nDATASETS = ('of_the_clone',)\n")
  assert config_files.load("clone/configs/pipeline.py:of_the_clone")
  with pytest.raises(ValueError, match="of_the_clone"):
    config_files.load("pipeline:of_the_clone")


def test_beside_a_users_config(away):
  """Other files of its folder, but no `common` that is not the project's."""
  write(away / "lab/configs/common.py", "raise RuntimeError('not this one')\n")
  write(away / "lab/configs/rates.py", "RATE = 0.25\n")
  write(
    away / "lab/configs/mine.py",
    "from configs import rates, rl\n\n\ndef get_config():\n"
    "  config = rl.get_config()\n  config.beta = rates.RATE\n"
    "  return config\n",
  )
  assert config_files.load("lab/configs/mine.py").beta == 0.25


def test_a_users_package_of_the_same_name(away, monkeypatch):
  """It hides none of the project's, and its own modules are found."""
  write(away / "configs/__init__.py", "")
  write(away / "configs/common.py", "raise RuntimeError('not this one')\n")
  write(away / "configs/lab.py", "SEED = 7\n")
  monkeypatch.setattr(sys, "path", ["", *sys.path])
  write(
    away / "mine.py",
    "from configs import lab, rl\n\n\ndef get_config():\n"
    "  config = rl.get_config()\n  config.seed = lab.SEED\n  return config\n",
  )
  assert config_files.load("rl").task == "rl"
  assert config_files.load("mine.py").seed == 7


@pytest.mark.parametrize(
  "given, said",
  [
    ("rll", (f"{WRONG} 'rll'.", "--config=rl?", "evaluate, export")),
    ("RL", (f"{WRONG} 'RL'.", "pipeline")),
    ("zzz", (f"{WRONG} 'zzz'.", "rl, score", "--config=./mine.py")),
    ("", (f"{WRONG} ''.",)),
    ("common", (f"{WRONG} 'common'.",)),
    ("rl.py", ("rl.py (from ", "No such file", "--config=rl?")),
    ("configs/rll.py", ("configs/rll.py", "No such file", "--config=rl?")),
    ("configs", (f"{WRONG} 'configs'.",)),
    (".", (".", "a directory, not a file")),
    ("x" * 300, ("x" * 300, WRONG)),
    ("a\0b", ("No such file",)),
    ("rl:coffe_bar", ("rl.py: There is no data set", "Did you mean")),
  ],
)
def test_what_is_not_there(away, given, said):
  with pytest.raises(ValueError) as caught:
    config_files.load(given)
  message = str(caught.value)
  assert "\n" not in message and "Known: Known" not in message
  for text in said:
    assert text in message, message


@pytest.mark.parametrize(
  "text, said",
  [
    ("def get_config():\n  return undefined\n", "mine.py, line 2: NameError"),
    ("import no_such_module\n", "mine.py, line 1: ModuleNotFoundError"),
    ("def get_config(:\n", "mine.py: SyntaxError"),
    ("x = 1\n", "mine.py: it has no function get_config()"),
    ("def get_config():\n  return {}\n", "mine.py: get_config() returned dict"),
    ("def get_config():\n  raise ValueError('a\\nb')\n", "mine.py: a b"),
    ("def get_config():\n  return 1\n", "returned int"),
  ],
)
def test_a_file_that_fails(away, text, said):
  write(away / "mine.py", text)
  with pytest.raises(ValueError) as caught:
    config_files.load("mine.py")
  assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_sweep_checks_names_too(away):
  assert overrides.refusal(["", "--config=rl", "--config.seed=1"]) is None
  assert "--config=rl?" in overrides.refusal(["", "--config=rll"])
  wrong = overrides.refusal(["", "--config=sft", "--config.kl.target=1"])
  assert "kl.target is not in sft." in wrong
  assert "It is a field of configs/rl.py." in wrong


def test_a_config_is_called_as_it_can_be_given(tmp_path, monkeypatch):
  """Beside the package there is a file; in an installed one there is none."""
  assert config_files.called("rl") == "configs/rl.py"
  monkeypatch.setattr(config_files, "_PACKAGE", tmp_path)
  assert config_files.called("rl") == "configs/rl.py"
  (tmp_path / "configs").mkdir()
  assert config_files.called("rl") == "perl_jax --config=rl"

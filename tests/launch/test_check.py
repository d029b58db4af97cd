"""A config is read here before a machine is made elsewhere."""

import os
import sys

import pytest

from launch import check
from tests.launch.test_scripts import NEEDED, ROOT, TRAINING, call, program

WRONG = (*TRAINING, "--config.lorra.rank=4")
HERE = f'exec {sys.executable} "$@"'


def start(tmp_path, script, arguments, python):
  """(what a script said, what it had gcloud and xpk do), in a clone.

  The clone has no environment of its own; `python` stands in for python3.
  """
  for name in ("gcloud", "xpk"):
    program(tmp_path, name, '#!/usr/bin/env bash\necho "$*" >> {here}/calls\n')
  program(tmp_path, "python3", f"#!/usr/bin/env bash\n{python}\n")
  clone = tmp_path / "clone"
  clone.mkdir()
  for name in ("launch", "perl_jax", "configs", "requirements.txt"):
    (clone / name).symlink_to(ROOT / name)
  done = call(
    str(clone / "launch" / script),
    *(*NEEDED[script], "--", *arguments),
    PATH=f"{tmp_path}:{os.environ['PATH']}",
  )
  calls = tmp_path / "calls"
  return done, calls.read_text() if calls.exists() else ""


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_a_wrong_config_is_said_before_anything_is_made(tmp_path, script):
  done, calls = start(tmp_path, script, WRONG, HERE)
  assert done.returncode == 2 and calls == ""
  assert "lorra.rank is not in configs/rl.py" in done.stderr


@pytest.mark.parametrize(
  "script, arguments, python",
  [
    ("gke.sh", TRAINING, HERE),
    ("gke.sh", WRONG, "exit 1"),
    ("tpu_vm.sh", WRONG, "exit 127"),
  ],
)
def test_others_are_left_to_the_machine(tmp_path, script, arguments, python):
  """A config that is right, or cannot be read for want of packages here."""
  done, calls = start(tmp_path, script, arguments, python)
  assert " create " in calls and "lorra" not in done.stderr


def test_what_a_config_imports_may_be_elsewhere(tmp_path, capsys):
  path = tmp_path / "mine.py"
  for text, status in (("import nowhere", 0), ("1 / 0", 2)):
    path.write_text(f"{text}\n")
    assert check.main([f"--config={path}"]) == status
  assert "division by zero" in capsys.readouterr().out


def test_without_the_packages_that_read_configs(monkeypatch):
  monkeypatch.setitem(sys.modules, "perl_jax.tasks.settings", None)
  assert check.refusal(WRONG) is None

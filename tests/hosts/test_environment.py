"""Environment variables that a run cannot do with are said in one line."""

import os
import re
import subprocess
import sys

import jax
import pytest

from perl_jax.hosts import environment
from tests import documents


@pytest.mark.parametrize(
  ("variables", "error", "said"),
  [
    ({"JAX_PLATFORMS": "cuda"}, AssertionError(), "JAX_PLATFORMS=cuda asks"),
    (
      {"JAX_PLATFORMS": "gpu"},
      RuntimeError("Unable to initialize\nbackend 'rocm'."),
      "here: Unable to initialize backend 'rocm'. Unset JAX_PLATFORMS",
    ),
    (
      {"JAX_PLATFORMS": "", "JAX_PLATFORM_NAME": "cuda"},
      RuntimeError("Unknown backend cuda"),
      "Unset JAX_PLATFORM_NAME to run on what there is",
    ),
  ],
)
def test_devices_that_are_not_here(monkeypatch, variables, error, said):
  def devices():
    raise error

  monkeypatch.setattr(jax, "devices", devices)
  with pytest.raises(ValueError, match=re.escape(said)) as caught:
    environment.require_devices(variables)
  assert "\n" not in str(caught.value)
  with pytest.raises(type(error)):  # nobody has asked for any
    environment.require_devices({"JAX_PLATFORMS": ""})


def test_devices_that_are_here():
  environment.require_devices({"JAX_PLATFORMS": "cpu"})


@pytest.mark.parametrize("name", environment.LAUNCHERS.values())
def test_how_many_tasks_there_are(name):
  assert environment.several_tasks({})[2] == 1
  assert environment.several_tasks({name: ""})[2] == 1
  assert environment.several_tasks({name: "1"})[2] == 1
  assert environment.several_tasks({name: "3"})[1:] == (name, 3)
  for wrong in ("x", "2x", "-1", "1.5"):
    with pytest.raises(ValueError, match=f"{name}='{wrong}'.*Unset {name}"):
      environment.several_tasks({name: wrong})


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("JAX_PLATFORMS", "abacus"),
    ("JAX_ENABLE_X64", "1"),
    ("JAX_ENABLE_X64", "x"),
    ("JAX_NUM_CPU_DEVICES", "two"),
    ("OMPI_COMM_WORLD_SIZE", "x"),
  ],
)
def test_the_command_says_so(tmp_path, name, value):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "perl_jax.main", "--config=sft"),
      f"--workdir={tmp_path / 'run'}",
    ],
    env=os.environ | {"JAX_PLATFORMS": "cpu", name: value},
    cwd=documents.ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  line = done.stderr.splitlines()[-1]
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert line.startswith("error: ") and name in line
  assert not (tmp_path / "run").exists()

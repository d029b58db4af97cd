"""The package as `pip install` leaves it, away from the clone.

A wheel is built from the files that git knows, and installed: alone, into an
environment of its own which sees the packages of this one, and with all that it
needs into one that has nothing.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile

import pytest

import perl_jax
from tests import marks
from tests.architecture import ROOT
from tests.tasks import tiny

pytestmark = pytest.mark.slow

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(*command, timeout=500, **options):
  done = subprocess.run(
    [str(word) for word in command],
    capture_output=True,
    text=True,
    timeout=timeout,
    **options,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def tracked():
  """Files of the clone that git knows, or would add."""
  if shutil.which("git") is None or not (ROOT / ".git").exists():
    pytest.skip("git says which files belong into the wheel; this is no clone")
  listed = run(
    *("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
    cwd=ROOT,
  )
  return [name for name in listed.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked, tmp_path_factory):
  """A wheel of these files."""
  pytest.importorskip("setuptools", "77", reason="builds the wheel")
  place = tmp_path_factory.mktemp("wheel")
  for name in tracked:
    target = place / "tree" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, target)
  options = ("--no-deps", "--no-build-isolation", "--no-index")
  run(
    *PIP, "wheel", "--quiet", *options, f"--wheel-dir={place}", place / "tree"
  )
  (path,) = place.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """Directory of the commands of an environment that has the wheel."""
  place = tmp_path_factory.mktemp("environment")
  run(sys.executable, "-m", "venv", "--without-pip", place)
  python = place / "bin" / "python"
  site = run(
    python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
  )
  packages = pathlib.Path(site.strip()) / "packages.pth"
  packages.write_text(sysconfig.get_path("purelib") + "\n")
  options = ("--no-deps", "--no-index", "--quiet")
  run(*PIP, f"--python={python}", "install", *options, wheel)
  return place / "bin"


@pytest.fixture
def environment(tmp_path):
  """Variables of a user who knows nothing of the clone, and where they are."""
  (tmp_path / "away").mkdir()
  given = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
  return {"cwd": tmp_path / "away", "env": given | {"JAX_PLATFORMS": "cpu"}}


def test_the_wheel_is_what_git_tracks(wheel, tracked):
  with zipfile.ZipFile(wheel) as archive:
    inside = archive.namelist()
  package = {name for name in tracked if name.startswith("perl_jax/")}
  configs = {
    f"perl_jax/{name}" for name in tracked if name.startswith("configs/")
  }
  assert "perl_jax/configs/rl.py" in configs
  found = {name for name in inside if ".dist-info/" not in name}
  assert found == package | configs
  assert f"perl_jax-{perl_jax.__version__}-py3-none-any.whl" == wheel.name
  assert any(name.endswith("/licenses/LICENSE") for name in inside)


def test_it_is_the_installed_package_that_runs(installed, environment):
  place = run(
    installed / "python",
    *("-c", "import perl_jax; print(perl_jax.__file__)"),
    **environment,
  )
  assert pathlib.Path(place.strip()).is_relative_to(installed.parent)
  said = run(installed / "perl_jax", "--version", **environment)
  assert said == f"perl_jax {perl_jax.__version__}\n"
  said = run(installed / "perl_jax", "--help", **environment)
  assert "--config: " in said and "--workdir: " in said


def refused(*command, **options):
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=300, **options
  )
  assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
  return done.stderr.strip().splitlines()[-1]


def test_a_name_that_is_not_there(installed, environment):
  said = refused(
    installed / "perl_jax", "--config=rll", "--workdir=run", **environment
  )
  assert "Did you mean --config=rl?" in said and "pipeline" in said
  said = refused(
    installed / "perl_jax", "--config=rl:hh", "--workdir=run", **environment
  )
  assert "There is no data set 'hh'" in said


def test_an_error_names_a_config_as_it_can_be_given(installed, environment):
  said = refused(
    *(installed / "perl_jax", "--config=rl", "--workdir=run"), **environment
  )
  assert "Train one with perl_jax --config=reward and give" in said


def test_a_config_from_python(installed, environment):
  code = "from perl_jax import tasks; print(tasks.get_config('rl:jsonl').task)"
  assert run(installed / "python", "-c", code, **environment) == "rl\n"


def test_it_trains_from_any_directory(installed, environment):
  """By the name of a config, and on by the path of the clone's."""
  values = tiny.fields("sft") | {"steps": 2, "eval_every": 2, "eval.rows": 0}
  given = [f"--config.{name}={value}" for name, value in values.items()]
  run(
    installed / "perl_jax",
    *("--config=sft:coffee_bar", "--workdir=run", *given),
    **environment,
  )
  workdir = environment["cwd"] / "run"
  before = (workdir / "summary.json").read_text()
  assert json.loads(before)["loss"] > 0
  told = (workdir / "command.txt").read_text()
  assert told.startswith("perl_jax --config=sft:coffee_bar ")
  run(
    *(installed / "python", "-m", "perl_jax.main"),
    *(f"--config={ROOT}/configs/sft.py", "--workdir=run", *given),
    **environment,
  )
  assert (workdir / "summary.json").read_text() == before


@pytest.mark.parametrize(
  "versions", ["as pinned", marks.by_night("what pip chooses")]
)
def test_it_trains_where_nothing_was_installed(
  versions, wheel, tmp_path, environment
):
  """In an environment of its own, from the package index."""
  run(sys.executable, "-m", "venv", tmp_path / "empty")
  python = tmp_path / "empty" / "bin" / "python"
  pinned = ("--constraint", ROOT / "requirements.txt")
  more = pinned if versions == "as pinned" else ()
  run(*(python, "-m", "pip", "install", "--quiet", wheel, *more), timeout=1800)
  command = tmp_path / "empty" / "bin" / "perl_jax"
  small = {"steps": 2, "eval_every": 2, "eval.rows": 0}
  for task, more in (
    ("sft", {}),
    ("reward", {"reward.init": "sft"}),
    ("rl", {"policy.init": "sft", "reward.init": "reward", "eval.rows": 8}),
  ):
    values = tiny.fields(task) | small | more
    run(
      command,
      *(f"--config={task}", f"--workdir={task}"),
      *(f"--config.{name}={value}" for name, value in values.items()),
      **environment,
    )
    summary = environment["cwd"] / task / "summary.json"
    assert json.loads(summary.read_text())
  run(command, "--config=export", "--config.init=rl", "--workdir=out",
      **environment)  # fmt: skip
  assert (environment["cwd"] / "out" / "adapter_model.safetensors").is_file()


def test_signals_are_heard_from_the_start(installed, environment):
  """While JAX is imported, which takes seconds."""
  process = subprocess.Popen(
    [installed / "python", "-X", "importtime", installed / "perl_jax"],
    stderr=subprocess.PIPE,
    text=True,
    **environment,
  )
  for line in process.stderr:  # each line is a module that was imported
    if line.split("|")[-1].strip() == "perl_jax.starting":
      break
  next(line for line in process.stderr if "numpy" in line)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 75, err
  assert "Stopped by SIGTERM" in err

"""Where the workdir of a run lies that a shell script has started."""

import os
import subprocess

import pytest

from tests.launch.test_scripts import LAUNCH, NEEDED, ROOT, call, dry, program


def test_a_relative_workdir_outlives_the_next_start(tmp_path):
  """The tree is replaced, by the very command that the hosts' shells read."""
  install = dry("tpu_vm.sh")[2]
  (command,) = [w for w in install if w.startswith("--command=")]
  programs, home = tmp_path / "programs", tmp_path / "home"
  for path in (programs, home / "venv"):
    path.mkdir(parents=True)
  (programs / "python3").write_text("#!/bin/sh\n")
  (programs / "python3").chmod(0o755)
  env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
  tree = home / "perl_jax"
  for number, name in enumerate(("old.py", "a new.py")):
    (tmp_path / name).write_text("x")
    pack = ["tar", "-czf", home / "perl_jax.tgz", "-C", tmp_path, name]
    subprocess.run(pack, check=True)
    shell = ["bash", "-euc", command.removeprefix("--command=")]
    subprocess.run(shell, cwd=home, env=env, check=True)
    assert sorted(path.name for path in tree.glob("*.py")) == [name]
    assert (tree / "runs" / "0").exists() == (number > 0)
    (tree / "runs").mkdir(exist_ok=True)
    (tree / "runs" / str(number)).touch()


@pytest.mark.parametrize(
  "workdir, storage, warned",
  [
    ("gs://bucket/rl", (), ""),
    ("/runs/rl", ("--storage=disk",), ""),
    ("/runs/rl", (), "without --storage"),
    ("runs/rl", ("--storage=disk",), "give a path in --storage"),
  ],
)
def test_a_workdir_that_is_gone_with_the_pod(workdir, storage, warned):
  done = call(
    *("gke.sh", *NEEDED["gke.sh"], "--tpu-type=v6e-4", *storage),
    *("--dry-run", "--"),
    *("--config=configs/rl.py", f"--workdir={workdir}"),
  )
  assert done.returncode == 0, done.stderr
  assert ("warning" in done.stderr) == bool(warned)
  assert warned in done.stderr


# Says where it runs, with which code and which arguments.
WHERE = """#!/usr/bin/env bash
printf '%s\\n' "$PWD" "$PYTHONPATH" "$@" > {here}/started
"""


@pytest.mark.parametrize("before", ["", "/mine"])
def test_paths_of_the_gpu_script_are_those_of_the_current_directory(
  tmp_path, before
):
  """The code alone is that of the clone; a relative --venv is here too."""
  program(tmp_path, "nvidia-smi", "#!/usr/bin/env bash\n")
  (tmp_path / "my venv" / "bin").mkdir(parents=True)
  program(
    tmp_path / "my venv" / "bin",
    "python",
    WHERE.replace("{here}", f"'{tmp_path}'"),
  )
  arguments = ["--config=mine.py", "--workdir=runs/x"]
  env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  subprocess.run(
    ["bash", LAUNCH / "gpu.sh", "--cuda=12", "--venv=my venv", "--no-install",
     "--", *arguments],
    cwd=tmp_path,
    env=env | ({"PYTHONPATH": before} if before else {}),
    check=True,
  )  # fmt: skip
  place, path, *words = (tmp_path / "started").read_text().splitlines()
  assert place == str(tmp_path) and words[-2:] == arguments
  assert path.split(":") == [str(ROOT), *([before] if before else [])]


@pytest.mark.parametrize(
  "script, options",
  [
    ("tpu_vm.sh", ("--type=v5litepod-8",)),
    ("tpu_vm.sh", ("--type=v6e-32",)),
    ("gke.sh", ("--tpu-type=v5p-8", "--count=2")),
  ],
)
def test_a_workdir_may_be_in_a_bucket(script, options):
  """With one host or with several, and what reads buckets is installed."""
  training = ("--workdir=gs://bucket/rl", "--config=configs/rl.py")
  commands = dry(script, *options, training=training)
  words = " ".join(word for command in commands for word in command)
  assert "--workdir=gs://bucket/rl" in words and "gcsfs" in words

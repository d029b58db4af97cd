"""The grid of a sweep, its runs, what becomes of them, and its table."""

import csv
import importlib.util
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.tasks import tiny

ROOT = pathlib.Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location(
  "sweep", ROOT / "launch" / "sweep.py"
)
sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)
sweep_grid = sys.modules["launch.sweep_grid"]

CONFIG = "--config=configs/reward.py"
# Stands for a run: writes what one writes, or fails where the rank is 3.
RUNNER = """
import json, pathlib, shlex, sys
workdir = pathlib.Path(sys.argv[-1].partition("=")[2])
rank = [a for a in sys.argv if a.startswith("--config.lora.rank=")][0][-1]
if rank == "3":
  sys.exit(5)
workdir.mkdir(parents=True)
(workdir / "command.txt").write_text(
  shlex.join(["python", "-m", "perl_jax.main", *sys.argv[1:], "--process_id=0"])
)
summary = {"accuracy": int(rank) / 8, "seconds": 1.5, "loss": "nan", "a": [1]}
(workdir / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def runner(tmp_path, monkeypatch):
  """Puts `RUNNER` in place of training; returns the ranks that were run."""
  path = tmp_path / "runner.py"
  path.write_text(RUNNER)
  started = []
  real = sweep.command

  def command(run, submit):
    started.append(run.point["lora.rank"])
    words = real(run, submit)
    return words if submit else [sys.executable, str(path), *words[3:]]

  monkeypatch.setattr(sweep, "command", command)
  return started


@pytest.mark.parametrize(
  "text, parts",
  [
    ("1,2,3", ["1", "2", "3"]),
    ("1e-3", ["1e-3"]),
    ("", [""]),
    ("(40,)", ["(40,)"]),
    ("(40,),(40,64)", ["(40,)", "(40,64)"]),
    ("[(1,2),3],4", ["[(1,2),3]", "4"]),
    ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
  ],
)
def test_values(text, parts):
  assert sweep_grid.values_of(text) == parts


@pytest.mark.parametrize(
  "text, said",
  [
    ("1,,2", "empty value between commas"),
    ("40,", "A tuple needs its brackets"),
    ("(40,64", r"\) is missing"),
    ("'a,b", "' is missing"),
    ("1,2,1", "twice"),
  ],
)
def test_values_that_are_refused(text, said):
  with pytest.raises(ValueError, match=said):
    sweep_grid.values_of(text)


def test_grid():
  runs = sweep.grid(
    [CONFIG, "--config.lora.rank=2,4", "--config.steps=3", "--config.seed=0,1"],
    pathlib.Path("runs/s"),
  )
  assert [run.name for run in runs] == [
    f"lora.rank={rank}__seed={seed}" for rank in (2, 4) for seed in (0, 1)
  ]
  assert runs[1].arguments == [
    CONFIG,
    "--config.steps=3",
    "--config.lora.rank=2",
    "--config.seed=1",
    "--workdir=runs/s/lora.rank=2__seed=1",
  ]
  # `main` has to read it back as it was meant.
  assert runs[1].point == {"lora.rank": "2", "seed": "1"}


@pytest.mark.parametrize(
  "arguments, said",
  [
    ([CONFIG, "--config.seed=1"], "nothing to sweep"),
    (["--config.seed=1,2"], "--config=FILE is missing"),
    (
      [CONFIG, "--config.seed=1,2", "--workdir=gs://bucket/s"],
      "gs://bucket/s is no directory",
    ),
    ([CONFIG, "--config.seed=1,2", "--config.seed=3"], "given twice"),
    ([CONFIG, "--config.seed=1,2", "--config.seed=3,4"], "given twice"),
    (
      [CONFIG, "--config.steps=1", "--config.steps=2", "--config.seed=3,4"],
      "--config.steps is given twice",
    ),
    ([CONFIG, "--config.seed", "1,2"], "with an equals sign"),
    ([CONFIG, "--config.data.path=a/b,a_b"], "one directory"),
    ([CONFIG, "--config.seed=1,,2"], "empty value"),
  ],
)
def test_sweeps_that_are_refused(arguments, said, tmp_path, capsys):
  with pytest.raises(SystemExit):
    sweep.main([f"--workdir={tmp_path}", *arguments])
  assert said in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_commands_and_writes_nothing(tmp_path, capsys):
  arguments = [
    f"--workdir={tmp_path / 's'}",
    *(CONFIG, "--config.lora.rank=2,4", "--dry-run"),
    "--submit=sbatch --ntasks=2 launch/slurm.sbatch",
  ]
  assert sweep.main(arguments) == 0
  lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
  assert [line[:3] for line in lines] == [
    ["sbatch", "--ntasks=2", "launch/slurm.sbatch"]
  ] * 2
  assert [line[4] for line in lines] == [
    "--config.lora.rank=2",
    "--config.lora.rank=4",
  ]
  assert not (tmp_path / "s").exists()


def rows(workdir):
  text = (workdir / "sweep.csv").read_text()
  return list(csv.DictReader(text.splitlines()))


def test_a_failure_is_listed_and_stops_nothing(tmp_path, runner, capsys):
  arguments = [
    f"--workdir={tmp_path / 's'}",
    CONFIG,
    "--config.lora.rank=2,3,4",
  ]
  assert sweep.main(arguments) == 1
  assert runner == ["2", "3", "4"]
  assert "failed: lora.rank=3" in capsys.readouterr().err
  found = rows(tmp_path / "s")
  assert [row["status"] for row in found] == [
    "finished",
    "failed (exit status 5)",
    "finished",
  ]
  assert [row["accuracy"] for row in found] == ["0.25", "", "0.5"]
  assert found[0]["loss"] == "nan" and "a" not in found[0]
  table = (tmp_path / "s" / "sweep.md").read_text().splitlines()
  assert table[0] == "| lora.rank | accuracy | loss | seconds | status |"
  assert table[2] == "| 2 | 0.25 | nan | 1.5 | finished |"
  # Again: only what has not finished is run.
  assert sweep.main(arguments) == 1
  assert runner == ["2", "3", "4", "3"]


def test_a_point_without_its_last_checkpoint_is_run_again(
  tmp_path, runner, capsys
):
  """Its summary alone does not say that it has finished."""
  place = tmp_path / "s"
  arguments = [f"--workdir={place}", CONFIG, "--config.lora.rank=2,4"]
  assert sweep.main(arguments) == 0
  for workdir in (path.parent for path in place.rglob("command.txt")):
    (workdir / "config.json").write_text('{"steps": 7}')
    (workdir / "checkpoints" / "7").mkdir(parents=True)
  assert sweep.main(arguments) == 0 and runner == ["2", "4"]
  (workdir / "checkpoints" / "7").rmdir()
  sweep.main(arguments)
  assert len(runner) == 3
  assert f"{workdir} has no checkpoint of step 7" in capsys.readouterr().out


@pytest.mark.parametrize("program", ["perl_jax", "python -m perl_jax.main"])
def test_a_run_is_known_by_its_command(tmp_path, program):
  run, other = sweep.grid([CONFIG, "--config.seed=0,1"], tmp_path)
  run.workdir.mkdir()
  words = [*program.split(), *run.arguments, "--num_processes=2"]
  (run.workdir / "command.txt").write_text(shlex.join(words))
  assert sweep.told_so(run)
  for changed in (other.arguments, run.arguments[1:]):
    assert not sweep.told_so(run._replace(arguments=changed))


def test_another_fixed_field_is_another_run(tmp_path, runner):
  """What was trained with other fields is not taken for it."""
  arguments = [f"--workdir={tmp_path / 's'}", CONFIG, "--config.lora.rank=2,4"]
  assert sweep.main(arguments) == 0
  assert sweep.main([*arguments, "--config.steps=9"]) == 1
  assert runner == ["2", "4", "2", "4"]  # the stand-in refuses its old workdir


def test_fail_fast_and_columns(tmp_path, runner, capsys):
  arguments = [f"--workdir={tmp_path / 's'}", CONFIG, "--config.lora.rank=3,4"]
  assert sweep.main([*arguments, "--fail_fast", "--columns=seconds"]) == 1
  assert runner == ["3"]
  assert "| 4 |  | not finished |" in capsys.readouterr().out


def test_jobs_are_submitted_once_and_collected_later(tmp_path, runner, capsys):
  place = tmp_path / "s"
  note = tmp_path / "jobs"
  job = tmp_path / "submit"
  job.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$*" >> {note}\n')
  job.chmod(0o755)
  arguments = [
    *(f"--workdir={place}", CONFIG, "--config.lora.rank=2,4"),
    f"--submit={job} --ntasks=2",
  ]
  assert sweep.main(arguments) == 0
  assert sweep.main(arguments) == 0
  jobs = note.read_text().splitlines()
  assert len(jobs) == 2 and jobs[0].startswith("--ntasks=2 --config=")
  assert [row["status"] for row in rows(place)] == ["submitted"] * 2
  made = place / "lora.rank=2"
  made.mkdir()
  (made / "summary.json").write_text(json.dumps({"kl": 0.5}))
  words = shlex.split((place / "lora.rank=2.submitted").read_text())[1:]
  (made / "command.txt").write_text(shlex.join(["python", "-m", "m", *words]))
  assert sweep.main([*arguments, "--table"]) == 0
  assert [row["status"] for row in rows(place)] == ["finished", "not finished"]
  assert rows(place)[0]["kl"] == "0.5"
  # Other steps: neither submitted, nor given the numbers of those that were.
  changed = [*arguments, "--config.steps=9"]
  capsys.readouterr()
  assert sweep.main(changed) == 0
  assert "lora.rank=2.submitted was made by other" in capsys.readouterr().out
  for told in (changed, [*changed, "--table"]):
    assert sweep.main(told) == 0
    first = rows(place)[0]
    assert first["status"] == sweep.OTHERWISE and not first.get("kl")
  assert len(note.read_text().splitlines()) == 2
  assert sweep.main([*arguments, "--resubmit"]) == 0
  assert len(note.read_text().splitlines()) == 3  # one has finished


@pytest.mark.slow
def test_two_tiny_runs(tmp_path):
  fields = tiny.fields("sft") | {"steps": 1, "eval_every": 1, "eval.rows": 0}
  command = [
    *(sys.executable, "launch/sweep.py", f"--workdir={tmp_path}"),
    "--config=configs/sft.py",
    *(f"--config.{name}={value}" for name, value in fields.items()),
    "--config.seed=0,1",
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = rows(tmp_path)
  assert [(row["seed"], row["status"]) for row in found] == [
    ("0", "finished"),
    ("1", "finished"),
  ]
  losses = [float(row["loss"]) for row in found]
  assert losses[0] != losses[1]
  assert losses[0] == tiny.summary(tmp_path / "seed=0")["loss"]


STOPPED = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(__file__).with_name("started").touch()
time.sleep(60)
"""


def test_a_sweep_that_is_stopped_lets_its_run_save(
  tmp_path, runner, monkeypatch, capsys
):
  (tmp_path / "runner.py").write_text(STOPPED)

  def tell():
    end = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < end:
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=tell)
  thread.start()
  command = [f"--workdir={tmp_path / 's'}", CONFIG, "--config.lora.rank=2,4"]
  assert sweep.main(command) == 75
  thread.join()
  assert runner == ["2"]  # the next one is not started
  assert "the same command goes on" in capsys.readouterr().err


def test_a_point_that_is_wrong_is_said_before_the_first_is_run(
  tmp_path, runner, capsys
):
  place = tmp_path / "s"
  for field, said in (
    ("lora.rank=2,-1", "error: lora.rank=-1: config.lora.rank=-1 must be"),
    ("lora.rank=2,four", "lora.rank=four"),
    ("lorra.rank=2,4", "Did you mean 'lora.rank'?"),
  ):
    arguments = [f"--workdir={place}", CONFIG, f"--config.{field}"]
    assert sweep.main(arguments) == 2
    assert said in capsys.readouterr().err
  assert runner == [] and not place.exists()


def test_paths_are_those_of_the_current_directory(
  tmp_path, monkeypatch, capsys
):
  """The config too; the package and its configs are found from anywhere."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  arguments = ["--workdir=~/s", CONFIG, "--config.seed=0,1"]
  assert sweep.main(arguments) == 2
  assert "configs/reward.py" in capsys.readouterr().err
  (tmp_path / "mine.py").write_text(
    "from configs import report\n\n\ndef get_config():\n"
    "  config = report.get_config()\n  config.seed = 0\n  return config\n"
  )
  arguments[1] = "--config=mine.py"
  assert sweep.main(arguments) == 1  # there is nothing to report
  told = (tmp_path / "home" / "s" / "sweep.md").read_text()
  assert told.count("failed (exit status 1)") == 2
  assert not (tmp_path / "~").exists()

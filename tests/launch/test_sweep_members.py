"""A sweep whose points are trained together, as members of a run."""

import csv
import pathlib

import pytest

from perl_jax.tasks.settings import members
from tests.launch.test_sweep import CONFIG, sweep, sweep_grid
from tests.tasks import tiny

TOGETHER = [
  "--config.lora.rank=2,4", "--config.seed=0,1",
  "--config.optimizer.learning_rate=1e-3,2e-3",
]  # fmt: skip


def test_runs_that_differ_in_arrays_are_members_of_one():
  runs = sweep.grid([CONFIG, *TOGETHER], pathlib.Path("s"))
  jobs = sweep.jobs_of(runs, 8)
  assert [job.run.arguments for job in jobs] == [
    [
      CONFIG,
      f"--config.lora.rank={rank}",
      "--config.vary=seed=0,0,1,1 optimizer.learning_rate=1e-3,2e-3,1e-3,2e-3",
      f"--workdir=s/lora.rank={rank}",
    ]
    for rank in (2, 4)
  ]
  # Each point of the grid is once among them, where its member will lie.
  points = [point for job in jobs for point in job.points]
  assert [p.name for p in points] == [run.name for run in runs]
  assert points[5].point == runs[5].point
  assert points[5].workdir == pathlib.Path("s/lora.rank=4/members/1")


def test_no_more_at_once_than_asked_for():
  runs = sweep.grid([CONFIG, "--config.seed=0,1,2"], pathlib.Path("s"))
  jobs = sweep.jobs_of(runs, 2)
  assert [job.run.name for job in jobs] == ["together__0", "seed=2"]
  assert jobs[0].run.arguments[-2:] == [
    "--config.vary=seed=0,1", "--workdir=s/together__0",
  ]  # fmt: skip
  assert jobs[1].points == [runs[2]]  # alone, as without the option
  assert [job.points for job in sweep.jobs_of(runs, 1)] == [[r] for r in runs]


def test_a_list_of_members_is_no_axis():
  arguments = [CONFIG, "--config.vary=seed=0,1", "--config.lora.rank=2,4"]
  with pytest.raises(ValueError, match="--together=8"):
    sweep.grid(arguments, pathlib.Path("s"))
  arguments[1] = "--config.vary='seed=0,1'"
  assert len(sweep.grid(arguments, pathlib.Path("s"))) == 2


def test_what_cannot_be_a_member_is_a_run_of_its_own(capsys):
  """Both sides of a comparison, of which one has no base to share."""
  fields = ["--config.tuning=lora,full", "--config.seed=0,1"]
  runs = sweep.grid([CONFIG, *fields], pathlib.Path("s"))
  jobs = sweep.apart(sweep.jobs_of(runs, 8), runs)
  assert [job.run.name for job in jobs] == [
    "tuning=lora", "tuning=full__seed=0", "tuning=full__seed=1",
  ]  # fmt: skip
  assert [job.points for job in jobs[1:]] == [[runs[2]], [runs[3]]]
  assert "config.tuning='full'" in capsys.readouterr().out
  runs = sweep.grid([CONFIG, fields[1]], pathlib.Path("s"))
  jobs = sweep.jobs_of(runs, 8)  # the tuning is left to the backbone
  assert sweep.apart(jobs, runs) == jobs and len(jobs) == 1


def test_fields_of_members_are_those_of_the_package():
  assert sweep_grid.TOGETHER == members.FIELDS


@pytest.mark.slow
def test_a_sweep_of_members(tmp_path, finished, capfd):
  """Two runs of two members: rows in the grid's order, and nothing twice."""
  fields = tiny.fields("reward") | {"reward.init": finished / "sft", "steps": 2}
  arguments = [
    f"--workdir={tmp_path / 's'}", CONFIG, "--together=2",
    *(f"--config.{k}={v}" for k, v in fields.items() if k != "lora.rank"),
    "--config.lora.rank=2,4", "--config.seed=0,1",
  ]  # fmt: skip
  assert sweep.main(arguments) == 0
  with (tmp_path / "s" / "sweep.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [(r["lora.rank"], r["seed"], r["status"]) for r in rows] == [
    (rank, seed, "finished") for rank in "24" for seed in "01"
  ]
  for row in rows:
    place = tmp_path / "s" / f"lora.rank={row['lora.rank']}" / "members"
    summary = tiny.summary(place / row["seed"])
    assert float(row["log_loss"]) == pytest.approx(summary["log_loss"])
  before = (tmp_path / "s/lora.rank=2/summary.json").stat().st_mtime_ns
  assert sweep.main(arguments) == 0
  assert (tmp_path / "s/lora.rank=2/summary.json").stat().st_mtime_ns == before
  capfd.readouterr()

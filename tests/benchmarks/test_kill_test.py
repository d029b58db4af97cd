"""Runs that are killed in earnest; the long version is run by hand."""

import json
import random
import shutil
import signal

import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks import alike, kill_test
from perl_jax import files


@pytest.mark.nightly
def test_killed_and_stopped_runs_end_as_undisturbed_ones(tmp_path):
  said = []
  for number in (signal.SIGKILL, signal.SIGTERM):
    test = kill_test.KillTest(
      tmp_path, number=number, processes=1, draw=random.Random(3),
      say=said.append,
    )  # fmt: skip
    assert test.run(["sft"], kills=2, most=2) == 0, said
    assert test.kills == 2
  assert sum("alike" in line for line in said) >= 2, said


@pytest.fixture
def whole(tmp_path):
  """What a stage leaves, in small."""
  workdir = tmp_path / "whole"
  workdir.mkdir()
  files.write_json(workdir / "config.json", {"task": "sft"})
  files.write_json(workdir / "summary.json", {"loss": 1.5, "seconds": 3.0})
  files.write_text(workdir / "report.html", "<!doctype html>")
  files.write_jsonl(
    workdir / "metrics.jsonl",
    [{"step": 1, "train/loss": 2.0, "seconds/step": 0.1},
     {"step": 2, "train/loss": 1.5, "seconds/step": 0.1}],
  )  # fmt: skip
  with ocp.StandardCheckpointer() as saver:
    saver.save(
      workdir / "checkpoints" / "2" / "trainable", {"w": np.arange(3.0)}
    )
  return workdir


def change(path, **values):
  files.write_json(path, json.loads(path.read_text()) | values)


def rewrite(path, old, new):
  path.write_text(path.read_text().replace(old, new))


def other_arrays(workdir):
  shutil.rmtree(workdir / "checkpoints")
  with ocp.StandardCheckpointer() as saver:
    saver.save(
      workdir / "checkpoints" / "2" / "trainable", {"w": np.arange(3.0) + 1e-12}
    )


@pytest.mark.parametrize(
  "spoil, said",
  [
    (lambda w: change(w / "summary.json", loss=1.6), "summary.json differs"),
    (lambda w: rewrite(w / "metrics.jsonl", "2.0", "2.1"), "metrics.jsonl"),
    (other_arrays, "trainable/w differs"),
    (lambda w: shutil.rmtree(w / "checkpoints"), "keeps [], not [2]"),
    (lambda w: files.write_json(w / "lock.json", {}), "is left"),
    (lambda w: (w / "report.html").unlink(), "report.html is missing"),
    (lambda w: change(w / "summary.json", seconds=9.0), ""),
    (lambda w: rewrite(w / "metrics.jsonl", "0.1", "0.7"), ""),
  ],
)
def test_what_differs_is_found(tmp_path, whole, spoil, said):
  other = tmp_path / "other"
  shutil.copytree(whole, other)
  assert alike.different(whole, other, signal.SIGKILL) == ""
  spoil(other)
  found = alike.different(whole, other, signal.SIGKILL)
  assert said in found and bool(said) == bool(found)


def test_a_step_that_was_made_and_not_saved_is_lost(whole):
  assert alike.lost_steps(whole) == ""
  with (whole / "metrics.jsonl").open("a") as file:
    file.write('{"step": 3, "train/loss": 1.0}\n')
  assert "made 3 steps and saved 2" in alike.lost_steps(whole)

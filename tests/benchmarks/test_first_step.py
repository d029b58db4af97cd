"""Seconds to the first step are read from what a run writes."""

import pytest

from benchmarks import first_step

RUN = """
import json, os, pathlib, sys, time
flags = dict(f.lstrip("-").split("=", 1) for f in sys.argv[1:])
assert flags["config.rl.steps"] == "1", flags
for stage in ("reward", "rl"):
  here = pathlib.Path(flags["workdir"]) / stage
  here.mkdir(parents=True)
  (here / "config.json").write_text("{}")
  began = time.time() - {"reward": 200, "rl": 100}[stage]
  os.utime(here / "config.json", (began, began))
  if stage == "rl" and flags["config.data.dir"] == "broken":
    sys.exit("error: no rows")
  lines = [
    {"step": 0, "seconds/evaluate_compile": 2.5},
    {"step": 1, "train/loss": 1.0, "seconds/compile": 1.25},
  ]
  text = "".join(json.dumps(line) + chr(10) for line in lines)
  (here / "metrics.jsonl").write_text(text)
time.sleep(60)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package of that name whose run does next to nothing."""
  (tmp_path / "perl_jax").mkdir()
  (tmp_path / "perl_jax" / "main.py").write_text(RUN)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  return tmp_path


def test_a_row_for_each_stage(package):
  rows = first_step.run(package / "first", package / "cache", "data")
  assert [row["stage"] for row in rows] == ["reward", "rl"]
  assert all(row["compiling"] == 3.8 for row in rows)
  # RL is counted from its own start, the reward model from that of the process.
  assert rows[1]["seconds"] >= 100 > rows[0]["seconds"]


def test_a_run_that_fails_is_told(package):
  with pytest.raises(RuntimeError, match="error: no rows"):
    first_step.run(package / "first", package / "cache", "broken")

"""The cost of checkpoints: what is counted, and a stage that is measured."""

import os

import pytest

from benchmarks import checkpoint_cost, soak


def test_what_is_counted(tmp_path):
  """The first save is left out, and the last; the largest counts for bytes."""
  saves = []
  for step, (held, took) in {
    1: (9.0, 9.0),
    2: (0.5, 2.0),
    3: (7.0, 7.0),
  }.items():
    last = tmp_path / str(step) / checkpoint_cost._LAST
    last.parent.mkdir()
    last.write_bytes(b"x" * 100 * step)
    began = 1000.0 * step
    os.utime(last, (began + took, began + took))
    saves.append(checkpoint_cost.Save(step, began, held))
  found = checkpoint_cost.summary(
    saves, tmp_path, {"without": 2.0, "with": 2.5}
  )
  assert found == {
    "saves": 1, "bytes": 300, "held": 0.5, "written": 2.0, "step": 2.0,
    "step_beside": 2.5, "share": 0.25,
  }  # fmt: skip


@pytest.mark.nightly
def test_a_stage_is_measured(tmp_path):
  found = checkpoint_cost.run(
    tmp_path, "sft", steps=8, every=2, fields=soak.SMALL | {"eval.rows": 0}
  )
  assert found["saves"] == 2 and found["bytes"] > 100_000
  assert 0 < found["held"] < found["written"] < 60

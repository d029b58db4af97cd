"""The benchmark of members: that it measures both sides, and its tables."""

import pytest

from benchmarks import members


@pytest.mark.nightly
def test_both_sides_are_measured_on_the_same_batches():
  found = members.run([2], steps=2, microbatches=8)
  one, single = found[2]["members"], found[2]["single"]
  assert len(one["seconds"]) == len(single["seconds"]) == 2
  assert min(one["seconds"] + single["seconds"]) > 0
  assert one["peak_bytes"] > single["peak_bytes"] > 0


def test_tables():
  side = {"seconds": [2.0, 4.0], "seconds_compiling": 3.0, "peak_bytes": 2**21}
  other = side | {"seconds": [8.0, 8.0], "peak_bytes": 2**20}
  (line,) = list(members.table({4: {"members": side, "single": other}}))[2:]
  cells = [cell.strip() for cell in line.strip("|").split("|")]
  assert (cells[0], cells[3], cells[4]) == ("4", "0.38", "3.0")

  def stage(seconds, fits=True):
    return {"peak_bytes": 3 * 2**30, "fits": fits, "seconds": seconds}

  made = {1: {"reward": stage(1.0)}, 4: {"reward": stage(3.0)},
          16: {"reward": stage(None, fits=False)}}  # fmt: skip
  assert list(members.plan_table(made))[2:] == [
    "| reward | 1 | 3.00 | yes | 1.00 | 1.00 | 1.00 |",
    "| reward | 4 | 3.00 | yes | 3.00 | 4.00 | 0.75 |",
    "| reward | 16 | 3.00 | no | | | |",
  ]

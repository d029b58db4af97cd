"""The tables and ratios of the accelerator benchmark."""

import dataclasses
import json
import sys

import pytest

from benchmarks import accelerator, process, speed_arms


def row(device, flops, **seconds):
  return {
    "device": device,
    "device_peak_bytes": 5e9,
    "flops": flops,
    "seconds": seconds,
    "policy_bytes": 1e9,
  }


def test_every_case_is_an_arm_with_fields_of_its_own():
  for case, (arm, _) in accelerator.CASES.items():
    fields = accelerator.fields_of(case, {})
    made = dataclasses.replace(speed_arms.ARMS[arm], **fields)
    assert made.base_dtype == ("float32" if "full" in arm else "bfloat16")
    assert made.prompt_len + made.response_len <= made.model["max_len"]


def test_changes_come_last_and_half_is_half():
  changes = {"response_len": 8, "model": {"num_layers": 2}}
  whole = accelerator.fields_of("rloo", changes)
  half = accelerator.fields_of("rloo, half", changes)
  assert (whole["response_len"], half["response_len"]) == (8, 4)
  assert whole["model"] == accelerator.MODEL | {"num_layers": 2}
  assert accelerator.fields_of("rloo, half", {})["response_len"] == 128


def test_shares_are_of_the_chip_and_left_out_where_it_is_unknown():
  found = {
    "rloo": row(
      "NVIDIA H100 80GB HBM3", {"learn": 98.9e12}, learn=0.5, all=2.0
    ),
    "rloo, full": row("cpu", {"learn": 2e12}, learn=1.0, all=4.0),
  }
  lines = accelerator.table(found).splitlines()[2:]
  assert lines == [
    "| rloo | learn | 0.500 | 98.9 | 20.0% | 5.0 |",
    "| rloo | all | 2.000 |  |  | 5.0 |",
    "| rloo, full | learn | 1.000 | 2 |  | 5.0 |",
    "| rloo, full | all | 4.000 |  |  | 5.0 |",
  ]
  assert accelerator.ratios(found).splitlines()[2:] == ["| rloo | 0.50 |"]


def test_decoding_reads_weights_and_caches():
  fields = {
    "prompts": 2,
    "group": 3,
    "prompt_len": 10,
    "response_len": 8,
    "model": {
      "num_kv_heads": 2,
      "head_dim": 4,
      "num_layers": 5,
      "dtype": "bfloat16",
    },
  }
  whole, half = row("x", {}, sample=5.0), row("x", {}, sample=3.0)
  # 7 and 3 steps over 2 rows, of 10 + 3 * 8 and 10 + 3 * 4 columns of 80
  # numbers of two bytes each, keys and values.
  steps = 7 * (1e9 + 2 * 34 * 160), 3 * (1e9 + 2 * 22 * 160)
  expected = (steps[0] - steps[1]) / 2.0
  found = accelerator.decode_bandwidth(whole, half, fields)
  assert found == pytest.approx(expected)


def test_what_is_measured_is_written_at_once(monkeypatch, tmp_path, capsys):
  """The machine goes away during the third case."""
  order = []

  def run_case(case, *args):
    order.append(case)
    if len(order) == 3:
      raise TimeoutError
    return row("x", {}, all=float(len(order)))

  monkeypatch.setattr(accelerator, "run_case", run_case)
  path = tmp_path / "found" / "x.json"
  monkeypatch.setattr(sys, "argv", ["accelerator", f"--json={path}"])
  with pytest.raises(TimeoutError):
    accelerator.main()
  assert order == ["rloo", "rloo, full", "reward"]
  found = json.loads(path.read_text())
  assert list(found["cases"]) == order[:2]
  assert found["decode_bytes_per_second"] is None
  assert "| rloo | 0.50 |" in capsys.readouterr().out
  assert list(accelerator.CASES)[3:] == ["reward, full", accelerator.HALF]


def test_phases_are_medians_by_the_clock(monkeypatch, tmp_path):
  steps = [
    {"spent": {"all": [wall, 9.0], "learn": [wall / 2, 9.0]}, "clean": True}
    for wall in (1.0, 5.0, 2.0)
  ]
  given = []

  def last_json(command, **options):
    given.append(command)
    return {"steps": steps}

  monkeypatch.setattr(process, "last_json", last_json)
  found = accelerator.run_case("reward, full", 3, {}, tmp_path)
  assert found["seconds"] == {"all": 2.0, "learn": 1.0}
  assert f"--profile={tmp_path / 'reward_full'}" in given[0]

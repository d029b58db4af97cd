"""Benchmarks that compile and do not run: memory by set-up, efficiency."""

import argparse

import pytest

from benchmarks import efficiency, plan_vs_truth, rl_memory
from perl_jax import sharding
from perl_jax.tasks import plan

GIVEN = argparse.Namespace(
  model="tiny", vocab=64, topology="", dtype="float32", batch=4, prompt_len=8,
  response_len=8, parts=2, data=1, tensor=1,
)  # fmt: skip


def mesh():
  return sharding.make_mesh(data=1, fsdp=1, tensor=1)


def test_set_ups_hold_what_they_say():
  """In bytes of the base, which is bfloat16 where it is frozen."""
  given = argparse.Namespace(**vars(GIVEN) | {"dtype": "bfloat16"})
  config = rl_memory.config_of(given)
  model = plan.model_of(config, ["rl"])
  made = {
    t: plan.make_stage(plan.stage_config(config, "rl", t), model, mesh())
    for t in ("lora", "full")
  }
  base = made["lora"].held_bytes()["base"]
  lora = plan.stage_config(config, "rl", "lora")
  assert rl_memory.alone(made["lora"], model, lora).held_bytes() == {
    "policy": base
  }
  standard = rl_memory.standard(made["full"], "bfloat16").held_bytes()
  head = 2 * (model.width + 1)  # the scalar head of the reward model
  assert standard["anchor"] == base
  assert standard["reward"] == base + head
  assert standard["policy"] == 2 * base  # float32
  assert standard["optimizer"] == pytest.approx(
    4 * standard["policy"], rel=0.01
  )
  assert standard["base"] == 0


@pytest.mark.nightly
def test_memory_of_set_ups():
  found = rl_memory.measure(
    rl_memory.config_of(GIVEN), mesh(), rl_memory.SETUPS
  )
  assert list(found["alone"]["programs"]) == ["sample"]
  assert list(found["standard"]["programs"]) == ["sample", "score", "learn"]
  ratios = rl_memory.ratios(found)
  assert ratios["PERL / standard"] < 0.7
  assert ratios["PERL / alone"] >= 1
  text = rl_memory.table(found)
  assert f"PERL / alone: {ratios['PERL / alone']:.3f}" in text
  assert "| held: optimizer |" in text


def stage(peak, seconds, batch=8):
  times = {"compute": 0.1, "memory": 0.2, "network": 0.3, "bound": "network"}
  return {
    "peak_bytes": peak * 2**30,
    "seconds": seconds,
    "batch_size": batch,
    "programs": {"learn": {"times": times | {"step": seconds}}},
  }


def test_tables_of_efficiency():
  rows = {
    ("gemma_2b", "v5e:4x4"): {
      "stages": {
        "reward": {"lora": stage(1, 0.5), "full": stage(4, 1.0)},
        "rl": {"lora": stage(1, 0.5), "full": stage(40, None)},
      }
    }
  }
  reward, rl = list(efficiency.table(rows))[2:]
  assert "| 1.00 | 4.00 | 25.0%" in reward and "| 50.0% |" in reward
  assert "does not fit" in rl
  weak = {
    ("m", f"v5e:{n}"): {"stages": {"reward": {"lora": stage(1, seconds)}}}
    for n, seconds in (("2x2", 0.5), ("4x4", 1.0))
  }
  first, second = list(efficiency.weak_table(weak))[2:]
  assert "| 100% |" in first and "| 50% |" in second and "network" in second


def test_table_of_layouts():
  made = stage(1, 0.5)
  sample = made["programs"].pop("learn")
  sample["cost"] = {"collective_bytes": {"all-gather": 2**30, "all-reduce": 0}}
  made["programs"]["sample"] = sample
  (line,) = list(efficiency.rollout_table({"m train": made}))[2:]
  assert "| m train | 1.00 | 1 GiB | 100 ms |" in line
  assert line.endswith("| 0.50 |")


def test_rows_of_a_slice():
  assert efficiency.chips("v5p:2x2x4") == 16
  config = efficiency.config_of(
    "gemma_2b", "v5e:4x4", stages="reward", full=True
  )
  assert config.reward.batch_size == 64 and config.reward.microbatches == 4
  assert config.rl.batch_size == 64  # another stage keeps what it has


@pytest.mark.nightly
def test_planned_beside_taken(monkeypatch):
  monkeypatch.setattr("sys.argv", ["x"])
  given = argparse.Namespace(
    model="small", vocab=512, dtype="float32", tuning="lora", batch=4,
    length=32, stage="reward", program="learn",
  )  # fmt: skip
  found = plan_vs_truth.run_one(given)
  # So small a program is lost in what else a process needs.
  assert 0 < found["planned"] < found["taken"] + 2**24

"""Plans: of the very programs that training runs, and what they lead to."""

import importlib.util
import json
import os

import jax
import pytest

from configs import plan as plan_config
from perl_jax import main, sharding, tasks
from perl_jax.reporting import plans
from perl_jax.tasks import plan
from perl_jax.tasks.dry_run import programs
from perl_jax.tasks.settings import shared
from tests.tasks import tiny


def one_device():
  return sharding.make_mesh(data=1, fsdp=1, tensor=1)


def planned_config(**fields):
  config = plan_config.get_config()
  small = {"model": "tiny", "vocab_size": 64, "compute.dtype": "float32"}
  small["lora.rank"] = 1
  for name in tasks.TRAINING:
    small |= {
      f"{name}.batch_size": 8,
      f"{name}.eval.batch_size": 8,
      f"{name}.data.max_len": 16,
      f"{name}.data.prompt_len": 8,
      f"{name}.data.response_len": 8,
    }
  return tiny.override(config, small | fields)


@pytest.mark.parametrize(
  "name, full, shown", [("reward", True, "LoRA needs"), ("rl", False, "KV")]
)
def test_plan(tmp_path, capsys, name, full, shown):
  config = planned_config(**{"plan.stages": name, "plan.full": full})
  summary = tasks.run(config, tmp_path / "plan")
  found = json.loads((tmp_path / "plan" / plan.FILE).read_text())
  by_tuning = found["stages"][name]
  assert list(by_tuning) == (["lora", "full"] if full else ["lora"])
  assert list(by_tuning["lora"]["programs"]) == (
    ["learn"] if name == "reward" else ["sample", "score", "learn"]
  )
  for tuning, stage in by_tuning.items():
    assert stage["fits"]
    assert summary[f"{name}.{tuning}.peak_bytes"] == stage["peak_bytes"]
    assert stage["peak_bytes"] > sum(stage["held"].values())
    assert stage["seconds"] is None  # a CPU is in no table of chips
  if full:
    # Frozen weights need no gradient: one product in four is saved, but for
    # those of attention, and some are made by the adapters.
    flops = [
      stage["programs"]["learn"]["cost"]["flops"]
      for stage in by_tuning.values()
    ]
    assert 0.7 < flops[0] / flops[1] < 0.95
  text = capsys.readouterr().out
  assert f"## {name}, lora, batch of 8" in text and "No seconds" in text
  assert shown in text


@pytest.mark.parametrize(
  "message, peak",
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G"
      " of 15.75G hbm. Exceeded hbm capacity by 4.75G.",
      20.5 * 2**30 + 4000,
    ),
    (
      "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM,"
      " the total memory required for HLO temporaries (19.50G) exceeds"
      " available HBM (15.75G). HLO module: jit_step.",
      19.5 * 2**30 + 4000 + 80,
    ),
  ],
)
def test_what_the_compiler_refuses_is_said_in_bytes(message, peak):
  """A TPU's compiler does not give a program that is too large."""
  found = plan.plan_made(refused(message))
  assert found["peak_bytes"] == int(peak)
  assert not found["fits"] and found["seconds"] is None
  assert "refused by the compiler" in "\n".join(plans._memory(found))


def test_other_errors_of_the_compiler_are_errors():
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    plan.plan_made(refused("INTERNAL: something else"))


def refused(message):
  class Refused:
    def __getattr__(self, name):
      return lambda *args: self

    def compile(self, **options):
      raise jax.errors.JaxRuntimeError(message)

  def described(size):
    return jax.ShapeDtypeStruct((size,), "float32")

  return programs.StagePrograms(
    name="reward",
    mesh=one_device(),
    held={"base": described(1000)},
    make_programs=lambda: [
      programs.Program("learn", Refused(), (described(20),), ())
    ],
  )


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"model": "gemma_3b"}, "model.preset='gemma_3b' is unknown.*gemma_2b"),
    ({"model": "small", "vocab_size": 0}, "set config.vocab_size"),
    ({"plan.stages": "reward,grpo"}, "config.plan.stages='reward,grpo'"),
    ({"plan.stages": ""}, "name some of sft, reward, rl, dpo"),
    ({"plan.topology": "v5e:4by4"}, "config.plan.topology='v5e:4by4'"),
    ({"rl.estimator": "grpo"}, "set samples_per_prompt"),
    ({"mesh.fsdp": 3}, "config.batch_size=8 does not divide"),
  ],
)
def test_bad_plans(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    tasks.run(planned_config(**fields), tmp_path / "plan")
  assert not (tmp_path / "plan").exists()


def test_a_gguf_file(tmp_path):
  pytest.importorskip("gguf", reason="needs the package gguf")
  from tests.interop.gguf import models

  path = tmp_path / "tiny.gguf"
  with pytest.raises(FileNotFoundError, match=r"No GGUF file .*tiny\.gguf"):
    plan.model_of(planned_config(model=str(path)), ["rl"])
  models.write(path, "gemma2_tiny")
  config = planned_config(model=str(path), vocab_size=0)
  found = plan.model_of(config, ["rl"])
  assert found == models.config("gemma2_tiny", max_len=16, remat="full")


def test_a_directory_that_holds_no_model(tmp_path):
  config = planned_config(model=str(tmp_path))
  with pytest.raises(ValueError, match="neither of a run"):
    plan.model_of(config, ["rl"])


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu"
)
@pytest.mark.slow
def test_plan_for_tpus_that_are_not_here(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # put back
  config = planned_config(
    **{
      "plan.topology": "v5e:2x2",
      "plan.stages": "reward",
      "compute.dtype": "bfloat16",
      "vocab_size": 512,
    }
  )
  tasks.run(config, tmp_path)
  found = json.loads((tmp_path / plan.FILE).read_text())
  assert (found["device_kind"], found["devices"]) == ("TPU v5 lite", 4)
  assert found["chip"]["name"] == "v5e"
  lora = found["stages"]["reward"]["lora"]
  learn = lora["programs"]["learn"]
  assert lora["limit_bytes"] == 16 * 2**30 and lora["fits"]
  assert learn["cost"]["cycles"] > 0
  assert learn["times"]["step"] >= learn["times"]["compute"] > 0


def test_configs_of_a_plan_override_each_stage():
  config = planned_config(**{"lora.rank": 3, "mesh.tensor": 2})
  made = plan.stage_config(config, "rl", "full")
  assert (made.lora.rank, made.mesh.tensor, made.tuning) == (3, 2, "full")
  assert shared.lora_spec(made).rank == 0
  assert main.USER_ERRORS[0] is ValueError

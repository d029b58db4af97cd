"""Plans: of the very programs that training runs, and what they lead to."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from configs import plan as plan_config
from perl_jax import main, params, sharding, tasks
from perl_jax.models import presets
from perl_jax.models.config import ModelConfig
from perl_jax.planning import chips, estimate
from perl_jax.reporting import plans
from perl_jax.tasks import plan
from perl_jax.tasks.dry_run import memory_check, programs, suggestions
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import compiled as compiled_lib
from perl_jax.tasks.training import inputs
from tests.tasks import tiny

MODEL = presets.preset("tiny", vocab_size=400, max_len=136)


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


@pytest.mark.parametrize("task", ["reward", "dpo"])
def test_a_plan_is_of_what_the_task_compiles(task, tmp_path, monkeypatch):
  """Byte for byte: the peak of the plan is that of the run's own step."""
  compiled, lengths = [], []
  original = compiled_lib.Compiled.__call__

  def remember(self, *args):
    if self.name == f"{task} step":
      pairs = args[2].pairs if task == "dpo" else args[2]
      lengths.append(pairs.chosen_tokens.shape[1])
      compiled.append(self)
    return original(self, *args)

  monkeypatch.setattr(compiled_lib.Compiled, "__call__", remember)
  config = tiny.config(task, steps=1, eval_every=1, mesh__data=1)
  found = []
  read = inputs.read
  monkeypatch.setattr(
    inputs,
    "read",
    lambda *a, **k: found.append(read(*a, **k)) or found[-1],
  )
  tasks.run(config, tmp_path / task)
  described = json.loads((tmp_path / task / "model.json").read_text())
  model = ModelConfig.from_dict(described["model"])
  # How long rows and responses are, the data decide.
  seen = {
    "data.max_len": lengths[0],
    "data.response_len": found[0].max_targets,
  }
  made = plan.make_stage(tiny.override(config, seen), model, one_device())
  learn = made.programs()[-1]
  with jax.set_mesh(made.mesh):
    executable = learn.function.jitted(*learn.args).lower(*learn.args).compile()
  planned = estimate.peak_bytes(executable.memory_analysis())
  assert planned == compiled[0].peak_bytes


@pytest.mark.parametrize("task", tasks.TRAINING)
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_held_bytes_are_those_of_arrays(task, tuning):
  config = tiny.config(task, tuning=tuning, base_dtype="float32")
  made = plan.make_stage(config, MODEL, one_device())
  held = made.held_bytes()
  for name, tree in made.held.items():
    real = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
    assert held[name] == params.nbytes(real), name
  whole = params.nbytes(
    jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), made.held)
  )
  base = held["base"]
  if tuning == "full":
    assert base == 0
    # Each role that is trained is the model and two moments of Adam.
    trained = "reward" if task == "reward" else "policy"
    assert held["optimizer"] >= 2 * held[trained]
  else:
    assert base > 0.5 * whole


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_gathered_kernel_is_kept_for_no_layer(tuning):
  """Nor its gradient: on eight devices no program has the whole model."""
  model = presets.preset(
    "small", vocab_size=64, max_len=16, num_layers=12, mlp_width=4096
  )
  config = tiny.config(
    "reward",
    tuning=tuning,
    microbatches=1,
    data__max_len=16,
    data__response_len=4,
  )
  mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
  made = plan.make_stage(config, model, mesh)
  (learn,) = made.programs()
  with jax.set_mesh(mesh):
    jitted = learn.function.jitted(*learn.args)
    executable = jitted.lower(*learn.args).compile()
  kernels = 12 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 4096) * 4
  assert executable.memory_analysis().temp_size_in_bytes < kernels


def test_a_quantised_base_is_counted_in_its_bits():
  sizes = {}
  for dtype in ("bfloat16", "int8", "nf4"):
    config = tiny.config("reward", base_dtype=dtype)
    made = plan.make_stage(config, MODEL, one_device())
    sizes[dtype] = made.held_bytes()["base"]
  kernels = 2 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
  rest = sizes["bfloat16"] - kernels
  assert rest < sizes["nf4"] < rest + kernels / 3
  assert rest + kernels / 2 < sizes["int8"] < rest + kernels / 1.5


def test_the_base_is_spread_and_the_cache_too():
  config = tiny.config("rl", reward__fn="x:y")
  sizes = {"data": 1, "fsdp": 4, "tensor": 2}
  alone = plan.make_stage(config, MODEL, one_device())
  spread = plan.make_stage(config, MODEL, sharding.make_mesh(**sizes))
  assert spread.held_bytes()["base"] < alone.held_bytes()["base"] / 6
  assert spread.cache_bytes() == alone.cache_bytes() / 8
  keys = 2 * 8 * (88 + 12) * 2 * 8 * 4  # L B S K H, float32
  assert alone.cache_bytes() == 2 * keys
  assert "reward" not in alone.held


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


def test_what_does_not_fit_is_changed_until_it_does():
  """Each change on top of those before it, the last one fits."""
  config = tiny.override(
    tiny.config("reward", base_dtype="bfloat16"), {"batch_size": 16}
  )
  mesh = sharding.make_mesh(data=2, fsdp=1, tensor=1)
  base = plan.make_stage(config, MODEL, mesh).held_bytes()["base"]
  tried = []

  def planner(config, model, mesh):
    """Bytes that are held, and what stands for the rows of a microbatch."""
    tried.append((config, model, mesh))
    made = plan.make_stage(config, model, mesh)
    peak = sum(made.held_bytes().values()) + 1000 * config.batch_size
    peak -= 500 * config.microbatches + 100 * (model.remat == "full")
    return {"peak_bytes": peak, "fits": peak < limit, "seconds": None}

  limit = 0
  whole = planner(config, MODEL, mesh)["peak_bytes"]
  limit = whole  # one byte less than it takes
  found = suggestions.try_changes(config, MODEL, mesh, planner)
  assert [row["fits"] for row in found] == [True]
  assert found[0]["change"] == "--config.microbatches=8"
  limit = 0
  found = suggestions.try_changes(config, MODEL, mesh, planner)
  assert [row["change"] for row in found] == [
    "--config.microbatches=8",
    "--config.model.remat=full",
    "--config.mesh.data=1 --config.mesh.fsdp=2",
    "--config.base_dtype=int8",
    "--config.batch_size=8 --config.microbatches=4",
    "--config.batch_size=4 --config.microbatches=2",
  ]
  last_config, last_model, last_mesh = tried[-1]
  assert last_config.base_dtype == "int8" and last_model.remat == "full"
  assert dict(last_mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1}
  peaks = [row["peak_bytes"] for row in found]
  assert peaks[-1] < whole - base / 2
  assert "None of them fits" in "\n".join(plans._changes({"changes": found}))


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


def test_a_directory_that_holds_no_model(tmp_path):
  config = planned_config(model=str(tmp_path))
  with pytest.raises(ValueError, match="neither of a run"):
    plan.model_of(config, ["rl"])


def test_a_run_that_cannot_fit_is_refused(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(
    memory_check, "memory_limit", lambda mesh, device: 100_000
  )
  with pytest.raises(
    ValueError, match=r"needs at least 0\.00 GiB on each device"
  ):
    tasks.run(tiny.config("sft"), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  check(tiny.config("sft", fit="off"))
  with caplog.at_level("WARNING"):
    check(tiny.config("sft", fit="warn"))
  assert "configs/plan.py tries them" in caplog.text
  with pytest.raises(ValueError, match=r"config\.fit='never'"):
    check(tiny.config("sft", fit="never"))
  monkeypatch.setattr(memory_check, "memory_limit", lambda mesh, device: 2**40)
  check(tiny.config("sft"))


def check(config):
  task = tasks.TASKS[config.task]
  memory_check.check(config, task.trains, task.module().programs)


def test_the_limit_of_a_cpu_is_its_memory_shared():
  mesh = one_device()
  whole = memory_check.memory_limit(mesh, None) * jax.local_device_count()
  lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
  kilobytes = next(
    int(line.split()[1]) for line in lines if line.startswith("MemTotal")
  )
  assert whole == pytest.approx(kilobytes * 1024, rel=0.01)
  published = memory_check.memory_limit(mesh, chips.CHIPS["v5e"])
  assert published == 16 * 2**30


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu"
)
@pytest.mark.slow
def test_plan_for_tpus_that_are_not_here(tmp_path):
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

"""Stages from abstract arrays: the programs and the bytes of the real ones."""

import json

import jax
import numpy as np
import pytest

from perl_jax import params, sharding, tasks
from perl_jax.data import packed_loader
from perl_jax.data.batches.labelled import EncodedLabelled
from perl_jax.data.batches.member_rows import Subsets
from perl_jax.data.batches.preferences import EncodedPreference
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.models import presets
from perl_jax.models.config import ModelConfig
from perl_jax.planning import estimate
from perl_jax.tasks import plan
from perl_jax.tasks.dry_run import abstract as abstract_lib
from perl_jax.tasks.training import batching, inputs
from perl_jax.tasks.training import compiled as compiled_lib
from tests import toys
from tests.marks import by_night
from tests.tasks import tiny

MODEL = presets.preset("tiny", vocab_size=400, max_len=136)
SPREAD = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}


def one_device():
  return sharding.make_mesh(data=1, fsdp=1, tensor=1)


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
  """What all others start from."""
  workdir = tmp_path_factory.mktemp("anchor") / "sft"
  tiny.run(workdir, "sft", steps=1, eval_every=1, eval__rows=0)
  return workdir


@pytest.fixture(scope="module")
def start(tmp_path_factory, anchor):
  """A reward model on the anchor, whose tokenizer all take."""
  workdir = tmp_path_factory.mktemp("start") / "reward"
  tiny.run(workdir, "reward", steps=1, eval_every=1, reward__init=str(anchor))
  return workdir


RATES = "optimizer.learning_rate=0.01,0.02"
MEMBERS = {
  "reward-members": {"vary": RATES},
  "dpo-members": {"vary": f"{RATES} beta=0.1,0.3 lora.alpha=8,16"},
  "rl-members": {"vary": f"{RATES} value.learning_rate=0.01,0.03"},
}
RL = {
  "rl": {},
  "rl-members": {},
  "rl-ppo": {
    "estimator": "ppo", "ppo__epochs": 2, "ppo__minibatches": 2,
    "microbatches": 2, "whiten": True,
  },
  "rl-grpo": {
    "estimator": "grpo", "samples_per_prompt": 2, "kl__estimator": "exact",
    "kl__place": "loss", "score_microbatches": 2,
  },
}  # fmt: skip


@pytest.mark.parametrize(
  ("name", "mesh"),
  [
    *((name, {"mesh__data": 1}) for name in ("sft", "reward", "rl", "dpo")),
    *(
      pytest.param(name, mesh, marks=pytest.mark.slow)
      for name, mesh in (
        *((name, SPREAD) for name in ("sft", "reward", "rl", "dpo")),
        ("rl-grpo", {"mesh__data": 1}),
        *((name, {"mesh__data": 1}) for name in MEMBERS),
      )
    ),
    *(
      by_night(name, mesh)
      for name, mesh in (("rl-ppo", {"mesh__data": 1}), ("rl-grpo", SPREAD))
    ),
  ],
)
def test_a_plan_is_of_what_the_task_compiles(
  name, mesh, tmp_path, monkeypatch, anchor, start
):
  """Byte for byte: each program of the plan needs what that of the run does."""
  called = {}
  original = compiled_lib.Compiled.__call__

  def remember(self, *args):
    called.setdefault(self.name, (self, []))[1].append(jax.tree.map(spec, args))
    return original(self, *args)

  monkeypatch.setattr(compiled_lib.Compiled, "__call__", remember)
  fields = {"data__tokenizer": str(start / "tokenizer"), "steps": 1,
            "eval_every": 1, "eval__rows": 8} | mesh  # fmt: skip
  fields |= MEMBERS.get(name, {})
  if name in RL:
    fields |= RL[name] | {"reward__init": str(start)}
  task = name.split("-")[0]
  if task != "sft":
    role = "reward" if task == "reward" else "policy"
    fields |= {f"{role}__init": str(anchor)}
  config = tiny.config(task, **fields)
  tasks.run(config, tmp_path / task)
  place = tmp_path / task / ("members/0" if name in MEMBERS else "")
  described = json.loads((place / "model.json").read_text())
  model = ModelConfig.from_dict(described["model"])
  most = max_targets(task, config, start)
  mesh = sharding.make_mesh(**config.mesh.to_dict())

  def programs(args):
    # How long rows and responses are, the data decide.
    monkeypatch.setattr(
      abstract_lib.AbstractStage,
      "responses",
      lambda self, *_, **__: self.rows(pairs_of(args[2])),
    )
    fields = tiny.override(config, lengths(task, called))
    made = plan.make_stage(fields, model, mesh, max_targets=most)
    return {p.function.name: p for p in made.programs()}

  names = list(programs(next(iter(called.values()))[1][0]))
  assert len(names) == {"sft": 1, "reward": 1, "dpo": 2}.get(task, len(names))
  for name in names:
    real, given = called[name]
    distinct = {str(jax.tree.map(np.shape, args)): args for args in given}
    peaks = []
    for args in distinct.values():
      program = programs(args)[name]
      with jax.set_mesh(mesh):
        lowered = program.function.jitted(*program.args).lower(*program.args)
        memory = lowered.compile().memory_analysis()
      found, expected = (
        jax.tree.map(np.shape, x) for x in (program.args, args)
      )
      assert found == expected, name
      peaks.append(estimate.peak_bytes(memory))
    assert max(peaks) == real.peak_bytes, name


def spec(array):
  return jax.ShapeDtypeStruct(
    np.shape(array), getattr(array, "dtype", np.int32)
  )


def pairs_of(batch):
  """The packed rows of an argument of a step or of log-probs."""
  batch = batch[0] if type(batch) is tuple else batch  # of the first member
  return getattr(batch, "pairs", batch)


def lengths(task, called):
  """Fields of `data` that give batches as long as those of a run."""
  if task == "rl":
    return {"data.prompt_len": called["sample"][1][0][2].shape[1]}
  if task == "sft":
    return {"data.max_len": called["sft step"][1][0][2][0].shape[1]}
  return {}


def max_targets(task, config, start):
  """Most targets of a row in the data of a run."""
  if task == "rl":
    return None
  tokenization = tokenization_lib.load_tokenizer(start / "tokenizer")
  if task == "sft":
    return inputs.targets(config, tokenization).max_targets
  return inputs.read(config, tokenization, "preferences").max_targets


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
    data__pad_to_multiple_of=8,
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


@pytest.mark.parametrize("kind", ["preferences", "labelled"])
@pytest.mark.parametrize("members", [0, 3])
def test_abstract_batches_are_those_of_full_rows(kind, members):
  """As the loader packs them, where all are as long as can be."""
  config = tiny.config("reward", data__max_len=20, batch_size=8, microbatches=2)
  model = toys.config("tiny")
  mesh = sharding.make_mesh(data=2, fsdp=1, tensor=1)
  stage = abstract_lib.AbstractStage(config, model, mesh, {}, max_targets=6)
  share = 0.5 if members else 1.0
  with jax.set_mesh(mesh):
    found = stage.responses(kind, targets=True, share=share, members=members)
  if kind == "labelled":
    rows = [EncodedLabelled([1] * 20, 14, 0.0, i) for i in range(8)]
  else:
    rows = [EncodedPreference([1] * 20, [1] * 20, 14, i) for i in range(8)]
  layout = batching.Packing(targets=True).layout(
    kind, 0, config.data.pad_to_multiple_of
  )
  subsets = members and Subsets(8, members=members, share=share, seed=0)
  pack = packed_loader.train_packer(
    layout, rows, [20] * 8, 8, (20,), 4, (0, 1), 2, subsets or None
  )
  for name, array in pack(rows, 20, 8)._asdict().items():
    assert getattr(found, name).shape == array.shape, name
    assert getattr(found, name).dtype == array.dtype, name

"""What an RL iteration needs in memory, beside sampling alone and four models.

  python -m benchmarks.rl_memory
  TPU_SKIP_MDS_QUERY=1 python -m benchmarks.rl_memory --preset=gemma_2b \
      --vocab=256000 --topology=v5e:4x4 --batch=64 --prompt_len=1024 \
      --response_len=512 --microbatches=4 --score_parts=4

Nothing is run or allocated: the programs of the package are compiled for arrays
that are only described, on this machine's devices or, with --topology and the
package libtpu, ahead of time for TPUs that are not here. Three set-ups:

  alone     a policy that is sampled from, and nothing else
  PERL      policy, anchor, reward and value as adapters on one frozen base
  standard  four models; policy and value trained in full

The standard set-up's trained weights are float32 with float32 Adam moments, and
cast where they are used, so that no copy in the compute dtype is held; its
anchor and reward model are in the compute dtype, as PERL's base is.

Bytes are those of one device. What is held is there while any program runs:

  held  = all roles + the optimiser's state + the batch and what was measured
  phase = held + outputs + temporaries - donated, of the compiled program
  peak  = the largest phase
"""

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import rl as rl_config
from perl_jax import metrics, roles, rollout, sampling, sharding, steps
from perl_jax import params as params_lib
from perl_jax.models import presets
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks import rl

SETUPS = ("alone", "PERL", "standard")
ROLES = ("policy", "anchor", "reward", "value")


@dataclasses.dataclass(frozen=True)
class Settings:
  """Shapes of an iteration, and the devices it is compiled for.

  Attributes:
    preset: Backbone; see perl_jax/models/presets.py.
    vocab: `V`.
    batch: Episodes of an iteration.
    prompt_len: `P`.
    response_len: `T`.
    rank: `R` of the adapters, on attention.
    microbatches: Parts that the learning step adds up.
    score_parts: Parts that log-probs and rewards are computed in.
    dtype: Of the compute and of what is not trained.
    topology: Name of TPUs to compile for, such as "v5e:4x4"; "" is this
      machine.
    data: Size of the mesh axis; one of the three may be -1.
    fsdp: The same.
    tensor: The same.
  """

  preset: str = "base"
  vocab: int = 32_000
  batch: int = 8
  prompt_len: int = 128
  response_len: int = 64
  rank: int = 8
  microbatches: int = 8
  score_parts: int = 8
  dtype: str = "float32"
  topology: str = ""
  data: int = 1
  fsdp: int = -1
  tensor: int = 1

  def __post_init__(self):
    for field in ("microbatches", "score_parts"):
      if self.batch % getattr(self, field):
        raise ValueError(
          f"--batch={self.batch} does not divide by"
          f" --{field}={getattr(self, field)}."
        )


def make_mesh(settings: Settings) -> jax.sharding.Mesh:
  """The mesh, of this machine's devices or of a topology's."""
  devices = None
  if settings.topology:
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(
      settings.topology, platform="tpu"
    ).devices
  return sharding.make_mesh(
    data=settings.data,
    fsdp=settings.fsdp,
    tensor=settings.tensor,
    devices=devices,
  )


def device_bytes(tree: Any) -> int:
  """Bytes of a tree on the device that has most of it."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def described(mesh: jax.sharding.Mesh, tree: Any) -> Any:
  """Shapes of parameters or optimiser state, laid out by the rules."""
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    tree,
    sharding.shardings(mesh, tree),
  )


def parameters(config: ModelConfig, lora: LoraSpec) -> dict[str, Any]:
  """Shapes of each role's trainable tree, and of "frozen", which all share.

  Without an adapter a role is a whole model.
  """
  key = jax.random.key(0)
  base = jax.eval_shape(lambda: roles.init_base(key, config))
  head = jax.eval_shape(lambda: roles.init_head(config))
  held = jax.tree.map(lambda x: x.update(dtype=config.dtype), base)
  if lora.rank:
    adapter = jax.eval_shape(lambda: roles.init_adapter(key, config, lora))
    whole, kept, frozen = adapter, adapter, held
  else:
    whole, kept, frozen = base, held, {}
  return {
    "policy": whole,
    "anchor": kept,
    "reward": kept | head,
    "value": whole | head,
    "frozen": frozen,
  }


def in_parts(fn: Callable[..., Any], parts: int) -> Callable[..., Any]:
  """`fn(trainable, frozen, *batch)` on a part of the batch after the other."""
  if parts == 1:
    return fn

  def run(trainable, frozen, *batch):
    # Strided, as in `make_train_step`: each part spreads over all devices.
    cut = [x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in batch]
    found = jax.lax.map(lambda part: fn(trainable, frozen, *part), cut)
    return jax.tree.map(
      lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), found
    )

  return run


class Setup:
  """One set-up: what it holds, and the programs it runs."""

  def __init__(
    self, settings: Settings, mesh: jax.sharding.Mesh, lora: LoraSpec
  ):
    self.mesh, self.settings = mesh, settings
    length = settings.prompt_len + settings.response_len
    self.config = presets.preset(
      settings.preset,
      vocab_size=settings.vocab,
      max_len=length,
      remat="full",
      dtype=settings.dtype,
    )
    self.backbone = roles.Backbone(self.config, lora)
    shapes = parameters(self.config, lora)
    self.trees = {name: described(mesh, tree) for name, tree in shapes.items()}
    self.optimizer = rl.make_optimizer(rl_config.get_config())
    trainable = {name: shapes[name] for name in ("policy", "value")}
    self.state = described(
      mesh,
      jax.eval_shape(lambda x: steps.init_state(x, self.optimizer), trainable),
    )
    self.batch = self._batch()

  def _batch(self) -> rollout.Rollout:
    rows = NamedSharding(self.mesh, P(sharding.BATCH_AXES))

    def array(*shape, dtype=jnp.float32):
      shape = (self.settings.batch, *shape)
      return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    prompt, response = self.settings.prompt_len, self.settings.response_len
    return rollout.Rollout(
      prompts=array(prompt, dtype=jnp.int32),
      prompt_lengths=array(dtype=jnp.int32),
      responses=array(response, dtype=jnp.int32),
      response_mask=array(response, dtype=jnp.bool_),
      policy_logprobs=array(response),
      anchor_logprobs=array(response),
      rewards=array(),
    )

  def held(self) -> dict[str, int]:
    """Bytes by what they are for."""
    found = {name: device_bytes(tree) for name, tree in self.trees.items()}
    found["optimizer"] = device_bytes(self.state.opt_state)
    found["batch"] = device_bytes(self.batch)
    return found

  def programs(self) -> dict[str, Callable[[], Any]]:
    """Functions that compile each program of an iteration."""
    batch, trees = self.batch, self.trees
    rows = batch.prompts, batch.prompt_lengths
    measured = (*rows, batch.responses, batch.response_mask)
    parts = self.settings.score_parts
    temperature = rl_config.get_config().sampling.temperature
    logprobs = rollout.make_logprobs(self.backbone, temperature=temperature)
    rewards = rollout.make_rewards(self.backbone)

    @functools.cache
    def score(fn, role):
      if role == "anchor" and trees["anchor"] == trees["policy"]:
        return score(fn, "policy")  # one executable for both
      return self._compile(
        in_parts(fn, parts), trees[role], trees["frozen"], *measured
      )

    return {
      "sample": self.sample,
      "policy log-probs": lambda: score(logprobs, "policy"),
      "anchor log-probs": lambda: score(logprobs, "anchor"),
      "rewards": lambda: score(rewards, "reward"),
      "learn": self.learn,
    }

  def sample(self) -> Any:
    """Compiled: prefill, then decoding to the full length."""
    spec = sampling.SamplingSpec(
      response_len=self.settings.response_len,
      stop_ids=(self.settings.vocab,),
      temperature=rl_config.get_config().sampling.temperature,
    )
    sampler = sampling.make_sampler(self.backbone, spec)

    def sample(trainable, frozen, prompts, lengths, row_ids, key):
      params = params_lib.combine(trainable, frozen)
      return sampler(params, prompts, lengths, row_ids, key)

    batch = self.batch
    return self._compile(
      sample,
      self.trees["policy"],
      self.trees["frozen"],
      batch.prompts,
      batch.prompt_lengths,
      batch.prompt_lengths,  # row ids look like lengths
      self._key(),
    )

  def learn(self) -> Any:
    """Compiled: one update of policy and value, the state donated."""
    config = rl_config.get_config()
    loss = steps.reinforce_loss(
      self.backbone,
      temperature=config.sampling.temperature,
      beta=config.beta,
      value_coef=config.value_coef,
      reduction=config.reduction,
    )
    step = steps.make_train_step(
      loss, self.optimizer, microbatches=self.settings.microbatches
    )
    args = self.state, self.trees["frozen"], self.batch, self._key()
    return self._compile(step, *args, donate=True)

  def _key(self):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(
      key.shape, key.dtype, sharding=NamedSharding(self.mesh, P())
    )

  def _compile(self, fn, *args, donate=False):
    layout = None
    if donate:
      layout = jax.tree.map(lambda x: x.sharding, args[0]), None
    jitted = jax.jit(
      fn, donate_argnums=(0,) if donate else (), out_shardings=layout
    )
    with jax.set_mesh(self.mesh):
      return jitted.lower(*args).compile()


class Alone(Setup):
  """A policy of the base's own weights that is sampled from, no adapter."""

  def __init__(self, settings: Settings, mesh: jax.sharding.Mesh):
    super().__init__(settings, mesh, LoraSpec())
    # What the standard anchor is: a model in the compute dtype.
    self.trees = {"policy": self.trees["anchor"], "frozen": {}}

  def held(self) -> dict[str, int]:
    """The model and the batch."""
    prompts = self.batch.prompts, self.batch.prompt_lengths
    return {
      "policy": device_bytes(self.trees["policy"]),
      "batch": device_bytes(prompts),
    }

  def programs(self) -> dict[str, Callable[[], Any]]:
    """Sampling."""
    return {"sample": self.sample}


def make_setup(name: str, settings: Settings, mesh) -> Setup:
  """One of `SETUPS`."""
  if name == "alone":
    return Alone(settings, mesh)
  rank = settings.rank if name == "PERL" else 0
  return Setup(settings, mesh, LoraSpec(rank=rank))


def own_bytes(compiled: Any) -> int:
  """What a program needs beyond its arguments."""
  memory = compiled.memory_analysis()
  return int(
    memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )


def measure(
  setup: Setup, report: Callable[[str], None] = print
) -> dict[str, Any]:
  """{"held": by role, "own" and "phase": by program, "peak"}.

  A program that the compiler refuses is None, and so is the peak then; it is
  reported why.
  """
  held, own = setup.held(), {}
  for name, compile_ in setup.programs().items():
    started = time.perf_counter()
    try:
      own[name] = own_bytes(compile_())
    except jax.errors.JaxRuntimeError as error:
      own[name] = None
      report(f"{name}: {str(error)[:2000]}")
    report(f"{name}: {time.perf_counter() - started:.0f} s to compile")
  total = sum(held.values())
  phase = {k: None if v is None else total + v for k, v in own.items()}
  peak = None if None in phase.values() else max(phase.values())
  return {"held": held, "own": own, "phase": phase, "peak": peak}


def table(found: dict[str, dict[str, Any]]) -> str:
  """Markdown: a line a role and a program, a column a set-up, in MiB."""
  names = list(found)
  lines = [f"| MiB a device | {' | '.join(names)} |", "|---" * 4 + "|"]
  lines[1] = "|---" * (len(names) + 1) + "|"

  def line(title, values):
    cells = ["" if v is None else f"{v / 2**20:,.1f}" for v in values]
    lines.append(f"| {title} | {' | '.join(cells)} |")

  for kind, title in (
    ("held", "held: {}"),
    ("own", "{}: of its own"),
    ("phase", "{}: with all that is held"),
  ):
    rows = dict.fromkeys(k for f in found.values() for k in f[kind])
    for row in rows:
      line(title.format(row), [f[kind].get(row) for f in found.values()])
    if kind == "held":
      line("**held**", [sum(f["held"].values()) for f in found.values()])
  line("**peak**", [f["peak"] for f in found.values()])
  for name, ratio in ratios(found).items():
    lines.append(f"\n{name}: {ratio:.3f}")
  return "\n".join(lines)


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
  """PERL's peak over each of the others'."""
  mine = found.get("PERL", {}).get("peak")
  others = {k: f["peak"] for k, f in found.items() if k != "PERL"}
  return {f"PERL / {k}": mine / v for k, v in others.items() if mine and v}


def flags() -> argparse.Namespace:
  """The command line: the fields of `Settings`, set-ups, where to write."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for field in dataclasses.fields(Settings):
    parser.add_argument(
      f"--{field.name}", type=field.type, default=field.default
    )
  parser.add_argument("--setups", nargs="+", default=SETUPS, choices=SETUPS)
  parser.add_argument("--json", type=Path, default=None, help="a file to write")
  return parser.parse_args()


def main() -> None:
  """Compiles, prints, writes."""
  given = vars(flags())
  path, setups = given.pop("json"), given.pop("setups")
  settings = Settings(**given)
  mesh = make_mesh(settings)
  kind = mesh.devices.flat[0].device_kind
  print(f"{mesh.size} x {kind}, JAX {jax.__version__}, {settings}", flush=True)
  found = {}
  for name in setups:
    found[name] = measure(
      make_setup(name, settings, mesh),
      lambda text, name=name: print(f"{name}: {text}", flush=True),
    )
  print("\n" + table(found))
  if path:
    result = {"settings": dataclasses.asdict(settings), **found}
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_json(path, result | {"ratios": ratios(found)})


if __name__ == "__main__":
  main()

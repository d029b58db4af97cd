"""The programs that a stage runs.

Each stage is put together from the very functions that its task calls, so that
what is compiled for a plan is what training compiles, for arrays that are only
described.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from perl_jax import sampling, sharding, steps
from perl_jax.data.batches import demonstrations, labelled
from perl_jax.models import transformer
from perl_jax.models.config import ModelConfig
from perl_jax.planning import estimate
from perl_jax.tasks import dpo, reward, sft
from perl_jax.tasks.dry_run.abstract import Described
from perl_jax.tasks.rollouts import build, rewards
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import inputs
from perl_jax.tasks.training.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function of a step of training.

  Attributes:
    name: "sample", "score", "learn", ...
    function: As the task has it.
    args: Described arrays to call it with.
    uses: Which of the stage's `held` trees are among them.
    runs: How often a step calls it.
  """

  name: str
  function: Compiled
  args: tuple[Any, ...]
  uses: tuple[str, ...]
  runs: int = 1


@dataclasses.dataclass(frozen=True)
class Stage:
  """What a stage holds all along, and what it runs.

  Attributes:
    name: Of the task.
    mesh: That the trees lie on.
    held: Trees that are in memory whichever program runs, by what they are:
      "base", a role, "optimizer".
    cache: KV cache of the sampling program; None without one.
    make_programs: Gives the programs; see `programs`.
  """

  name: str
  mesh: Mesh
  held: Mapping[str, Any]
  make_programs: Callable[[], Sequence[Program]]
  cache: Any = None

  def programs(self) -> Sequence[Program]:
    """What a step of training runs, in its order."""
    with jax.set_mesh(self.mesh):
      return self.make_programs()

  def held_bytes(self) -> dict[str, int]:
    """Bytes on a device by what they are for."""
    return {k: estimate.device_bytes(tree) for k, tree in self.held.items()}

  def cache_bytes(self) -> int:
    """Bytes on a device of the KV cache; see `transformer.init_cache`."""
    if self.cache is None:
      return 0
    keys = self.cache.keys
    with jax.set_mesh(self.mesh):
      spec = sharding.fitting(
        P(None, sharding.BATCH_AXES, None, sharding.HEAD_AXIS), keys.shape[:4]
      )
    where = NamedSharding(self.mesh, spec)
    laid_out = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=where)
    return 2 * estimate.device_bytes(laid_out)


def make_stage(
  config: shared.Config,
  model: ModelConfig,
  mesh: Mesh,
  *,
  reward_members: int = 1,
) -> Stage:
  """The programs of the task that a config names.

  Args:
    config: Of a training stage; batches are as full and as long as it allows.
    model: Of the base.
    mesh: To lay it out on; its devices need not be here.
    reward_members: Reward models in the ensemble that RL is given. They stand
      on the policy's base with LoRA, and are whole models with full tuning;
      there is none where `config.reward.fn` names a function.

  Raises:
    ValueError: No training stage, or a config that the stage itself refuses.
  """
  made = {"sft": _sft, "reward": _reward, "rl": _rl, "dpo": _dpo}
  if config.task not in made:
    raise ValueError(
      f"There is no plan for task {config.task!r}: choose one of"
      f" {', '.join(made)}."
    )
  with jax.set_mesh(mesh):
    described = Described(config, model, mesh, reward_members)
    return made[config.task](described)


def _held(state: steps.TrainState, frozen: Any, role: str) -> dict[str, Any]:
  return {
    "base": frozen,
    role: state.trainable,
    "optimizer": state.opt_state,
  }


def _learn(made, step, state, frozen, batch, held) -> Stage:
  """A stage of one program."""

  def programs():
    args = state, frozen, batch, made.key()
    return [Program("learn", step, args, tuple(held))]

  return Stage(made.config.task, made.mesh, held, programs)


def _sft(made: Described) -> Stage:
  config, optimizer = made.config, shared.make_optimizer(made.config)
  trainable, frozen = made.role()
  state = made.state(trainable, optimizer, steps.init_state)
  length = config.data.max_len
  batch = demonstrations.TargetBatch(
    *(made.array(length) for _ in range(3)), made.array(length, dtype=jnp.bool_)
  )
  step = sft.make_train_step(config, made.backbone, optimizer, length)
  held = _held(state, frozen, "policy")
  return _learn(made, step, state, frozen, batch, held)


def _reward(made: Described) -> Stage:
  config, optimizer = made.config, shared.make_optimizer(made.config)
  trainable, frozen = made.role(config.head, config.ensemble)
  init = steps.init_state if config.ensemble == 1 else steps.init_ensemble
  state = made.state(trainable, optimizer, init)
  batch = made.pairs()
  if inputs.require_loss(config.loss) == "labelled":
    batch = labelled.LabelledBatch(
      made.array(config.data.max_len),
      made.array(),
      made.array(),
      made.array(dtype=jnp.float32),
      made.array(dtype=jnp.bool_),
      made.array(),
    )
  if config.ensemble > 1 and config.member_share < 1:
    rows = round(config.member_share * config.batch_size)
    batch = made.rows(
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
          (rows, config.ensemble, *x.shape[1:]), x.dtype
        ),
        batch,
      )
    )
  step = reward.make_train_step(
    config, made.backbone, optimizer, config.data.response_len
  )
  held = _held(state, frozen, "reward")
  return _learn(made, step, state, frozen, batch, held)


def _dpo(made: Described) -> Stage:
  config, optimizer = made.config, shared.make_optimizer(made.config)
  trainable, frozen = made.role()
  state = made.state(trainable, optimizer, steps.init_state)
  logprobs, step = dpo.make_functions(
    config, made.backbone, optimizer, config.data.response_len
  )
  held = _held(state, frozen, "policy") | {"anchor": trainable}

  def programs():
    batch = made.pairs()
    told = made.rows(logprobs.shapes(trainable, frozen, batch))
    pairs = steps.AnchoredPairs(batch, *told)
    return [
      Program(
        "score", logprobs, (trainable, frozen, batch), ("base", "anchor")
      ),
      Program(
        "learn",
        step,
        (state, frozen, pairs, made.key()),
        ("base", "policy", "optimizer"),
      ),
    ]

  return Stage("dpo", made.mesh, held, programs)


def _rl(made: Described) -> Stage:
  config = made.config
  estimator = rl_settings.estimator_of(config)
  optimizer = rl_settings.make_optimizer(config)
  policy, frozen = made.role()
  trainable = policy
  if estimator.uses_value:
    trainable = {"policy": policy, "value": made.role("scalar")[0]}
  state = made.state(trainable, optimizer, steps.init_state, beta=config.beta)
  held = {
    "base": frozen,
    "policy": policy,
    "anchor": policy,
    "optimizer": state.opt_state,
  }
  if estimator.uses_value:
    held["value"] = trainable["value"]
  members, model = made.reward_members, None
  if not config.reward.fn:
    own, under = made.role("scalar", members)
    model = rewards.Model(made.backbone, own, under, members, True)
    held["reward"] = own
  spec = sampling_spec(config)

  def programs():
    engine = engine_lib.Engine(
      made.backbone, spec, model.backbone if model else None, members
    )
    functions = build.make_functions(
      config, estimator, optimizer, engine, model, on_base=bool(frozen)
    )
    return _iteration(made, estimator, functions, state, frozen, held)

  cache = _cache(made, rl_settings.rollout_spec(config, spec))
  return Stage("rl", made.mesh, held, programs, cache)


def sampling_spec(config: shared.Config) -> sampling.SamplingSpec:
  """How RL draws responses, before groups and slots; the stop is any token."""
  return sampling.SamplingSpec(
    response_len=config.data.response_len,
    stop_ids=(0,),
    **config.sampling.to_dict(),
  )


def _cache(made: Described, spec: sampling.SamplingSpec) -> Any:
  """The KV cache of a rollout."""
  config, prompts = made.config, made.config.batch_size
  if 0 < spec.slots < prompts * spec.group:
    prompts = spec.slots // spec.group
  slots = config.data.prompt_len + spec.group * spec.response_len
  return jax.eval_shape(
    lambda: transformer.init_cache(made.backbone.config, prompts, slots)
  )


def _iteration(made, estimator, functions, state, frozen, held):
  """sample, score, prepare, learn; as `iteration.Iteration` calls them."""
  config, group = made.config, estimator.group
  prompts = made.array(config.data.prompt_len), made.array()
  policy = held["policy"]
  args = policy, frozen, *prompts, made.array(), made.key()
  programs = [Program("sample", functions.sample, args, ("base", "policy"))]
  samples = made.rows(functions.sample.shapes(*args))
  shape = config.batch_size, group, config.data.response_len
  responses, mask, sampled = made.rows(
    tuple(
      jax.ShapeDtypeStruct(shape, x.dtype)
      for x in (samples.tokens, samples.mask, samples.logprobs)
    )
  )
  names = ("anchor", *(("policy",) if estimator.needs_measures else ()))
  if estimator.needs_measures and estimator.uses_value:
    names += ("value",)
  names += ("reward",) if "reward" in held else ()
  trees = {name: held[name] for name in names}
  args = trees, {"": frozen}, *prompts, responses, mask
  programs.append(Program("score", functions.score, args, ("base", *names)))
  scores = made.rows(functions.score.shapes(*args))
  experience = steps.Experience(
    *prompts,
    responses,
    mask,
    sampled_logprobs=sampled,
    anchor_logprobs=scores["anchor"],
    rewards=made.array(group, dtype=jnp.float32),
    beta=made.array(dtype=jnp.float32),
    policy_logprobs=scores.get("policy"),
    values=scores.get("value"),
  )
  if functions.prepare is not None:
    programs.append(Program("prepare", functions.prepare, (experience,), ()))
    experience = made.rows(functions.prepare.shapes(experience))
  part = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (x.shape[0] // estimator.minibatches, *x.shape[1:]), x.dtype
    ),
    experience,
  )
  exact = estimator.kl == "exact"
  standing = steps.Standing(frozen, held["anchor"] if exact else {})
  uses = ("base", "policy", "optimizer")
  uses += ("value",) if estimator.uses_value else ()
  uses += ("anchor",) if exact else ()
  programs.append(
    Program(
      "learn",
      functions.learn,
      (state, standing, made.rows(part), made.key()),
      uses,
      estimator.updates,
    )
  )
  return programs

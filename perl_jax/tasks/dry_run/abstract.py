"""A stage's trees as abstract arrays: shapes, dtypes, and where they would be.

Nothing is allocated: a tree is of `jax.ShapeDtypeStruct`s, laid out as the task
lays out its arrays.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from perl_jax import params as params_lib
from perl_jax import roles, sharding, steps
from perl_jax.data.batches import packed_responses, row_plans
from perl_jax.data.batches import prompts as prompts_lib
from perl_jax.interop.storage import Storage
from perl_jax.models import quantization
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.dry_run.programs import Program, StagePrograms
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import members as members_lib
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, together
from perl_jax.tasks.training.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class AbstractStage:
  """What a stage's programs are made from: abstract arrays on a mesh.

  Attributes:
    config: Config of the stage.
    model: Shapes and switches of the transformer.
    mesh: Mesh that the arrays are laid out on; its devices need not be here.
    base: The frozen base in its storage dtype.
    reward_members: Number of reward models in RL's ensemble.
    max_targets: Most targets of a row, where the data are known; None takes
      what the config allows.
  """

  config: shared.Config
  model: ModelConfig
  mesh: Mesh
  base: Any
  reward_members: int = 1
  max_targets: int | None = None

  def member(self) -> together.Member:
    """A member of the run, whose step is that of all; see `Member.step`."""
    if not members_lib.asked(self.config):
      return together.ALONE
    configs = members_lib.configs_of(self.config)
    values = members_lib.values_of(configs)
    return together.Member(0, together.Shared(len(configs), values))

  @property
  def count(self) -> int:
    """Number of members."""
    common = self.member().shared
    return 1 if common is None else common.size

  def role(self, head: str = "", members: int = 1) -> roles.Role:
    """A role as `trainable.trainable_role` makes it from a fresh base.

    Roles on the base share it.
    """
    config, lora = self.config, shared.lora_spec(self.config)

    def make(base):
      bare = roles.Role(roles.Backbone(self.model, LoraSpec()), {}, base)
      source = {"dtype": config.base_dtype}
      made = trainable_lib.trainable_role(
        Start(bare, source, fingerprint="", tokenizer=Path()),
        lora=lora,
        tuning=config.tuning,
        seed=config.seed,
        head=head,
        members=members,
      )
      return made.trainable

    trainable = self.laid_out(jax.eval_shape(make, self.base))
    frozen = {} if config.tuning == "full" else self.base
    return roles.Role(
      roles.Backbone(self.model, lora), trainable, frozen, members
    )

  def laid_out(self, tree: Any) -> Any:
    """A tree of parameters, laid out by the sharding rules."""
    return _with_shardings(tree, sharding.shardings(self.mesh, tree))

  def rows(self, tree: Any) -> Any:
    """A tree of batches, split by rows; a scalar is on every device."""

    def put(x):
      spec = P(sharding.BATCH_AXES) if x.ndim else P()
      where = NamedSharding(self.mesh, spec)
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(put, tree)

  def array(self, *shape: int, dtype: Any = jnp.int32) -> Any:
    """An array `[B, *shape]`, split by rows."""
    shape = (self.config.batch_size, *shape)
    return self.rows(jax.ShapeDtypeStruct(shape, dtype))

  def key(self) -> Any:
    """A key of the run."""
    return jax.eval_shape(lambda: jax.random.key(0))

  def state(
    self,
    trainable: Any,
    optimizer: shared.Optimizer,
    members: int = 1,
    **controls: float,
  ) -> steps.TrainState:
    """The state before the first step; see `begin.Prepared.state`."""
    init = steps.init_state if members == 1 else steps.init_ensemble
    state = jax.eval_shape(
      lambda tree: init(tree, optimizer.transformation, **controls), trainable
    )
    return self.laid_out(state)

  def prompts(self) -> Any:
    """A batch of prompts of the greatest length."""
    length = self.config.data.prompt_len
    return self.host_batch(
      prompts_lib.collate_prompts([], length, self.config.batch_size)
    )

  def responses(
    self, kind: str, *, targets: bool, share: float = 1.0, members: int = 0
  ) -> Any:
    """A batch of items that are all as long as the config allows.

    Args:
      kind: A key of `batches.KINDS`, of records with responses.
      targets: Whether the probabilities of responses are asked for.
      share: Share of the rows of a batch that is in it.
      members: Number of members that have rows of their own; 0 for none.
    """
    config, data = self.config, self.config.data
    packing = batching.Packing.of(self.model, targets=targets)
    layout = packing.layout(kind, 0, data.pad_to_multiple_of)
    response = self.max_targets or data.response_len
    more = layout.responses - 1
    item = data.max_len + more * (response if layout.shared else data.max_len)
    items = round(share * config.batch_size)
    multiple = config.microbatches * sharding.shards(sharding.BATCH_AXES)
    rows = row_plans.fewest_rows(items, item, multiple)
    most = -(-items // rows)
    shapes = layout.shape(
      rows,
      row_plans.most_in_a_row(items, rows),
      most * item,
      most * layout.responses * response,
    )
    own = (members,) if members else ()
    return self.rows(
      packed_responses.PackedResponses(
        **{
          name: jax.ShapeDtypeStruct((rows, *own, *shape[1:]), dtype)
          for name, (shape, dtype) in shapes.items()
        }
      )
    )

  def host_batch(self, batch: Any) -> Any:
    """A batch like one on the host, split by rows."""
    return self.rows(
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    )

  def one_step(
    self,
    name: str,
    role: roles.Role,
    optimizer: shared.Optimizer,
    step: Compiled,
    batch: Any,
  ) -> StagePrograms:
    """A stage whose one program is `step(state, frozen, batch, key)`."""
    state = self.state({name: role.trainable}, optimizer, role.members)
    held = self.of_all(held_by(state, role.frozen))

    def programs():
      args = self.step_args(state, role.frozen, batch)
      return [Program("learn", step, args, tuple(held))]

    return StagePrograms(self.config.task, self.mesh, held, programs)

  def of_all(self, held: Mapping[str, Any]) -> dict[str, Any]:
    """What all members of a run hold together; they share what is "base"."""
    common = self.member().shared
    if common is None:
      return dict(held)
    return {
      k: v if k == "base" else (v,) * common.size for k, v in held.items()
    }

  def uses(self, *names: str) -> tuple[str, ...]:
    """Of the trees that are held, those that a program of one member reads.

    Where there are several, each tree but the base is that of all, and the
    program's own is counted beside it.
    """
    return names if self.count == 1 else ("base",)

  def step_args(self, state: Any, frozen: Any, batch: Any) -> tuple[Any, ...]:
    """Arguments of a training step, of one member or of all."""
    args, common = (state, frozen, batch, self.key()), self.member().shared
    if common is None:
      return args
    states, _, batches, keys = ((arg,) * common.size for arg in args)
    values = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(self.mesh, P())
      ),
      dict(common.values),
    )
    return states, frozen, batches, keys, values


def held_by(state: steps.TrainState, frozen: Any) -> dict[str, Any]:
  """What a stage holds of its base, its state's roles and its optimiser."""
  held = {"base": frozen} | state.trainable
  return held | {"optimizer": state.opt_state}


def make_stage(
  programs: Callable[[AbstractStage], StagePrograms],
  config: shared.Config,
  model: ModelConfig,
  mesh: Mesh,
  *,
  reward_members: int = 1,
  max_targets: int | None = None,
) -> StagePrograms:
  """The programs of a stage.

  Args:
    programs: The command's own function of that name.
    config: Config of the stage; batches are as full and as long as it allows.
    model: Shapes and switches of the transformer.
    mesh: Mesh to lay the stage out on; its devices need not be here.
    reward_members: Number of reward models in the ensemble that RL is given.
      They run on the policy's base with LoRA, and are whole models with full
      tuning; there is none where `config.reward.fn` names a function.
    max_targets: Most targets of a row, where the data are known.

  Raises:
    ValueError: The stage refuses the config.
  """
  with jax.set_mesh(mesh):
    base = abstract_base(mesh, model, config.base_dtype)
    return programs(
      AbstractStage(config, model, mesh, base, reward_members, max_targets)
    )


def abstract_base(mesh: Mesh, model: ModelConfig, dtype: str) -> Any:
  """The base in its storage dtype, as `initial.model.stored` makes it."""
  storage = Storage(dtype)

  def put(path, leaf):
    if dtype in quantization.QUANTIZED and path.endswith("/kernel"):
      return quantization.quantize(leaf, dtype)
    return leaf.astype(storage.read_dtype)

  def make():
    base = roles.init_base(jax.random.key(0), model)
    leaves = params_lib.flatten(base)
    return params_lib.unflatten({p: put(p, x) for p, x in leaves.items()})

  tree = jax.eval_shape(make)
  return _with_shardings(tree, sharding.shardings(mesh, tree))


def _with_shardings(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    tree,
    shardings,
  )

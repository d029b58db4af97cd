"""A stage's trees as descriptions: shapes, dtypes, and where they would lie.

Nothing is allocated: a tree is of `jax.ShapeDtypeStruct`s, laid out as the task
lays out its arrays.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.data.batches import preferences
from perl_jax.models import quantization
from perl_jax.models.config import ModelConfig
from perl_jax.tasks.initial import model as model_lib
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.settings import shared


class Described:
  """Trees of one stage.

  Attributes:
    config: Of the stage.
    mesh: That it lies on.
    backbone: Model and adapter shape.
    base: In the dtype that it is kept in.
    reward_members: Reward models that RL is given.
  """

  def __init__(
    self,
    config: shared.Config,
    model: ModelConfig,
    mesh: Mesh,
    reward_members: int,
  ):
    self.config, self.mesh = config, mesh
    self.reward_members = reward_members
    self.lora = shared.lora_spec(config)
    self.backbone = roles.Backbone(model, self.lora)
    self.base = described_base(mesh, model, config.base_dtype)

  def role(self, head: str = "", members: int = 1) -> tuple[Any, Any]:
    """(trainable, frozen); `start.ensemble_of` from a fresh base."""
    config, model = self.config, self.backbone.config

    def make(base):
      return trainable_lib.ensemble_of(
        model_lib.Start(
          config=model,
          base=base,
          record={"dtype": config.base_dtype},
          fingerprint="",
          adapter=None,
          lora=None,
          head=None,
          tokenizer=Path(),
        ),
        members=members,
        lora=self.lora,
        tuning=config.tuning,
        seed=config.seed,
        head=head,
      )

    return self.laid_out(jax.eval_shape(make, self.base))

  def laid_out(self, tree: Any) -> Any:
    """Described as the path rules place it."""
    return _with_shardings(tree, sharding.shardings(self.mesh, tree))

  def rows(self, tree: Any) -> Any:
    """Described as a batch is placed; a scalar is everywhere."""

    def put(x):
      spec = P(sharding.BATCH_AXES) if x.ndim else P()
      where = NamedSharding(self.mesh, spec)
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(put, tree)

  def array(self, *shape: int, dtype: Any = jnp.int32) -> Any:
    """`[B, *shape]`, split over the batch axes."""
    shape = (self.config.batch_size, *shape)
    return self.rows(jax.ShapeDtypeStruct(shape, dtype))

  def key(self) -> Any:
    """A key of the run, where a task has it."""
    return jax.eval_shape(lambda: jax.random.key(0))

  def state(self, trainable: Any, optimizer: Any, init: Any, **controls) -> Any:
    """`init(trainable, optimizer)`, laid out."""
    state = jax.eval_shape(lambda t: init(t, optimizer, **controls), trainable)
    return self.laid_out(state)

  def pairs(self) -> preferences.PreferenceBatch:
    """Pairs of the greatest length."""
    length, array = self.config.data.max_len, self.array
    return preferences.PreferenceBatch(
      array(length),
      array(),
      array(length),
      array(),
      array(),
      array(dtype=jnp.bool_),
      array(),
    )


def described_base(mesh: Mesh, model: ModelConfig, dtype: str) -> Any:
  """The base in the dtype that it is kept in; `start.stored` of shapes."""
  storage = quantization.Storage(dtype)

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

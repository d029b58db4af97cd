"""What a response is worth: a reward model, an ensemble, a function, or both.

  total  = combine(scores of the members) + fn_weight * fn
  learnt = total - shift - unstopped_penalty * [no stop token]

One object says so to the training iterations and to the judge, so that what is
reported is what is learnt from, before the shift and the penalty.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perl_jax import hosts, roles, scoring, sharding
from perl_jax import params as params_lib
from perl_jax.data import records
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.objectives import ensembles
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.rollouts import reward_function
from perl_jax.tasks.settings import shared

# What a total is made of, and how far the members are apart.
PARTS = ("reward", "reward_model", "reward_fn", "reward_spread")


class Measured(NamedTuple):
  """What was said of a batch of responses, as it was said.

  Attributes:
    model: Score of the reward model, `[B]` float32; of an ensemble, `[members,
      B]`; None without one.
    fn: What the function returned, `[B]` float32, or None.
  """

  model: Any
  fn: Any

  def of(self, row: int) -> "Measured":
    """What was said of one response; on the host."""
    return jax.tree.map(lambda x: x[..., row], self)


@dataclasses.dataclass(frozen=True)
class Model:
  """A reward model, or several that are stacked, on the mesh.

  Attributes:
    backbone: Model and adapter shape.
    trainable: Adapter and head, or the whole tree; `[members, ...]` of several.
    frozen: What it stands on.
    members: How many there are.
    shares_base: Whether `frozen` is what the policy stands on.
  """

  backbone: roles.Backbone
  trainable: params_lib.Params
  frozen: params_lib.Params
  members: int
  shares_base: bool = False

  def shares_pass(self, backbone: roles.Backbone) -> bool:
    """Whether its adapters go through the base beside those of a backbone."""
    return self.shares_base and backbone.lora.fits(self.backbone.lora)


def place_model(
  mesh: Mesh, cast: initial_roles.Cast | None, base: params_lib.Params
) -> Model | None:
  """A cast reward model on the mesh, where `base`, the policy's, lies already.

  None if there is none.
  """
  if cast is None:
    return None
  return Model(
    cast.backbone,
    sharding.place(mesh, cast.trainable),
    base
    if cast.shares_base
    else sharding.place(mesh, cast.own_base, share=True),
    cast.members,
    cast.shares_base,
  )


class Rewarder:
  """The reward of a run; see the module.

  Attributes:
    model: Whose scores count, or None.
    members: Models in the ensemble, 1 for a single one, 0 without.
    shift: Taken off every reward that is learnt from.
  """

  def __init__(
    self,
    model: Model | None,
    score: Callable[..., jax.Array] | None,
    function: reward_function.RewardFunction | None,
    *,
    fn_weight: float = 1.0,
    combine: str = "mean",
    std_weight: float = 1.0,
    unstopped_penalty: float = 0.0,
    tokenization: tokenization_lib.Tokenization | None = None,
    mesh: Mesh | None = None,
  ):
    """Puts the parts together; at least one of model and function is given.

    Args:
      model: Whose scores count, or None.
      score: `rollout.make_rewards` of its backbone, or None.
      function: Of the user, or None.
      fn_weight: Of the function.
      combine: How the members' scores become one; `ensembles.combine_scores`.
      std_weight: Of the deviation in "mean_minus_std".
      unstopped_penalty: For a response that ran out of room.
      tokenization: Gives the function its text.
      mesh: Where its numbers go.
    """
    self.members = 0 if model is None else model.members
    self.shift = 0.0
    self.model, self._score = model, score
    self._function, self._fn_weight = function, fn_weight
    self._combine, self._std_weight = combine, std_weight
    self._penalty = unstopped_penalty
    self._tokenization, self._mesh = tokenization, mesh
    self._centres: jax.Array | None = None

  def measure(
    self,
    args: tuple[jax.Array, ...],
    index: np.ndarray,
    rows: Sequence[records.Prompt],
    *,
    scores: jax.Array | None = None,
  ) -> Measured:
    """Asks the model and the function, on the devices and on the host.

    Args:
      args: Prompts, their lengths, responses and response mask, on the mesh.
      index: Row of each response's prompt, of this process, -1 where there is
        none.
      rows: What `index` points into.
      scores: What the model said of them, if it was asked already.
    """
    model, fn = scores, None
    if self.model is not None and scores is None:
      model = self._score(self.model.trainable, self.model.frozen, *args)
    if self._function is not None:
      fn = self._ask(args, index, rows)
    return Measured(model, fn)

  def _ask(self, args, index, rows) -> jax.Array:
    responses, mask = sharding.local_rows(self._mesh, args[2:])
    asked = np.flatnonzero(index >= 0)
    found = np.zeros(len(index), np.float32)
    if asked.size:
      found[asked] = self._function(
        [rows[int(index[i])] for i in asked],
        [self._tokenization.decode(responses[i][mask[i]]) for i in asked],
      )
    return sharding.place_batch(self._mesh, found)

  def parts(self, measured: Measured) -> dict[str, jax.Array]:
    """`[B]` float32 arrays by the names `PARTS`.

    `reward` is the total; `reward_model` (combined) and `reward_fn` (weighted)
    are there if it has both; `reward_spread` is the standard deviation over the
    members of an ensemble.
    """
    model, found = measured.model, {}
    if self.members > 1:
      centres = self._centres
      model = ensembles.combine_scores(
        measured.model,
        how=self._combine,
        std_weight=self._std_weight,
        centres=centres,
      )
      found["reward_spread"] = spread(measured.model, centres)
    if measured.fn is None:
      return {"reward": model} | found
    fn = self._fn_weight * measured.fn
    if model is None:
      return {"reward": fn}
    return {
      "reward": model + fn,
      "reward_model": model,
      "reward_fn": fn,
    } | found

  def learnt(self, total: jax.Array, stopped: jax.Array) -> jax.Array:
    """Total, less the shift, less the penalty, `[B]` float32."""
    return scoring.penalise_unstopped(
      total - jnp.float32(self.shift), stopped, self._penalty
    )

  def settle(self, measured: Sequence[Measured]) -> list[dict[str, float]]:
    """`parts` of single responses, `measured` without the axis of the batch.

    The first call, which is about the anchor's responses, also says what each
    member of an ensemble scores on average: its centre from then on.
    """

    def stack(values, axis):
      return None if values[0] is None else np.stack(values, axis=axis)

    models, fns = zip(*measured)
    whole = Measured(stack(models, -1), stack(fns, 0))
    if self.members > 1 and self._centres is None:
      self._centres = jnp.mean(jnp.asarray(whole.model), axis=1)
    parts = hosts.to_host(self.parts(whole))
    return [
      {name: float(values[i]) for name, values in parts.items()}
      for i in range(len(measured))
    ]


def spread(scores: jax.Array, centres: jax.Array | None) -> jax.Array:
  """Standard deviation over the members of their centred scores, `[B]`."""
  offsets = 0.0 if centres is None else centres[:, None]
  return jnp.std(jnp.asarray(scores) - offsets, axis=0)


def function_of(
  config: shared.Config, rows: Sequence[records.Prompt]
) -> reward_function.RewardFunction | None:
  """The function of `config.reward.fn`, tried on a few rows; None without."""
  if not config.reward.fn:
    return None
  return reward_function.load_and_try(config.reward.fn, rows)

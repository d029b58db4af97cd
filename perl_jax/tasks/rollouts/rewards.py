"""The reward of a response: a reward model, an ensemble, functions, or a sum.

  total    = combine(scores of the members) + fn_weight * fn
  fn       = sum_i weight_i fn_i
  training = total - shift - unstopped_penalty * [no stop token]

Training iterations and evaluations compute it with one object, so that what is
reported is what is trained on, before the shift and the penalty.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perl_jax import hosts, roles, scoring, sharding
from perl_jax.data import records
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.objectives import ensembles
from perl_jax.tasks.rollouts import reward_function
from perl_jax.tasks.rollouts.engine import Engine
from perl_jax.tasks.settings import reward_functions, shared

# Metrics of a reward: the total, its parts, and the spread of an ensemble. Each
# of several functions has its own, `OF_FUNCTION` and its label.
PARTS = ("reward", "reward_model", "reward_fn", "reward_spread")
OF_FUNCTION = "reward_fn_"


def part_names(names: Iterable[str]) -> list[str]:
  """Those that are metrics of a reward, in the order of `PARTS`."""
  own = [name for name in names if name.startswith(OF_FUNCTION)]
  return [name for name in PARTS if name in names] + own


class Weighted(NamedTuple):
  """A function of the sum, with its weight.

  Attributes:
    label: What its metric is called, `reward_fn_<label>`.
    weight: Weight of the function in the sum.
    function: The function.
  """

  label: str
  weight: float
  function: reward_function.RewardFunction


class Measured(NamedTuple):
  """Raw scores of a batch of responses.

  Attributes:
    model: Scores of the reward model, `[B]` float32, or of an ensemble,
      `[members, B]`; None without one.
    fn: Results of the reward function, `[B]` float32, or of several,
      `[functions, B]`; None without one.
  """

  model: Any
  fn: Any

  def of(self, row: int) -> "Measured":
    """The raw scores of one response, of arrays on the host."""
    return jax.tree.map(lambda x: x[..., row], self)

  @classmethod
  def read(cls, values: Sequence[Any]) -> "Measured":
    """The scores of one response from (model, fn), as JSON has them too."""
    return cls(
      *(None if v is None else np.asarray(v, np.float32) for v in values)
    )


class Rewarder:
  """Computes the reward of a run; see the module for the formula.

  Attributes:
    model: The reward model on the mesh, or None.
    members: Number of models in the ensemble: 1 for a single one, 0 without.
    shift: Subtracted from every reward that is trained on.
    centres: Mean of each member of an ensemble over the anchor's responses,
      `[members]`; None before the first `finalise`.
  """

  def __init__(
    self,
    model: roles.Role | None,
    score: Callable[..., jax.Array] | None,
    function: reward_function.RewardFunction | Sequence[Weighted] | None,
    *,
    fn_weight: float = 1.0,
    combine: str = "mean",
    std_weight: float = 1.0,
    unstopped_penalty: float = 0.0,
    tokenization: tokenization_lib.Tokenization | None = None,
    mesh: Mesh | None = None,
  ):
    """Binds the parts; at least one of model and function is given.

    Args:
      model: The reward model on the mesh, or None.
      score: `scoring.make_rewards` of its backbone, or None.
      function: The user's reward function or functions, or None.
      fn_weight: Weight of the functions beside the model.
      combine: How the members' scores become one; `ensembles.combine_scores`.
      std_weight: Weight of the deviation in "mean_minus_std".
      unstopped_penalty: Subtracted from the reward of a response that reached
        the maximum length without a stop token.
      tokenization: Decodes responses for the function.
      mesh: Mesh that the function's results are placed on.
    """
    self.members = 0 if model is None else model.members
    self.shift = 0.0
    self.model, self._score = model, score
    if isinstance(function, reward_function.RewardFunction):
      function = (Weighted("", 1.0, function),)
    self._functions, self._fn_weight = tuple(function or ()), fn_weight
    self._combine, self._std_weight = combine, std_weight
    self._penalty = unstopped_penalty
    self._tokenization, self._mesh = tokenization, mesh
    self.centres: jax.Array | None = None

  def measure(
    self,
    args: tuple[jax.Array, ...],
    index: np.ndarray,
    rows: Sequence[records.Prompt],
    *,
    scores: jax.Array | None = None,
  ) -> Measured:
    """Raw scores: the model runs on the devices, the function on the host.

    Args:
      args: Prompts, their lengths, responses and response mask, on the mesh.
      index: Record of each response's prompt, for the responses of this
        process; -1 in rows of padding.
      rows: Records that `index` points into.
      scores: Scores of the model, if they have been computed already.
    """
    model, fn = scores, None
    if self.model is not None and scores is None:
      model = self._score(self.model.trainable, self.model.frozen, *args)
    if self._functions:
      fn = self._call(args, index, rows)
    return Measured(model, fn)

  def _call(self, args, index, rows) -> jax.Array:
    texts, found = {}, []
    for _, _, function in self._functions:
      whole = function.on_primary
      if whole not in texts:
        texts[whole] = self._texts(args, index, rows, whole)
      found.append(self._results(function, *texts[whole], rows))
    return found[0] if len(found) == 1 else jnp.stack(found)

  def _texts(self, args, index, rows, whole) -> tuple[np.ndarray, list[str]]:
    """(index, texts of its rows that are no padding), of all processes or one.

    `whole` gives the rows of all processes, in their order.
    """
    if whole:
      index = hosts.to_host(sharding.place_batch(self._mesh, index))
      responses, mask = hosts.to_host(tuple(args[2:]))
    else:
      responses, mask = sharding.local_rows(self._mesh, args[2:])
    real = np.flatnonzero(index >= 0)
    return index, [
      self._tokenization.decode(
        responses[i][mask[i]], rows[int(index[i])].prompt
      )
      for i in real
    ]

  def _results(self, function, index, texts, rows) -> jax.Array:
    """What a function returns, `[B]` on the mesh, 0 in rows of padding.

    An error of one process is one of all, so that all can save and end.
    """
    found, failed = np.zeros(len(index), np.float32), None
    real = np.flatnonzero(index >= 0)
    if real.size and (hosts.is_primary() or not function.on_primary):
      try:
        found[real] = function([rows[int(index[i])] for i in real], texts)
      except reward_function.RewardError as error:
        failed = error
    message = hosts.first_message("" if failed is None else str(failed))
    if message:
      raise failed or reward_function.RewardError(message)
    if function.on_primary:
      return sharding.place_whole(self._mesh, hosts.from_primary(found))
    return sharding.place_batch(self._mesh, found)

  def parts(self, measured: Measured) -> dict[str, jax.Array]:
    """The reward and its parts by the names `PARTS`, `[B]` float32 each.

    `reward` is the total. If there are both a model and a function,
    `reward_model` (combined) and `reward_fn` (weighted) are the terms of the
    sum. `reward_spread` is the standard deviation over an ensemble's members.
    Of several functions, `reward_fn_<label>` is what each returned, without
    its weight.
    """
    model, found = measured.model, {}
    if self.members > 1:
      centres = self.centres
      model = ensembles.combine_scores(
        measured.model,
        how=self._combine,
        std_weight=self._std_weight,
        centres=centres,
      )
      found["reward_spread"] = spread(measured.model, centres)
    if measured.fn is None:
      return {"reward": model} | found
    values = [measured.fn]
    if len(self._functions) > 1:
      # An array that is spread over hosts can be indexed, and not iterated.
      values = [measured.fn[i] for i in range(len(self._functions))]
      found |= {
        f"{OF_FUNCTION}{term.label}": value
        for term, value in zip(self._functions, values, strict=True)
      }
    fn = self._fn_weight * sum(
      term.weight * value
      for term, value in zip(self._functions, values, strict=True)
    )
    if model is None:
      return {"reward": fn} | found
    return {
      "reward": model + fn,
      "reward_model": model,
      "reward_fn": fn,
    } | found

  def training_reward(self, total: jax.Array, stopped: jax.Array) -> jax.Array:
    """The reward that is trained on, `[B]` float32; see the module.

    Args:
      total: Total rewards, `[B]` float32.
      stopped: Whether each response has a stop token, `[B]` bool.
    """
    return scoring.penalise_unstopped(
      total - jnp.float32(self.shift), stopped, self._penalty
    )

  def finalise(self, measured: Sequence[Measured]) -> list[dict[str, float]]:
    """`parts` of each response, from raw scores on the host.

    The first call has to be with the anchor's responses: each member of an
    ensemble is centred at its mean over them from then on.

    Args:
      measured: Raw scores of single responses; see `Measured.of`.
    """

    def stack(values, axis):
      return None if values[0] is None else np.stack(values, axis=axis)

    models, fns = zip(*measured)
    whole = Measured(stack(models, -1), stack(fns, -1))
    if self.members > 1 and self.centres is None:
      self.centres = jnp.mean(jnp.asarray(whole.model), axis=1)
    parts = hosts.to_host(self.parts(whole))
    return [
      {name: float(values[i]) for name, values in parts.items()}
      for i in range(len(measured))
    ]


def spread(scores: jax.Array, centres: jax.Array | None) -> jax.Array:
  """Standard deviation over the members of their centred scores, `[B]`."""
  offsets = 0.0 if centres is None else centres[:, None]
  return jnp.std(jnp.asarray(scores) - offsets, axis=0)


def make_rewarder(
  config: shared.Config,
  mesh: Mesh,
  tokenization: tokenization_lib.Tokenization,
  engine: Engine,
  model: roles.Role | None,
  function: Sequence[Weighted],
  *,
  unstopped_penalty: float = 0.0,
) -> Rewarder:
  """The rewarder of a config.

  Args:
    config: Config of RL or of an evaluation; `config.reward` says how the parts
      are combined.
    mesh: Mesh that results are placed on.
    tokenization: Decodes responses for the function.
    engine: Compiled functions; its `rewards` is that of the model.
    model: The reward model on the mesh, or None.
    function: The user's reward functions, from `functions_of`.
    unstopped_penalty: Subtracted from the reward of a response that reached the
      maximum length without a stop token, in training.
  """
  reward = config.reward
  return Rewarder(
    model,
    engine.rewards,
    function,
    fn_weight=reward.fn_weight,
    combine=reward.combine,
    std_weight=reward.std_weight,
    unstopped_penalty=unstopped_penalty,
    tokenization=tokenization,
    mesh=mesh,
  )


def functions_of(
  config: shared.Config, rows: Sequence[records.Prompt]
) -> tuple[Weighted, ...]:
  """The reward functions of a config, tried on a few rows; () without one.

  Raises:
    ValueError: One that `config.reward.fn` names cannot be found or called, or
      returns anything but one finite number for each response.
  """
  seconds = config.reward.timeout
  return tuple(
    Weighted(
      term.label,
      term.weight,
      reward_function.load_and_try(term.name, rows, seconds=seconds),
    )
    for term in reward_functions.terms_of(config.reward.fn)
  )

"""Batches of a stage, from encoded rows: padded, or packed into rows."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from perl_jax import roles, sharding
from perl_jax.data import batches, loader, packed_loader
from perl_jax.data.batches import packed_responses, row_plans
from perl_jax.data.batches.member_rows import Subsets
from perl_jax.models.config import ModelConfig
from perl_jax.reporting import phases
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import watch

Config = shared.Config


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Batches of one stage, as numpy arrays of this process.

  Attributes:
    train: Endless iterator over training batches, with a position that can be
      saved (`loader.TrainBatches`); None if only validation rows were read.
    validation: Function that returns one pass over the validation batches.
    rows: Validation records that the batches' `index` points into.
    counts: How many rows the source and the tokenisation repaired, dropped or
      cut, by reason.
    max_targets: Largest number of targets in a packed row, or of tokens in a
      response; 0 for prompts.
    train_rows: Training records that the batches' `index` points into; empty
      for packed rows, which have no index.
    validation_batches: Number of batches in a pass over the validation rows.
    passes: `passes(n)` makes passes over n of the training rows, all for 0,
      with batches as those of validation rows; None if only these were read, or
      rows are padded.
    fingerprints: SHA-256 of the encoded rows, by what they are for.
  """

  train: Any
  validation: Callable[[], Iterator[Any]]
  rows: list[Any]
  counts: dict[str, int]
  max_targets: int = 0
  train_rows: Sequence[Any] = ()
  validation_batches: int = 0
  passes: Callable[[int], packed_loader.EvalBatches] | None = None
  fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def held_out(self, doing: str) -> Iterator[Any]:
    """A pass over the validation batches, shown as a phase of that name.

    Raises:
      watch.Stop: A loop is under way and is to stop.
    """
    yield from _shown(self.validation(), doing, self.validation_batches)

  def once(self, doing: str, count: int = 0) -> Iterator[Any]:
    """A pass over training rows, as `held_out` is over the others.

    Args:
      doing: Name of the phase.
      count: Number of rows, chosen at random; 0 takes all.
    """
    made = self.passes(count)
    yield from _shown(made(), doing, len(made))


def _shown(batches_: Iterator[Any], doing: str, count: int) -> Iterator[Any]:
  for batch in phases.track(batches_, doing, count):
    watch.look()
    yield batch


class Packing(NamedTuple):
  """How a stage wants prompts with their responses packed into rows.

  Attributes:
    shared: Whether the responses to a prompt share it; see
      `roles.shares_prompts`.
    targets: Whether the probabilities of responses are asked for.
    block: The kernels need rows of a multiple of this number of tokens.
    own_rows: `own_rows(n)` picks each member's rows out of a batch, of n
      training rows; None makes the same batches for all.
  """

  shared: bool = True
  targets: bool = False
  block: int = 1
  own_rows: Callable[[int], Subsets] | None = None

  @classmethod
  def of(
    cls,
    model: ModelConfig,
    *,
    targets: bool,
    own_rows: Callable[[int], Subsets] | None = None,
  ) -> "Packing":
    """What suits the kernels that a model runs with on the mesh."""
    shared_ = roles.shares_prompts(model)
    return cls(shared_, targets, roles.row_block(model), own_rows)

  def layout(
    self, kind: str, pad_id: int, multiple: int = row_plans.BLOCK
  ) -> packed_responses.Layout:
    """The layout of rows of a kind of records.

    Args:
      kind: A key of `batches.KINDS`.
      pad_id: Token that pads.
      multiple: Rows have a multiple of this number of tokens, and of `block`.
    """
    return packed_responses.Layout(
      batches.KINDS[kind].responses,
      shared=self.shared,
      targets=self.targets,
      block=math.lcm(self.block, multiple),
      pad_id=pad_id,
    )


# Shared prompts, and no probabilities of responses.
PLAIN = Packing()


class Encoded(NamedTuple):
  """Rows for a loader to batch, and the number of tokens of each."""

  rows: Sequence[Any]
  lengths: list[int]


def padded(
  config: Config,
  train: Encoded | None,
  validation: Encoded,
  buckets: tuple[int, ...],
  collate: Callable[..., Any],
) -> Inputs:
  """Batches padded to the smallest bucket that holds their rows.

  Args:
    config: The stage's config.
    train: Training rows, or None.
    validation: Validation rows.
    buckets: Lengths that a batch may have.
    collate: `collate(rows, length, batch_size)`.

  Raises:
    ValueError: There are no rows.
  """
  shares = _shares(config, train, validation)
  endless = _endless(config, train, buckets, collate, shares)

  def fresh():
    return loader.eval_batches(
      *validation, config.eval.batch_size, buckets, collate, *shares
    )

  count = math.ceil(len(validation.rows) / config.eval.batch_size)
  return Inputs(endless, fresh, rows=[], counts={}, validation_batches=count)


def packed(
  config: Config,
  train: Encoded | None,
  validation: Encoded,
  buckets: tuple[int, ...],
  layout: packed_responses.Layout,
  members: Subsets | None,
) -> Inputs:
  """Batches of prompts with their responses, packed into rows.

  Args:
    config: The stage's config.
    train: Training items, or None.
    validation: Validation items.
    buckets: Items of one batch are in one of these lengths.
    layout: How items lie in rows.
    members: Picks each member's items of a training batch; None makes one
      batch for all.

  Raises:
    ValueError: There are no rows.
  """
  shares = _shares(config, train, validation)
  pack = passes = None

  def made_of(items):
    return packed_loader.EvalBatches(
      layout, *items, config.eval.batch_size, buckets, *shares
    )

  if train is not None:

    def passes(count):
      some = chosen(len(train.rows), count, config.data.split_seed)
      return made_of(Encoded(*([of[i] for i in some] for of in train)))

    pack = packed_loader.train_packer(
      layout,
      *train,
      config.batch_size,
      buckets,
      config.microbatches * shares[1],
      *shares,
      members,
    )
  endless = _endless(config, train, buckets, pack, shares, whole=True)
  fresh = made_of(validation)
  return Inputs(
    endless,
    fresh,
    rows=[],
    counts={},
    validation_batches=len(fresh),
    passes=passes,
  )


def chosen(total: int, count: int, seed: int) -> Sequence[int]:
  """`count` of the numbers below `total` at random by `seed`, ascending.

  All of them if `count` is 0, or not less than their number.
  """
  if not count or count >= total:
    return range(total)
  return sorted(np.random.default_rng(seed).permutation(total)[:count])


def _endless(config, train, buckets, collate, shares, whole=False):
  """Endless training batches; None without training rows."""
  if train is None:
    return None
  return loader.train_batches(
    *train,
    config.batch_size,
    buckets,
    collate,
    config.seed,
    *shares,
    whole=whole,
  )


def _shares(
  config: Config, train: Encoded | None, validation: Encoded
) -> tuple[Sequence[int], int]:
  """The parts of each batch that this process reads, where there are rows."""
  for name, found in (("training", train), ("validation", validation)):
    if found is not None and not found.rows:
      raise ValueError(
        f"config.data.name={config.data.name!r} gave no {name} rows. Check"
        " data.path / data.validation_path, data.folds and data.limit."
      )
  return sharding.held_shards(shared.make_mesh(config))

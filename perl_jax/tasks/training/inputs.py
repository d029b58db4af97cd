"""From `config.data` to records, tokens and batches; and the stage's start."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from perl_jax import hosts, sharding
from perl_jax.data import loader, records
from perl_jax.data.batches import demonstrations, packing
from perl_jax.data.batches import labelled as labelled_lib
from perl_jax.data.batches import preferences as preferences_lib
from perl_jax.data.batches import prompts as prompts_lib
from perl_jax.data.sources import registry
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks.settings import shared

Config = shared.Config


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Batches of one stage.

  Attributes:
    train: Endless iterator with a position.
    validation: Makes a fresh pass over the validation rows.
    rows: Validation records that the batches' `index` points into.
    counts: What the source and the tokenisation mended, dropped or cut.
    max_targets: Most targets in a packed row, or most tokens of a response; 0
      where there are none.
    train_rows: Training records that the batches' `index` points into; not of
      packed rows.
  """

  train: Any
  validation: Callable[[], Iterator[Any]]
  rows: list[Any]
  counts: dict[str, int]
  max_targets: int = 0
  train_rows: Sequence[Any] = ()


def load(data: Config, kind: str, seed: int) -> records.Splits:
  """Records of `config.data` as one kind; process 0 prepares what is cached."""
  read = functools.partial(
    registry.load,
    data.name,
    kind,
    data_dir=data.dir,
    path=data.path,
    validation_path=data.validation_path,
    cache_dir=data.cache,
    seed=seed,
    folds=data.folds,
    fold=data.fold,
    limit=data.limit,
    **data.options.to_dict(),
  )
  return hosts.primary_first(f"data {kind}", read)


def require_room(config: Config, max_len: int) -> None:
  """Checks that the lengths asked for fit the model.

  Raises:
    ValueError: Names the fields and the model's limit.
  """
  data = config.data
  longest = max(data.max_len, data.prompt_len + data.response_len)
  if longest > max_len:
    raise ValueError(
      f"config.data asks for sequences of {longest} tokens (max_len="
      f"{data.max_len}, prompt_len + response_len = {data.prompt_len} +"
      f" {data.response_len}), but the model takes {max_len}. Lower them, or"
      " train a model with room for them."
    )


def targets(
  config: Config, tokenization: tokenization_lib.Tokenization
) -> Inputs:
  """Packed dialogues for language modelling."""
  splits = load(config.data, "demonstrations", config.seed)
  length = config.data.max_len
  prefix = () if tokenization.bos_id is None else (tokenization.bos_id,)

  def pack(rows):
    encoded = demonstrations.encode_demonstrations(rows, tokenization)
    more = len(encoded) - len(rows)
    return packing.pack_dialogues(encoded, length, prefix), more

  train, split_turns = pack(splits.train)
  validation, _ = pack(splits.validation)
  found = _batched(
    config,
    Encoded(train, [length] * len(train)),
    Encoded(validation, [length] * len(validation)),
    (length,),
    demonstrations.collate_targets,
  )
  return dataclasses.replace(
    found,
    rows=list(splits.validation),
    counts=splits.counts
    | {"packed_rows": len(train), "split_turns": split_turns},
    max_targets=max(int(row.target_mask.sum()) for row in train + validation),
  )


def preferences(
  config: Config,
  tokenization: tokenization_lib.Tokenization,
  *,
  train: bool = True,
) -> Inputs:
  """Pairs of prompt + response; without `train` only those held out."""
  return _bucketed(
    config,
    tokenization,
    "preferences",
    config.data.max_len,
    preferences_lib.encode_preferences,
    preferences_lib.collate_preferences,
    train,
  )


def labelled(
  config: Config,
  tokenization: tokenization_lib.Tokenization,
  *,
  train: bool = True,
) -> Inputs:
  """Labelled prompt + response; without `train` only those held out."""
  return _bucketed(
    config,
    tokenization,
    "labelled",
    config.data.max_len,
    labelled_lib.encode_labelled,
    labelled_lib.collate_labelled,
    train,
  )


def prompts(
  config: Config,
  tokenization: tokenization_lib.Tokenization,
  *,
  train: bool = True,
) -> Inputs:
  """Prompts to respond to; without `train` only those held out."""
  return _bucketed(
    config,
    tokenization,
    "prompts",
    config.data.prompt_len,
    prompts_lib.encode_prompts,
    prompts_lib.collate_prompts,
    train,
  )


class Encoded(NamedTuple):
  """What a loader batches: rows, and the tokens of each."""

  rows: list[Any]
  lengths: list[int]


def _bucketed(
  config, tokenization, kind, longest, encode, collate, train
) -> Inputs:
  splits = load(config.data, kind, config.seed)
  held_out = pick(list(splits.validation), config.eval.rows, config.seed)
  counts = dict(splits.counts)

  def encoded(records_):
    rows, cut = encode(records_, tokenization, longest, config.data.long)
    return Encoded(rows, [row.length for row in rows]), cut

  validation, lost = encoded(held_out)
  counts["validation_too_long_dropped"] = lost["too_long_dropped"]
  training = None
  if train:
    training, cut = encoded(splits.train)
    counts |= cut
  smaller = [b for b in config.data.buckets if b < longest]
  found = _batched(
    config,
    training,
    validation,
    (*smaller, longest),
    functools.partial(collate, pad_id=tokenization.pad_id),
  )
  longest_response = 0
  if kind != "prompts":
    both = [*validation.rows, *(training.rows if training else ())]
    longest_response = max(row.response_length for row in both)
  return dataclasses.replace(
    found,
    rows=held_out,
    counts=counts,
    max_targets=longest_response,
    train_rows=splits.train if train else (),
  )


def _batched(
  config: Config,
  train: Encoded | None,
  validation: Encoded,
  buckets: tuple[int, ...],
  collate: Callable[..., Any],
) -> Inputs:
  for name, found in (("training", train), ("validation", validation)):
    if found is not None and not found.rows:
      raise ValueError(
        f"config.data.name={config.data.name!r} gave no {name} rows. Check"
        " data.path / data.validation_path, data.folds and data.limit."
      )
  shares = sharding.held_shards(shared.make_mesh(config))
  batches = None
  if train is not None:
    batches = loader.train_batches(
      *train, config.batch_size, buckets, collate, config.seed, *shares
    )

  def fresh():
    return loader.eval_batches(
      *validation, config.eval.batch_size, buckets, collate, *shares
    )

  return Inputs(batches, fresh, rows=[], counts={})


def pick(rows: list[Any], count: int, seed: int) -> list[Any]:
  """A fixed random choice of `count` rows, in order; 0 takes all."""
  if not count or count >= len(rows):
    return rows
  chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
  return [rows[i] for i in sorted(chosen)]


def log_counts(counts: dict[str, int]) -> None:
  """Says what was read, mended, dropped or cut."""
  items = (f"{k}={v}" for k, v in sorted(counts.items()))
  logging.info("data: %s", ", ".join(items))


KINDS = {"pairwise": "preferences", "pointwise": "labelled"}


def require_loss(loss: str) -> str:
  """The kind of records that a loss reads.

  Raises:
    ValueError: The loss is unknown.
  """
  if loss not in KINDS:
    raise ValueError(f"config.loss={loss!r}: choose one of {sorted(KINDS)}.")
  return KINDS[loss]


def read(config: shared.Config, tokenization, *, train: bool = True) -> Inputs:
  """Pairs or labelled rows, as `config.loss` asks."""
  reader = {"pairwise": preferences, "pointwise": labelled}
  return reader[config.loss](config, tokenization, train=train)

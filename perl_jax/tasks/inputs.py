"""From `config.data` to records, tokens and batches; and the stage's start."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jax.sharding import Mesh

from perl_jax import hosts, sharding
from perl_jax.data import batches as batches_lib
from perl_jax.data import encoding, loader, packing, records, sources
from perl_jax.data import text as text_lib
from perl_jax.data import tokenizer as tokenizer_lib
from perl_jax.models import presets
from perl_jax.tasks import setup, stage
from perl_jax.tasks import start as start_lib
from perl_jax.tasks.start import Start

Config = setup.Config


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
    sources.load,
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


def start(
  config: Config, role: str, workdir: Path, kind: str, mesh: Mesh
) -> Start:
  """What a stage starts from: an earlier one, a checkpoint, or random weights.

  Args:
    config: Of the stage; `config[role].init` names the earlier workdir.
    role: "policy" or "reward".
    workdir: Of this stage; a tokenizer that has to be trained is kept there.
    kind: Kind of records whose text a new tokenizer learns from.
    mesh: Where a base that is read goes.
  """
  init, outside = config[role].init, setup.outside(config, mesh)
  if init:
    return stage.load(
      init, config[role].checkpoint, role, f"{role}.init", outside=outside
    )
  if config.base:
    return start_lib.checkpoint_start(config.base, outside)
  # A wrong name should not cost a trained tokenizer first.
  presets.preset(config.model.preset, vocab_size=1)
  tokenizer = workdir / stage.TOKENIZER
  if config.data.tokenizer:
    tokenizer = Path(config.data.tokenizer)
  else:
    _train_tokenizer(config, kind, tokenizer)
  tokenization = text_lib.load_tokenizer(tokenizer)
  model = presets.preset(
    config.model.preset,
    vocab_size=tokenization.vocab_size,
    max_len=max(
      config.data.max_len, config.data.prompt_len + config.data.response_len
    ),
    scan_unroll=config.model.scan_unroll,
    remat=config.model.remat,
    dtype=config.model.dtype,
    attention=config.model.attention,
  )
  return start_lib.random_start(
    model, config.seed, tokenizer, config.base_dtype, mesh
  )


def _train_tokenizer(config: Config, kind: str, tokenizer: Path) -> None:
  """Trains one where there is none yet."""
  hosts.barrier("tokenizer looked for")
  if hosts.sees(tokenizer):
    return
  hosts.barrier("tokenizer not found")
  texts = tokenizer_lib.record_texts(load(config.data, kind, config.seed).train)
  hosts.on_primary(
    "tokenizer",
    lambda: tokenizer_lib.train_tokenizer(
      texts, config.data.vocab_size, tokenizer
    ),
  )


def load_tokenizer(start: Start) -> text_lib.Tokenization:
  """The tokenizer of a start.

  Raises:
    ValueError: It has tokens that the model has no embedding for.
  """
  tokenization = text_lib.load_tokenizer(start.tokenizer)
  if tokenization.vocab_size > start.config.vocab_size:
    raise ValueError(
      f"The tokenizer in {start.tokenizer} has token ids up to"
      f" {tokenization.vocab_size - 1}, but the embedding has"
      f" {start.config.vocab_size} rows. Tokens were added without resizing the"
      " model, or the tokenizer is another model's."
    )
  return tokenization


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


def targets(config: Config, tokenization: text_lib.Tokenization) -> Inputs:
  """Packed dialogues for language modelling."""
  splits = load(config.data, "demonstrations", config.seed)
  length = config.data.max_len
  prefix = () if tokenization.bos_id is None else (tokenization.bos_id,)

  def pack(rows):
    encoded = encoding.encode_demonstrations(rows, tokenization)
    more = len(encoded) - len(rows)
    return packing.pack_dialogues(encoded, length, prefix), more

  train, split_turns = pack(splits.train)
  validation, _ = pack(splits.validation)
  found = _batched(
    config,
    Encoded(train, [length] * len(train)),
    Encoded(validation, [length] * len(validation)),
    (length,),
    batches_lib.collate_targets,
  )
  return dataclasses.replace(
    found,
    rows=list(splits.validation),
    counts=splits.counts
    | {"packed_rows": len(train), "split_turns": split_turns},
    max_targets=max(int(row.target_mask.sum()) for row in train + validation),
  )


def preferences(
  config: Config, tokenization: text_lib.Tokenization, *, train: bool = True
) -> Inputs:
  """Pairs of prompt + response; without `train` only those held out."""
  return _bucketed(
    config,
    tokenization,
    "preferences",
    config.data.max_len,
    encoding.encode_preferences,
    batches_lib.collate_preferences,
    train,
  )


def labelled(
  config: Config, tokenization: text_lib.Tokenization, *, train: bool = True
) -> Inputs:
  """Labelled prompt + response; without `train` only those held out."""
  return _bucketed(
    config,
    tokenization,
    "labelled",
    config.data.max_len,
    encoding.encode_labelled,
    batches_lib.collate_labelled,
    train,
  )


def prompts(
  config: Config, tokenization: text_lib.Tokenization, *, train: bool = True
) -> Inputs:
  """Prompts to respond to; without `train` only those held out."""
  return _bucketed(
    config,
    tokenization,
    "prompts",
    config.data.prompt_len,
    encoding.encode_prompts,
    batches_lib.collate_prompts,
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
  shares = sharding.held_shards(setup.make_mesh(config))
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

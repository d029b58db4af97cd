"""From `config.data` to records, tokens and batches; and the stage's start."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from perl_jax.data import batches as batches_lib
from perl_jax.data import loader, records, sources
from perl_jax.data import text as text_lib
from perl_jax.data import tokenizer as tokenizer_lib
from perl_jax.models import presets
from perl_jax.tasks import setup, stage

Config = setup.Config


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Batches of one stage.

  Attributes:
    train: Endless iterator with a position.
    validation: Makes a fresh pass over the validation rows.
    rows: Validation records that the batches' `index` points into.
    counts: What the source and the tokenisation mended, dropped or cut.
  """

  train: Any
  validation: Callable[[], Iterator[Any]]
  rows: list[Any]
  counts: dict[str, int]


def load(data: Config, kind: str, seed: int) -> records.Splits:
  """Records of `config.data` as one kind."""
  return sources.load(
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


def start(config: Config, role: str, workdir: Path, kind: str) -> stage.Start:
  """What a stage starts from: an earlier workdir, or a fresh random base.

  Args:
    config: Of the stage; `config[role].init` names the earlier workdir.
    role: "policy" or "reward".
    workdir: Of this stage; a tokenizer that has to be trained is kept there.
    kind: Kind of records whose text a new tokenizer learns from.
  """
  init = config[role].init
  if init:
    return stage.load(init, config[role].checkpoint, role, f"{role}.init")
  # A wrong name should not cost a trained tokenizer first.
  presets.preset(config.model.preset, vocab_size=1)
  tokenizer = workdir / stage.TOKENIZER
  if config.data.tokenizer:
    tokenizer = Path(config.data.tokenizer)
  elif not tokenizer.exists():
    texts = _texts(load(config.data, kind, config.seed).train)
    tokenizer_lib.train_tokenizer(texts, config.data.vocab_size, tokenizer)
  tokenization = text_lib.load_tokenizer(tokenizer)
  model = presets.preset(
    config.model.preset,
    vocab_size=tokenization.vocab_size,
    max_len=max(
      config.data.max_len, config.data.prompt_len + config.data.response_len
    ),
    remat=config.model.remat,
    dtype=config.model.dtype,
  )
  return stage.random_start(model, config.seed, tokenizer)


def _texts(rows) -> Iterator[str]:
  for row in rows:
    for message in row.prompt:
      yield message["content"]
    if isinstance(row, records.Demonstration):
      yield from (message["content"] for message in row.turns)
    elif isinstance(row, records.Preference):
      yield from (row.chosen, row.rejected)
    elif isinstance(row, records.Labelled):
      yield row.response


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


def _buckets(data: Config, longest: int) -> tuple[int, ...]:
  return tuple(b for b in data.buckets if b < longest) + (longest,)


def _batched(config, train, validation, buckets, collate) -> tuple[Any, Any]:
  process = dict(
    process_index=jax.process_index(), process_count=jax.process_count()
  )
  batches = loader.train_batches(
    train,
    [row.length for row in train],
    config.batch_size,
    buckets,
    collate,
    config.seed,
    **process,
  )

  def fresh():
    return loader.eval_batches(
      validation,
      [row.length for row in validation],
      config.eval.batch_size,
      buckets,
      collate,
      **process,
    )

  return batches, fresh


def targets(config: Config, tokenization: text_lib.Tokenization) -> Inputs:
  """Packed dialogues for language modelling."""
  splits = load(config.data, "demonstrations", config.seed)
  length = config.data.max_len
  prefix = () if tokenization.bos_id is None else (tokenization.bos_id,)

  def pack(rows):
    encoded = batches_lib.encode_demonstrations(rows, tokenization)
    return batches_lib.pack_dialogues(encoded, length, prefix)

  train, validation = pack(splits.train), pack(splits.validation)
  _require_rows(config, train, validation)
  process = dict(
    process_index=jax.process_index(), process_count=jax.process_count()
  )

  def fresh():
    return loader.eval_batches(
      validation,
      [length] * len(validation),
      config.eval.batch_size,
      (length,),
      batches_lib.collate_targets,
      **process,
    )

  return Inputs(
    train=loader.train_batches(
      train,
      [length] * len(train),
      config.batch_size,
      (length,),
      batches_lib.collate_targets,
      config.seed,
      **process,
    ),
    validation=fresh,
    rows=list(splits.validation),
    counts=splits.counts | {"packed_rows": len(train)},
  )


def preferences(config: Config, tokenization: text_lib.Tokenization) -> Inputs:
  """Pairs of prompt + response."""
  return _rated(
    config,
    tokenization,
    "preferences",
    batches_lib.encode_preferences,
    batches_lib.collate_preferences,
  )


def labelled(config: Config, tokenization: text_lib.Tokenization) -> Inputs:
  """Labelled prompt + response."""
  return _rated(
    config,
    tokenization,
    "labelled",
    batches_lib.encode_labelled,
    batches_lib.collate_labelled,
  )


def _rated(config, tokenization, kind, encode, collate) -> Inputs:
  splits = load(config.data, kind, config.seed)
  longest = config.data.max_len
  train, cut = encode(splits.train, tokenization, longest, config.data.long)
  held_out = pick(list(splits.validation), config.eval.rows, config.seed)
  validation, _ = encode(held_out, tokenization, longest, config.data.long)
  _require_rows(config, train, validation)
  batches, fresh = _batched(
    config, train, validation, _buckets(config.data, longest), collate
  )
  return Inputs(batches, fresh, held_out, splits.counts | cut)


def prompts(config: Config, tokenization: text_lib.Tokenization) -> Inputs:
  """Prompts to respond to."""
  splits = load(config.data, "prompts", config.seed)
  longest = config.data.prompt_len
  train, cut = batches_lib.encode_prompts(
    splits.train, tokenization, longest, config.data.long
  )
  held_out = pick(list(splits.validation), config.eval.rows, config.seed)
  validation, _ = batches_lib.encode_prompts(
    held_out, tokenization, longest, config.data.long
  )
  _require_rows(config, train, validation)
  batches, fresh = _batched(
    config,
    train,
    validation,
    _buckets(config.data, longest),
    batches_lib.collate_prompts,
  )
  return Inputs(batches, fresh, held_out, splits.counts | cut)


def pick(rows: list[Any], count: int, seed: int) -> list[Any]:
  """A fixed random choice of `count` rows, in order; 0 takes all."""
  if not count or count >= len(rows):
    return rows
  chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
  return [rows[i] for i in sorted(chosen)]


def _require_rows(config, train, validation) -> None:
  for name, rows in (("training", train), ("validation", validation)):
    if not rows:
      raise ValueError(
        f"config.data.name={config.data.name!r} gave no {name} rows. Check"
        " data.path / data.validation_path, data.folds and data.limit."
      )


def log_counts(counts: dict[str, int]) -> None:
  """Says what was read, mended, dropped or cut."""
  items = (f"{k}={v}" for k, v in sorted(counts.items()))
  logging.info("data: %s", ", ".join(items))

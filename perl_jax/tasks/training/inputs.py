"""From `config.data` to records, and from these to batches of tokens."""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from absl import logging

from perl_jax import hosts
from perl_jax.data import (
  batches,
  fingerprints,
  records,
  unusable,
)
from perl_jax.data.batches import common as batch_common
from perl_jax.data.batches import demonstrations
from perl_jax.data.batches import packing as packing_lib
from perl_jax.data.batches import prompts as prompts_lib
from perl_jax.data.sources import registry
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.reporting import phases
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, preview

Config = shared.Config
# Of rows in `batching.Inputs.fingerprints`: "training rows (preferences)".
TRAINING, VALIDATION = "training rows", "validation rows"


def load(data: Config, kind: str, seed: int) -> records.Splits:
  """Reads the records of one kind from the source that `config.data` names.

  Which rows are held out follows from `data.split_seed`, so that runs with
  other seeds, one after another or members of one, hold out the same.

  Process 0 reads first, so that files which are prepared and cached are
  prepared once.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: The source, the kind or an option does not exist, or a row is
      malformed.
  """
  records_of = functools.partial(
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
    split_seed=data.split_seed,
    train_folds=data.train_folds,
    limit=data.limit,
    ignore=data.ignore,
    stated={name: data[name] for name in registry.STATED},
    **data.options.to_dict(),
  )
  with phases.phase(f"reading {kind} of {data.name}"):
    return hosts.primary_first(f"data {kind}", records_of)


def require_room(config: Config, max_len: int, closing: int = 0) -> None:
  """Checks that the sequence lengths of `config.data` fit the model.

  Args:
    config: Config of the stage.
    max_len: Most tokens that the model takes.
    closing: Number of tokens that a reward model reads after a response.

  Raises:
    ValueError: They do not; names the fields and the model's limit.
  """
  data = config.data
  longest = max(data.max_len, data.prompt_len + data.response_len + closing)
  if longest > max_len:
    more = f", and {closing} that end a response in the template"
    raise ValueError(
      f"config.data asks for sequences of {longest} tokens (max_len="
      f"{data.max_len}, prompt_len + response_len = {data.prompt_len} +"
      f" {data.response_len}{more * bool(closing)}), but the model takes"
      f" {max_len}. Lower them, or train a model with a longer context."
    )


def targets(
  config: Config, tokenization: tokenization_lib.Tokenization
) -> batching.Inputs:
  """Reads dialogues and packs them into rows for language modelling.

  Rows have `config.data.max_len` tokens.

  Raises:
    ValueError: The source has no demonstrations, or a row is wrong.
  """
  splits = load(config.data, "demonstrations", config.seed)
  log_notes(splits.shapes + splits.notes)
  length = config.data.max_len

  def pack(rows, side):
    shown = phases.track(rows, "encoding dialogues", len(rows))
    bad = unusable.Unusable()
    encoded = demonstrations.encode_demonstrations(shown, tokenization, bad)
    _report(bad, len(rows), side)
    if side == "training":
      parts = map(demonstrations.parts, encoded)
      preview.show(config.data.preview, parts, tokenization)
    refused = Counter(unusable_dropped=bad.counts.get(batch_common.REFUSED, 0))
    refused["split_turns"] = len(encoded) - len(rows) + len(bad)
    packed = packing_lib.pack_dialogues(encoded, length, tokenization.beginning)
    return packed, refused

  train, refused = pack(splits.train, "training")
  held_out = pick(list(splits.validation), config.eval.loss_rows, config.seed)
  validation, _ = pack(held_out, "validation")
  if 0 < len(train) < config.batch_size:
    raise ValueError(
      f"{len(splits.train)} training dialogues are packed into {len(train)}"
      f" rows of data.max_len={length} tokens, fewer than one batch of"
      f" batch_size={config.batch_size}. Lower batch_size or data.max_len, or"
      " give more dialogues (data.*)."
    )
  found = batching.padded(
    config,
    batching.Encoded(train, [length] * len(train)),
    batching.Encoded(validation, [length] * len(validation)),
    (length,),
    demonstrations.collate_targets,
  )
  return dataclasses.replace(
    found,
    rows=held_out,
    fingerprints=_fingerprints("demonstrations", train, validation),
    counts=dict(Counter(splits.counts) + refused)
    | {"packed_rows": len(train), "split_turns": refused["split_turns"]},
    max_targets=max(
      int(row.target_mask.sum()) for row in itertools.chain(train, validation)
    ),
  )


def read(
  config: Config,
  tokenization: tokenization_lib.Tokenization,
  kind: str,
  *,
  train: bool = True,
  notes: bool = False,
  closed: bool = False,
  splits: records.Splits | None = None,
  packing: batching.Packing = batching.PLAIN,
) -> batching.Inputs:
  """Reads one kind of record into batches of the lengths `config.data.buckets`.

  Args:
    config: The stage's config.
    tokenization: The tokenizer and its chat template.
    kind: A key of `batches.KINDS`.
    train: Whether to make training batches too, not only validation ones.
    notes: Whether what there is to say of the rows is logged without them, too.
    closed: Whether rows are conversations that their responses end, as the chat
      template writes them.
    splits: The records; None reads those of `config.data`.
    packing: How rows with responses are packed; prompts are padded.

  Raises:
    ValueError: The source lacks the kind, there are no rows, or one is wrong.
  """
  shape = batches.KINDS[kind]
  longest = config.data[shape.limit]
  held = "validation" if splits is None else "given"
  if splits is None:
    splits = load(config.data, kind, config.seed)
  if train or notes:
    log_notes(splits.shapes + splits.notes)
  held_out = pick(list(splits.validation), config.eval.rows, config.seed)
  counts = dict(splits.counts)

  def encoded(records_, side):
    shown = phases.track(records_, f"encoding {kind}", len(records_))
    bad = unusable.Unusable()
    try:
      rows, cut = shape.encode(
        shown, tokenization, longest, config.data.long, closed, bad
      )
    except tokenization_lib.TooLongError as error:
      every = [*held_out, *(splits.train if train else ())]
      most = _longest(shape, every, tokenization, closed)
      more = f" The longest row needs {most}." if most > error.length else ""
      raise ValueError(f"{error}{more}") from error
    _report(bad, len(records_), side)
    cut["unusable_dropped"] = bad.counts.get(batch_common.REFUSED, 0)
    return batching.Encoded(rows, [row.length for row in rows]), cut

  validation, lost = encoded(held_out, held)
  counts["validation_too_long_dropped"] = lost["too_long_dropped"]
  training = None
  if train:
    training, cut = encoded(splits.train, "training")
    cut["unusable_dropped"] += counts.get("unusable_dropped", 0)
    counts |= cut
    parts = (row.parts for row in training.rows)
    preview.show(config.data.preview, parts, tokenization)
  found = _batches_of(
    config, kind, tokenization, training, validation, packing, len(splits.train)
  )
  both = [*validation.rows, *(training.rows if training else ())]
  return dataclasses.replace(
    found,
    rows=held_out,
    fingerprints=_fingerprints(
      kind,
      training.rows if training else None,
      validation.rows,
      splits.train,
      held_out,
    ),
    counts=counts,
    max_targets=max(row.response_length for row in both),
    train_rows=splits.train if train else (),
  )


def _longest(
  shape: batches.Kind,
  rows: Sequence[records.Record],
  tokenization: tokenization_lib.Tokenization,
  closed: bool,
) -> int:
  """The least limit that keeps all of all rows, but for those without use."""
  most = 0
  for row in phases.track(rows, "looking for the longest row", len(rows)):
    try:
      shape.encode([row], tokenization, 0, "error", closed)
    except tokenization_lib.TooLongError as error:
      most = max(most, error.length)
    except ValueError:
      pass  # it says nothing of lengths
  return most


def _batches_of(
  config, kind, tokenization, training, validation, packing, train_rows
) -> batching.Inputs:
  """Padded batches of prompts, and packed ones of prompts with responses."""
  longest = config.data[batches.KINDS[kind].limit]
  buckets = (*(b for b in config.data.buckets if b < longest), longest)
  given = config, training, validation, buckets
  if not batches.KINDS[kind].responses:
    pad_id = tokenization.pad_id
    collate = functools.partial(prompts_lib.collate_prompts, pad_id=pad_id)
    return batching.padded(*given, collate)
  members = None
  if training is not None and packing.own_rows is not None:
    members = packing.own_rows(train_rows)
  layout = packing.layout(
    kind, tokenization.pad_id, config.data.pad_to_multiple_of
  )
  return batching.packed(*given, layout, members)


def place(data: Config, name: str) -> str:
  """Where rows lie, for people to read.

  Args:
    data: `config.data`.
    name: A key of `batching.Inputs.fingerprints`.
  """
  where = data.path or data.dir or f"generated: {data.name}"
  if name.startswith(VALIDATION) and data.validation_path:
    where = data.validation_path
  return where


def _fingerprints(
  kind, train, validation, train_records=(), held_out=()
) -> dict[str, str]:
  """`batching.Inputs.fingerprints`; the records are those of the rows, in full.

  Of a prompt more is used than its tokens: a reward function reads its record.
  """
  found = {}
  with phases.phase(f"taking the fingerprint of the rows ({kind})"):
    for name, rows, of in (
      (TRAINING, train, train_records),
      (VALIDATION, validation, held_out),
    ):
      if rows is not None:
        told = of if kind in ("prompts", "candidates") else ()
        found[f"{name} ({kind})"] = fingerprints.of_rows(rows, told)
  return found


def have_prompts(rows: Sequence[records.Record]) -> bool:
  """Whether rows have prompts to answer; logs that texts have none."""
  if any(not isinstance(row, records.Text) for row in rows):
    return True
  log_notes(["held-out rows are texts without prompts: none is answered."])
  return False


def pick(rows: list[Any], count: int, seed: int) -> list[Any]:
  """The rows that `batching.chosen` gives."""
  places = batching.chosen(len(rows), count, seed)
  return rows if len(places) == len(rows) else [rows[i] for i in places]


def _report(bad: unusable.Unusable, total: int, side: str) -> None:
  """Logs the rows that cannot be used; an error if most of them cannot."""
  bad.check(total, f"{side} rows")
  log_notes([f"{side} rows: {note}" for note in bad.notes()])


def log_notes(notes: Sequence[str]) -> None:
  """Logs what there is to say of the rows besides their counts."""
  for note in notes:
    logging.info("data: %s", note)


def log_counts(counts: dict[str, int]) -> None:
  """Logs how many rows were read, repaired, dropped or cut."""
  items = (f"{k}={v}" for k, v in sorted(counts.items()))
  logging.info("data: %s", ", ".join(items))

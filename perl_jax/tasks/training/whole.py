"""All rows of a file, to be answered or scored: none is trained on."""

import dataclasses
import functools

from perl_jax import hosts
from perl_jax.data import records
from perl_jax.data.sources import registry
from perl_jax.data.sources.jsonl import whole
from perl_jax.reporting import phases
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import inputs

# Fields of `config.data` that divide rows or make others of them.
_UNUSED = ("validation_path", "margin", "threshold")


def load(config: shared.Config, kind: str) -> records.Splits:
  """The rows of `config.data`, as validation rows, in their order.

  Of a user's files they are all rows, the first `data.limit` if that is above
  0; of another source, the held-out rows.

  Args:
    config: Config of a command that trains nothing.
    kind: "prompts", or "candidates" for rows with responses.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: No path is given, most rows cannot be used, or one cannot be
      honoured; names file, line and field.
  """
  data = config.data
  if data.name != "jsonl":
    return _held_out(config, kind)
  if not data.path:
    raise ValueError(
      "config.data.path is empty: give a file of rows, or a directory of them,"
      " --config.data.path=PATH (JSON lines, JSON, Parquet or Arrow)."
    )
  for field in _UNUSED:
    if data[field]:
      raise ValueError(
        f"config.data.{field}={data[field]!r}: task {config.task} reads all"
        " rows of data.path as they are. Leave it out."
      )
  read = functools.partial(
    whole.load,
    data.path,
    kind,
    limit=data.limit,
    ignore=data.ignore,
    stated={name: data[name] for name in registry.STATED},
  )
  try:
    with phases.phase(f"reading {data.path}"):
      found = hosts.primary_first(f"data {kind}", read)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"config.data.path: {error}") from error
  inputs.log_notes(found.shapes + found.notes)
  return found


def _held_out(config: shared.Config, kind: str) -> records.Splits:
  """The held-out rows of a source that is no user's file."""
  kinds = registry.describe()[config.data.name].kinds
  if kind == "candidates":
    kind = next(k for k in ("preferences", "labelled") if k in kinds)
  found = inputs.load(config.data, kind, config.seed)
  rows = found.validation
  if kind != "prompts":
    rows = [records.candidates_of(row) for row in rows]
  return dataclasses.replace(found, train=(), validation=rows)

"""Loads records by the name of a source and the kind of record.

    splits = load("taskmaster_coffee", "labelled", data_dir="copies", fold=2)
    check = checker("taskmaster_coffee")

All kinds of one source are split alike: with the same `seed`, `folds` and
`fold`, a validation row of one stage is in no other stage's training set.
"""

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from perl_jax import names
from perl_jax.data import splits
from perl_jax.data.records import Prompt, Record, Splits
from perl_jax.data.sources import hh
from perl_jax.data.sources.coffee_bar import rows as coffee_bar
from perl_jax.data.sources.jsonl import files as jsonl_files
from perl_jax.data.sources.jsonl import forms, garbage
from perl_jax.data.sources.jsonl import rows as jsonl_rows
from perl_jax.data.sources.taskmaster import checks, weak_pairs
from perl_jax.data.sources.taskmaster import records as taskmaster

Checker = Callable[[Prompt, str], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Source:
  """Description of a source, available without reading it.

  Attributes:
    about: One line on its contents.
    kinds: The kinds of records that it has.
    options: The arguments of `load` that it uses, besides `seed` and `limit`.
    checks: Names of the checks that its `checker` returns.
    licence: Its licence.
    notice: What to know before reading its conversations, as a sentence that
      stands above them wherever they are shown; "" if nothing.
    hub: Its name on the Hugging Face hub, or "".
  """

  about: str
  kinds: tuple[str, ...]
  options: tuple[str, ...]
  checks: tuple[str, ...]
  licence: str
  notice: str = ""
  hub: str = ""


_FOLDS = ("folds", "fold", "train_folds")
STATED = ("columns", "margin", "threshold")
_PUBLIC = ("data_dir", "cache_dir", *_FOLDS)
_CALL_CHECKS = ("valid_json", "known_api", "exact_match")
_GENERATOR = tuple(
  name
  for name in inspect.signature(coffee_bar.load).parameters
  if name not in ("kind", "seed")
)
_SOURCES = {
  "coffee_bar": Source(
    about="generated coffee orders, answered by one API call; needs no network",
    kinds=coffee_bar.KINDS,
    options=_GENERATOR,
    checks=("gold",),
    licence=coffee_bar.LICENCE,
  ),
  "taskmaster_coffee": Source(
    about="Taskmaster-4: coffee orders, dialogs and turns rated 0 or 1",
    kinds=("demonstrations", "preferences", "labelled", "prompts"),
    options=_PUBLIC,
    checks=_CALL_CHECKS,
    licence="CC BY 4.0",
  ),
  "taskmaster_ticketing": Source(
    about="Taskmaster-3: movie tickets, turns rated 0 or 1",
    kinds=("labelled", "prompts"),
    options=_PUBLIC,
    checks=_CALL_CHECKS,
    licence="CC BY 4.0",
  ),
  "hh_rlhf": Source(
    about="hh-rlhf, harmless-base: which of two replies is less harmful",
    kinds=("preferences", "prompts"),
    options=_PUBLIC,
    checks=(),
    licence="MIT",
    notice=(
      "The prompts are requests that crowd workers wrote to provoke harmful"
      " answers; prompts and answers can be offensive."
    ),
    hub="Anthropic/hh-rlhf",
  ),
  "jsonl": Source(
    about="your own rows: JSON, Parquet or Arrow",
    kinds=jsonl_rows.KINDS,
    options=("path", "validation_path", "ignore", *STATED, *_FOLDS),
    checks=(),
    licence="yours",
  ),
}


def describe() -> Mapping[str, Source]:
  """Returns the sources by name."""
  return dict(_SOURCES)


def load(
  name: str,
  kind: str,
  *,
  data_dir: str = "",
  path: str = "",
  cache_dir: str = "",
  seed: int = 0,
  folds: int = 5,
  fold: int = 0,
  split_seed: int | None = None,
  train_folds: Collection[int] = (),
  validation_path: str = "",
  limit: int = 0,
  ignore: Collection[str] = (),
  stated: Mapping[str, Any] | None = None,
  **generator: Any,
) -> Splits:
  """Reads or generates the records of one kind, split by group.

  Args:
    name: A source; see `describe`.
    kind: One of the `kinds` of the source.
    data_dir: Directory with local copies of the public data sets, "" to
      download them.
    path: File or directory of `jsonl`, or hf:// and the name of a data set.
    cache_dir: Directory of prepared public data sets; see `upstream.read_rows`.
    seed: Seed of the generator, and of pairs that are made from other rows.
    folds: Number of folds of the groups.
    fold: The validation fold, 0 to `folds - 1`.
    split_seed: Seed of the folds; None takes `seed`.
    train_folds: Folds of the training rows; () is all that are not held out.
    validation_path: File or directory with the validation rows of `jsonl`,
      instead of a fold.
    limit: Number of training rows to keep, from the first on; 0 keeps all. The
      others are counted as `over_limit`.
    ignore: Fields of `jsonl`, and keys of its messages, to leave out whatever
      they mean.
    stated: What `jsonl` is told of the rows: the arguments of `forms.stated`.
    **generator: Options of `coffee_bar.rows.load`.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: There is no such source, the source has no such kind or option,
      or a row is malformed.
  """
  source = _source(name)
  if kind not in source.kinds:
    having = [other for other, s in _SOURCES.items() if kind in s.kinds]
    raise ValueError(
      f"{name} has no {kind!r}: it has {', '.join(source.kinds)}."
      + names.did_you_mean(kind, source.kinds)
      + (f" {', '.join(having)} have {kind}." if having else "")
    )
  if limit < 0:
    raise ValueError(f"limit={limit} must be a number of rows, or 0 for all.")
  given = {
    "data_dir": data_dir, "path": path, "validation_path": validation_path,
    "ignore": ignore, "train_folds": train_folds,
  } | (stated or {})  # fmt: skip
  _check_options(name, [o for o, v in given.items() if v] + list(generator))
  split = {
    "seed": seed if split_seed is None else split_seed,
    "folds": folds,
    "fold": fold,
    "train_folds": train_folds,
  }  # fmt: skip
  if name == "coffee_bar":
    loaded = coffee_bar.load(kind, seed=seed, **generator)
  elif name == "jsonl":
    if not path:
      raise ValueError("jsonl needs `path`: a .jsonl file or a directory.")
    own = {"validation_path": validation_path, "ignore": ignore}
    own["reading"] = forms.stated(**stated or {})
    with garbage.no_collection():
      loaded = jsonl_files.load(path, kind, **own, **split)
  else:
    loaded = _load_public(name, kind, data_dir, cache_dir, seed, **split)
  return _limited(loaded, limit)


def _load_public(
  name: str,
  kind: str,
  data_dir: str,
  cache_dir: str,
  run_seed: int,
  **split: Any,
) -> Splits:
  rows, counts, groups = _READERS[name](name, kind, data_dir, cache_dir)
  assigned = splits.assign_folds(
    groups, folds=split["folds"], seed=split["seed"]
  )
  loaded = splits.split_records(rows, counts=counts, assigned=assigned, **split)
  if name == "taskmaster_coffee" and kind != "labelled":
    loaded = _without_rated(loaded, set(groups))
  if name == "taskmaster_coffee" and kind == "preferences":
    loaded = weak_pairs.weak_preferences(loaded, seed=run_seed)
  return loaded


def checker(name: str) -> Checker:
  """Returns the function that checks a response to a prompt of a source.

  The function returns 0.0 or 1.0 for each name in `describe()[name].checks`,
  without the checks that do not apply to the prompt; {} if the source has none.

  Raises:
    ValueError: There is no such source.
  """
  source = _source(name)
  if name == "coffee_bar":
    return coffee_bar.check_response
  if source.checks:
    return checks.make_checker(name)
  return lambda prompt, response: {}


def _source(name: str) -> Source:
  if name not in _SOURCES:
    raise ValueError(
      f"There is no data set {name!r}: there is {', '.join(_SOURCES)}."
      + names.did_you_mean(name, _SOURCES)
    )
  return _SOURCES[name]


def _check_options(name: str, given: Sequence[str]) -> None:
  """Raises ValueError for options that this source does not use."""
  options = _SOURCES[name].options
  for option in given:
    if option not in options:
      having = [other for other, s in _SOURCES.items() if option in s.options]
      raise ValueError(
        f"{name} has no option {option!r}: it has {', '.join(options)}."
        + (
          f" Did you mean the data set {' or '.join(having)}?"
          if having
          else names.did_you_mean(option, options)
        )
      )


def _without_rated(loaded: Splits, rated: Collection[str]) -> Splits:
  """Removes dialogs that begin like a rated one from the training set.

  A model trained on dialogs has then seen none of the rated turns of any fold,
  so the reward models of all folds can start from one anchor.
  """
  train = [row for row in loaded.train if row.group not in rated]
  counts = loaded.counts | {"begin_as_rated": len(loaded.train) - len(train)}
  return dataclasses.replace(loaded, train=train, counts=counts)


def _limited(loaded: Splits, limit: int) -> Splits:
  over = len(loaded.train) - limit
  if not limit or over <= 0:
    return loaded
  counts = loaded.counts | {"over_limit": over}
  return dataclasses.replace(loaded, train=loaded.train[:limit], counts=counts)


# Each reader returns the records, their counts, and the groups whose folds hold
# for all kinds of the source.
_Rows = tuple[Sequence[Record], dict[str, int], Sequence[str]]


def _read_taskmaster(
  name: str, kind: str, data_dir: str, cache_dir: str
) -> _Rows:
  # The folds are those of the rated turns, so that a reward model is evaluated
  # on the same rows whatever the other stages read. Dialogs of the same groups
  # are in the same folds; see also `_without_rated`.
  reward = _upstream(name, "reward", data_dir, cache_dir)
  labelled, counts = taskmaster.reward_labelled(reward, name)
  groups = [row.group for row in labelled]
  if kind == "labelled":
    return labelled, counts, groups
  if name == "taskmaster_ticketing":
    return *taskmaster.reward_prompts(reward, name), groups
  dialogs = _upstream(name, "dialogs", data_dir, cache_dir)
  if kind in ("demonstrations", "preferences"):
    return *taskmaster.dialog_demonstrations(dialogs), groups
  return *taskmaster.dialog_prompts(dialogs), groups


def _read_hh(name: str, kind: str, data_dir: str, cache_dir: str) -> _Rows:
  # Upstream's train and test share first turns, so their union is split again.
  # A local copy may hold only one of the two; what was read is counted.
  make = hh.preferences if kind == "preferences" else hh.prompts
  rows: list[Record] = []
  counts: Counter[str] = Counter()
  for part in _local_parts(name, data_dir):
    upstream = _upstream(name, part, data_dir, cache_dir)
    records, tally = make(upstream, f"{name}/{part}")
    rows += records
    counts.update(tally)
    counts[f"{part}_rows"] = len(upstream)
  return rows, dict(counts), [row.group for row in rows]


def _local_parts(name: str, data_dir: str) -> list[str]:
  """Returns the parts with a local copy; all if they are downloaded."""
  from perl_jax.data.sources import upstream
  from perl_jax.data.sources.upstream import files

  parts = upstream.BUILDERS[name].PARTS
  if not data_dir:
    return list(parts)

  def is_there(part: str) -> bool:
    try:
      return all(files.local_path(data_dir, file) for file in parts[part])
    except FileNotFoundError:
      return False

  # If there is none, reading the first raises an error that names the file.
  return [part for part in parts if is_there(part)] or list(parts)[:1]


def _upstream(
  name: str, part: str, data_dir: str, cache_dir: str
) -> list[dict[str, Any]]:
  # Imported here, since TFDS takes seconds and other sources do not need it.
  from perl_jax.data.sources import upstream

  return upstream.read_rows(name, part, data_dir, cache_dir)


_READERS = {
  "taskmaster_coffee": _read_taskmaster,
  "taskmaster_ticketing": _read_taskmaster,
  "hh_rlhf": _read_hh,
}

"""Splits into training and validation rows without overlap between them.

Rows of one conversation overlap almost completely (one row's context plus
response is the beginning of the next row's context), so rows are split by the
`group` of their record and never by row or by file. The folds are those of
scikit-learn's `GroupKFold(shuffle=True)` over the distinct groups. They depend
only on the set of groups, `folds` and `seed`: not on the order of the rows, how
often a group occurs, or which kind of record was made from the rows. A
validation row of one stage is therefore in no other stage's training set, as
long as both stages have the same groups. If two stages read two files
(dialogues and rated turns), pass the folds of one as `fixed` for the other.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from perl_jax.data.records import Message, Record, Splits

_PUNCTUATION = re.compile(r"[^\w\s]|_")
# The same for ASCII, which takes a tenth of the time; white space is a space.
_ASCII = {i: None for i in range(128) if _PUNCTUATION.match(chr(i))}
_ASCII |= {i: " " for i in range(128) if chr(i).isspace()}


def text_key(text: str) -> str:
  """Returns `text` in lower case, without punctuation or repeated spaces."""
  text = text.lower()
  if text.isascii():
    text = text.translate(_ASCII)
    if "  " not in text:
      return text.strip(" ")
  else:
    text = _PUNCTUATION.sub("", text)
  return " ".join(text.split())


def first_user_turn(messages: Iterable[Message]) -> str:
  """Returns the `text_key` of the first user message, or "" without one."""
  for message in messages:
    if message["role"] == "user":
      return text_key(message["content"])
  return ""


def assign_folds(
  groups: Iterable[str],
  *,
  folds: int,
  seed: int,
  fixed: Mapping[str, int] | None = None,
) -> dict[str, int]:
  """Assigns to each distinct group the fold in which it is held out.

  Args:
    groups: Group keys, repeats allowed, in any order.
    folds: Number of folds, at least 2.
    seed: Seed of the shuffle; the same seed and groups give the same folds.
    fixed: Folds that some groups already have (in another data set). They keep
      them, and only the other groups are divided among the folds.

  Returns:
    The fold, 0 to `folds - 1`, of each distinct group.

  Raises:
    ValueError: No groups, `folds` below 2, fewer groups than folds, or a fold
      in `fixed` that is out of range.
  """
  unique = set(groups)
  if folds < 2:
    raise ValueError(f"folds={folds}: a split needs at least 2 folds.")
  if not unique:
    raise ValueError("The data set is empty: there is no row to split.")
  fixed = fixed or {}
  wrong = {key: value for key, value in fixed.items() if not 0 <= value < folds}
  if wrong:
    key, value = next(iter(wrong.items()))
    raise ValueError(
      f"Group {key!r} was assigned fold {value}, but there are {folds} folds:"
      " use the same number of folds for both data sets."
    )
  assigned = {key: fixed[key] for key in unique if key in fixed}
  free = sorted(unique - assigned.keys())
  if not assigned and len(free) < folds:
    raise ValueError(
      f"{len(free)} distinct group(s) cannot be divided into {folds} folds"
      f" (the first is {free[0]!r}): lower `folds`, or add rows that begin"
      " differently."
    )
  if assigned and len(free) < folds:
    # Too few to divide, so they are assigned in turn without a shuffle.
    return assigned | {key: n % folds for n, key in enumerate(free)}
  rows = np.arange(len(free))
  # Imported here: it takes seconds, and most commands split nothing.
  from sklearn.model_selection import GroupKFold

  splitter = GroupKFold(folds, shuffle=True, random_state=seed)
  for fold, (_, held_out) in enumerate(splitter.split(rows, groups=rows)):
    assigned |= {free[row]: fold for row in held_out}
  return assigned


def split_records(
  records: Sequence[Record],
  *,
  folds: int,
  fold: int,
  seed: int,
  train_folds: Collection[int] = (),
  counts: Mapping[str, int] | None = None,
  assigned: Mapping[str, int] | None = None,
) -> Splits:
  """Splits records by group, and holds out fold number `fold` for validation.

  Args:
    records: Rows of one kind; their order is kept on both sides.
    folds: Number of folds, at least 2.
    fold: The validation fold, 0 to `folds - 1`.
    seed: Seed of the fold assignment.
    train_folds: Folds of the training rows; () is all that are not held out.
      The rows of others are left out, and counted as `in_other_folds`.
    counts: Counts of the rows, which become those of the result.
    assigned: Folds of groups in another data set that this split must agree
      with; `fixed` of `assign_folds`.

  Raises:
    ValueError: `fold` or one of `train_folds` is out of range, a fold is on
      both sides, a side has no rows, or `assign_folds` raises it.
  """
  _check_fold("fold", fold, folds)
  if fold in train_folds:
    raise ValueError(
      f"fold={fold} is held out, and in train_folds={tuple(train_folds)}."
    )
  fold_of = assign_folds(
    (record.group for record in records), folds=folds, seed=seed, fixed=assigned
  )
  train = [r for r in records if fold_of[r.group] != fold]
  train, other = of_folds(train, fold_of, train_folds, folds)
  validation = [r for r in records if fold_of[r.group] == fold]
  for name, side in (("training", train), ("validation", validation)):
    if not side:
      raise ValueError(
        f"Fold {fold} of {folds} leaves no {name} rows: choose another fold"
        " or fewer folds."
      )
  return Splits(train, validation, dict(counts or {}) | other)


def of_folds(
  rows: Sequence[Record],
  assigned: Mapping[str, int],
  kept: Collection[int],
  folds: int,
) -> tuple[Sequence[Record], dict[str, int]]:
  """Keeps the rows of some folds.

  Args:
    rows: Rows of one kind.
    assigned: Fold of each group.
    kept: The folds to keep; () keeps all.
    folds: Number of folds.

  Returns:
    The rows, and `in_other_folds`, the number of others, if any were asked for.

  Raises:
    ValueError: One of `kept` is out of range.
  """
  if not kept:
    return rows, {}
  for fold in kept:
    _check_fold("train_folds", fold, folds)
  found = [row for row in rows if assigned[row.group] in kept]
  return found, {"in_other_folds": len(rows) - len(found)}


def _check_fold(name: str, fold: int, folds: int) -> None:
  if not 0 <= fold < folds:
    raise ValueError(
      f"{name}={fold} is out of range: with folds={folds} it is one of 0 to"
      f" {folds - 1}."
    )

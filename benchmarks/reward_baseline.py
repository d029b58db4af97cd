"""A reward model without a language model: bag of words, cross-validated.

  python -m benchmarks.reward_baseline --data taskmaster_coffee \
      --data_dir PATH --out runs/baseline/coffee.jsonl

Two classifiers are fitted on the folds that reward models are trained on, and
their logits averaged: a logistic regression on TF-IDF vectors of the response
and of the end of the context, and boosted trees on hand-made features beside
the same vectors, reduced by a truncated SVD. Everything, vocabularies included,
is fitted on the training rows of a fold. `compare_reward.py` compares a reward
model's scores with the output, row by row.
"""

import argparse
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from perl_jax import classification, files
from perl_jax.data.records import Labelled, Message
from perl_jax.data.sources import registry

TAIL = 4  # messages at the end of the context
COMPONENTS = 24  # of each reduced TF-IDF vector, for the trees
SHOWN = ("auroc", "balanced_accuracy", "log_loss", "accuracy", "base_rate")


_WORD = re.compile(r"[^\W_]+")
_NUMBERS = {
  "a": "1", "an": "1", "one": "1", "two": "2", "three": "3", "four": "4",
  "five": "5", "six": "6",
}  # fmt: skip


def parse_call(text: str) -> tuple[str, Any] | None:
  """(name, arguments) if the text is a JSON object of one entry, else None."""
  try:
    value = json.loads(text)
  except (json.JSONDecodeError, RecursionError):
    return None
  if not isinstance(value, dict) or len(value) != 1:
    return None
  return next(iter(value.items()))


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
  """(key, text) of each scalar inside a JSON value."""
  if isinstance(value, dict):
    for name, entry in value.items():
      yield from leaves(entry, name)
  elif isinstance(value, list):
    for entry in value:
      yield from leaves(entry, key)
  else:
    yield key, str(value)


def words(text: str) -> list[str]:
  """Lower-cased words and numbers of a text."""
  return _WORD.findall(text.lower())


def share_of(inner: Sequence[Any], outer: Sequence[Any]) -> float:
  """Share of `inner` that occurs in `outer`; -1 if `inner` is empty."""
  found = set(outer)
  return sum(x in found for x in inner) / len(inner) if inner else -1.0


def _pairs(tokens: Sequence[str]) -> list[tuple[str, str]]:
  return list(itertools.pairwise(tokens))


def _last(messages: Sequence[Message], role: str) -> str:
  found = [m["content"] for m in messages if m["role"] == role]
  return found[-1] if found else ""


def _name(text: str) -> str:
  """Kind of a message: the name of its API call, or "text"."""
  call = parse_call(text)
  return f"call {call[0]}" if call else "text"


def hand_features(row: Labelled) -> dict[str, float | str]:
  """Named features of one row; strings are categories."""
  prompt, response = row.prompt, row.response
  last = prompt[-1] if prompt else {"role": "none", "content": ""}
  mine = [m["content"] for m in prompt if m["role"] == "assistant"]
  kind, before = _name(response), _name(mine[-1]) if mine else "none"
  answer = words(response)
  context = words(" ".join(m["content"] for m in prompt))
  user = words(" ".join(m["content"] for m in prompt if m["role"] == "user"))
  tool = _last(prompt, "tool")
  features = {
    "kind": kind,
    "last role": last["role"],
    "previous": before,
    "previous, kind": f"{before} > {kind}",
    "last role, kind": f"{last['role']} > {kind}",
    "is call": float(kind != "text"),
    "starts as call": float(response.startswith("{")),
    "asks": float(response.rstrip().endswith("?")),
    "characters": float(np.log1p(len(response))),
    "words": float(np.log1p(len(answer))),
    "context words": float(np.log1p(len(context))),
    "messages": float(len(prompt)),
    "user turns": float(sum(m["role"] == "user" for m in prompt)),
    "last words": float(np.log1p(len(words(last["content"])))),
    "repeats": float(mine.count(response)),
    "same kind before": float(sum(_name(text) == kind for text in mine)),
    "nothing found": float('"empty"' in tool or ": {}" in tool),
    "words in context": share_of(answer, context),
    "words said by user": share_of(answer, user),
    "words in last": share_of(answer, words(last["content"])),
    "pairs in context": share_of(_pairs(answer), _pairs(context)),
    "last user's words": share_of(words(_last(prompt, "user")), answer),
    "tool's words": share_of(words(tool), answer),
  }
  return features | _call_features(row, context, user)


def _call_features(
  row: Labelled, context: list[str], user: list[str]
) -> dict[str, float]:
  """Features of an API call: how its arguments relate to the context."""
  call = parse_call(row.response)
  if call is None:
    return {}
  arguments = list(leaves(call[1]))
  ids = [text for key, text in arguments if key.endswith("_id")]
  texts = [text for key, text in arguments if not key.endswith("_id")]
  answers = [
    parse_call(m["content"]) for m in row.prompt if m["role"] == "tool"
  ]
  shown = {
    text for answer in answers if answer for _, text in leaves(answer[1])
  }
  counted = [text for key, text in arguments if key == "quantity"]
  numbers = Counter(_NUMBERS.get(word, word) for word in user)
  spoken = [word for text in texts for word in words(text)]
  return {
    "arguments": float(len(arguments)),
    "ids": float(len(ids)),
    "ids not shown": float(sum(text not in shown for text in ids)),
    "texts not shown": float(sum(text not in shown for text in texts)),
    "argument words by user": share_of(spoken, user),
    "argument words in context": share_of(spoken, context),
    "quantity by user": share_of(counted, list(numbers)),
    "quantity above 1": float(any(text != "1" for text in counted)),
    "longest argument": float(
      max((len(words(text)) for text in texts), default=0)
    ),
  } | {f"has {key}": 1.0 for key, _ in arguments}


def tail_text(row: Labelled) -> str:
  """The last messages of the context, each opened by its role."""
  return "\n".join(
    f"{m['role']}_says {m['content']}" for m in row.prompt[-TAIL:]
  )


class Features:
  """Feature vectors of rows, fitted on training rows."""

  def __init__(self, train: Sequence[Labelled], seed: int):
    self._texts = (
      TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
      TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True),
    )
    self._hand = DictVectorizer(sparse=False)
    self._hand.fit(map(hand_features, train))
    self._reduce = []
    for vectorizer, texts in zip(self._texts, _texts(train), strict=True):
      found = vectorizer.fit_transform(texts)
      size = min(COMPONENTS, min(found.shape) - 1)
      self._reduce.append(TruncatedSVD(size, random_state=seed).fit(found))

  def __call__(self, rows: Sequence[Labelled]):
    """(sparse vectors for the linear model, dense ones for the trees)."""
    texts = [v.transform(t) for v, t in zip(self._texts, _texts(rows))]
    reduced = [svd.transform(t) for svd, t in zip(self._reduce, texts)]
    hand = self._hand.transform(map(hand_features, rows))
    return scipy.sparse.hstack(texts).tocsr(), np.hstack([hand, *reduced])


def _texts(rows: Sequence[Labelled]) -> tuple[list[str], list[str]]:
  """Texts of the two TF-IDF vectors: responses, ends of contexts."""
  return [row.response for row in rows], [tail_text(row) for row in rows]


class Baseline:
  """Both classifiers, fitted on the rows that it is made with."""

  # One thread: the same bits on any machine, and nothing here is large.
  @threadpool_limits.wrap(1)
  def __init__(self, train: Sequence[Labelled], seed: int):
    self._features = Features(train, seed)
    labels = np.array([row.label for row in train])
    texts, dense = self._features(train)
    self._linear = LogisticRegression(
      C=1.0, solver="liblinear", max_iter=1000, random_state=seed
    ).fit(texts, labels)
    self._trees = HistGradientBoostingClassifier(
      max_iter=120,
      learning_rate=0.05,
      max_leaf_nodes=8,
      min_samples_leaf=20,
      l2_regularization=1.0,
      early_stopping=False,
      random_state=seed,
    ).fit(dense, labels)

  @threadpool_limits.wrap(1)
  def logits(self, rows: Sequence[Labelled]) -> np.ndarray:
    """The mean of both classifiers' logits of label 1, `[n]`."""
    texts, dense = self._features(rows)
    linear = self._linear.decision_function(texts)
    return (linear + self._trees.decision_function(dense)) / 2


def cross_validate(
  data: str, *, folds: int, seed: int, **options: Any
) -> list[dict[str, Any]]:
  """Scores every row by a baseline that was fitted on the other folds.

  Args:
    data: Name of a source with labelled rows.
    folds: Number of folds of the groups.
    seed: Seed of the folds and of the fit. To compare a reward model on the
      same folds, it has to be its `data.split_seed`.
    **options: Further arguments of `sources.load`.

  Returns:
    {"id", "group", "fold", "score", "label"} for each row, by fold.
  """
  found = []
  for fold in range(folds):
    splits = registry.load(
      data, "labelled", seed=seed, folds=folds, fold=fold, **options
    )
    baseline = Baseline(splits.train, seed)
    scores = baseline.logits(splits.validation)
    found += [
      {
        "id": row.id,
        "group": row.group,
        "fold": fold,
        "score": float(score),
        "label": row.label,
      }
      for row, score in zip(splits.validation, scores, strict=True)
    ]
  return found


def quality(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
  """`classification.binary_metrics` of rows."""
  return classification.binary_metrics(
    np.array([row["score"] for row in rows]),
    np.array([row["label"] for row in rows]),
  )


def table(rows: Sequence[dict[str, Any]]) -> str:
  """A Markdown table: each fold, their mean, and all rows pooled."""
  lines = [
    "| fold | " + " | ".join(SHOWN) + " | rows |",
    "|---" * (len(SHOWN) + 2) + "|",
  ]

  def line(name, found, n):
    cells = [f"{found[key]:.3f}" for key in SHOWN]
    lines.append(f"| {name} | " + " | ".join(cells) + f" | {n} |")

  found = []
  for fold in sorted({row["fold"] for row in rows}):
    part = [row for row in rows if row["fold"] == fold]
    found.append(quality(part))
    line(fold, found[-1], len(part))
  mean = {key: np.mean([f[key] for f in found]) for key in SHOWN}
  line("mean of folds", mean, len(rows))
  line("pooled", quality(rows), len(rows))
  return "\n".join(lines)


def main() -> None:
  """Scores all rows of a data set, prints a table, writes the rows."""
  command_line(
    __doc__, cross_validate, table, data="taskmaster_coffee", unit="rows"
  )


def command_line(
  description: str,
  cross_validate: Callable[..., list[dict[str, Any]]],
  table: Callable[[list[dict[str, Any]]], str],
  *,
  data: str,
  unit: str,
) -> None:
  """The command of a baseline: scores all rows, prints a table, writes them.

  Args:
    description: Docstring of the benchmark, whose first line `--help` shows.
    cross_validate: `cross_validate(data, folds=, seed=, **options)` scores
      every row by a baseline that was fitted on the other folds.
    table: Makes Markdown of the scored rows.
    data: Name of the source that is the default.
    unit: What a row is called, in the plural.
  """
  parser = argparse.ArgumentParser(description=description.split("\n")[0])
  parser.add_argument("--data", default=data)
  parser.add_argument("--data_dir", default="")
  parser.add_argument("--cache_dir", default="")
  parser.add_argument("--path", default="", help="of --data=jsonl")
  parser.add_argument("--folds", type=int, default=5)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=Path, required=True)
  flags = vars(parser.parse_args())
  out = flags.pop("out")
  rows = cross_validate(flags.pop("data"), **flags)
  out.parent.mkdir(parents=True, exist_ok=True)
  files.write_jsonl(out, rows)
  print(table(rows))
  print(f"\n{len(rows)} {unit} in {out}")


if __name__ == "__main__":
  main()

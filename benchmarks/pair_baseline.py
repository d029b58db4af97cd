"""A reward model of pairs without a language model: bag of words.

  python -m benchmarks.pair_baseline --data_dir DIR --out runs/baseline/hh.jsonl

A logistic regression on the difference of the TF-IDF vectors of the replies,
chosen less rejected, without an intercept: P(a is better than b) =
sigmoid(w (x_a - x_b)), which is a reward w x with the loss that reward models
have. It is fitted on the folds that they are trained on, vocabulary included,
and scores the held-out pairs of each; a line of the output has the reward of
either reply.

It is a judge of policies, too, of another kind than their reward models:

  PAIR_BASELINE_DATA=DIR python -m perl_jax.main \
      --config=configs/judge.py:hh_rlhf --config.data.dir=DIR \
      --config.judges=benchmarks.pair_baseline:judge --workdir=runs/judge \
      --config.policy.init=runs/rl
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks import reward_baseline
from perl_jax import classification
from perl_jax.data.records import Preference
from perl_jax.data.sources import registry


class Baseline:
  """A linear reward, fitted on the pairs that it is made with."""

  # One thread: the same bits on any machine, and nothing here is large.
  @threadpool_limits.wrap(1)
  def __init__(self, train: Sequence[Preference], seed: int):
    self._texts = TfidfVectorizer(ngram_range=(1, 2))
    chosen, rejected = _replies(train)
    self._texts.fit([*chosen, *rejected])
    found = self._texts.transform(chosen) - self._texts.transform(rejected)
    # Both ways round, else there would be one class.
    sign = np.where(np.arange(len(train)) % 2, 1.0, -1.0)
    self._linear = LogisticRegression(
      C=1.0, fit_intercept=False, max_iter=1000, random_state=seed
    ).fit(found.multiply(sign[:, None]).tocsr(), sign > 0)

  def rewards(self, rows: Sequence[Preference]) -> tuple[np.ndarray, ...]:
    """Rewards of the chosen and of the rejected replies, `[n]` each."""
    return tuple(self.score(texts) for texts in _replies(rows))

  @threadpool_limits.wrap(1)
  def score(self, texts: Sequence[str]) -> np.ndarray:
    """Rewards of replies, `[n]`."""
    return self._linear.decision_function(self._texts.transform(texts))


def _replies(rows: Sequence[Preference]) -> tuple[list[str], list[str]]:
  return [row.chosen for row in rows], [row.rejected for row in rows]


def cross_validate(
  data: str, *, folds: int, seed: int, **options: Any
) -> list[dict[str, Any]]:
  """Scores every pair by a baseline that was fitted on the other folds.

  Args:
    data: Name of a source with pairs.
    folds: Number of folds of the groups.
    seed: Seed of the folds and of the fit. To compare a reward model on the
      same folds, it has to be its `data.split_seed`.
    **options: Further arguments of `sources.load`.

  Returns:
    {"id", "group", "fold", "chosen", "rejected"} for each row, by fold.
  """
  found = []
  for fold in range(folds):
    splits = registry.load(
      data, "preferences", seed=seed, folds=folds, fold=fold, **options
    )
    scored = Baseline(splits.train, seed).rewards(splits.validation)
    found += [
      {
        "id": row.id,
        "group": row.group,
        "fold": fold,
        "chosen": float(chosen),
        "rejected": float(rejected),
      }
      for row, chosen, rejected in zip(splits.validation, *scored, strict=True)
    ]
  return found


# The environment variable with the directory of the pairs for `judge`.
DATA = "PAIR_BASELINE_DATA"
# Folds of hh-rlhf that it is fitted on: not those of the policies' reward
# models, and not the one that is held out.
JUDGES_BY = (4,)


def judge(
  prompts: Sequence[Any], responses: Sequence[str], rows: Sequence[Any]
) -> list[float]:
  """Rewards of responses by the words of the pairs of `JUDGES_BY`."""
  return _judge(os.environ.get(DATA, "")).score(responses).tolist()


@functools.cache
def _judge(data_dir: str) -> Baseline:
  splits = registry.load(
    "hh_rlhf", "preferences", seed=0, train_folds=JUDGES_BY, data_dir=data_dir
  )
  return Baseline(splits.train, seed=0)


def table(rows: Sequence[dict[str, Any]]) -> str:
  """A Markdown table: each fold, and all rows with the Wilson interval."""
  lines = ["| fold | accuracy | log loss | pairs |", "|---|---|---|---|"]

  def line(name, part):
    found = classification.preference_metrics(
      np.array([row["chosen"] for row in part]),
      np.array([row["rejected"] for row in part]),
    )
    lines.append(
      f"| {name} | {found['accuracy']:.3f} ({found['accuracy_low']:.3f} to"
      f" {found['accuracy_high']:.3f}) | {found['log_loss']:.3f} |"
      f" {len(part)} |"
    )

  for fold in sorted({row["fold"] for row in rows}):
    line(fold, [row for row in rows if row["fold"] == fold])
  line("all", rows)
  return "\n".join(lines)


def main() -> None:
  """Scores all pairs of a data set, prints a table, writes the rows."""
  reward_baseline.command_line(
    __doc__, cross_validate, table, data="hh_rlhf", unit="pairs"
  )


if __name__ == "__main__":
  main()

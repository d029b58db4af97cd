"""The figures of a reward model agree with its metrics."""

import re

import pytest

from perl_jax import classification
from perl_jax.reporting import scores
from tests.reporting import runs


@pytest.mark.parametrize("pairs", [True, False])
def test_figures_agree_with_the_metrics(pairs):
  rows = runs.scores(pairs)
  if pairs:
    measured = classification.preference_metrics(
      [row["chosen"] for row in rows], [row["rejected"] for row in rows]
    )
  else:
    measured = classification.binary_metrics(
      [row["score"] for row in rows], [row["label"] for row in rows]
    )
  drawn = {figure.title: figure for figure in scores.reward_model_figures(rows)}
  assert set(drawn) == {"ROC curve", "Calibration", "Scores"}
  legend = [text for figure in drawn.values() for text, *_ in figure.legend]
  assert f"AUROC {measured['auroc']:.3f}" in legend
  error = measured["calibration_error"]
  assert f"calibration error {error:.3f}" in legend
  counts = re.findall(
    r"observed, (\d+) (?:pairs|responses)", drawn["Calibration"].alt
  )
  assert sum(map(int, counts)) == len(rows)


def test_a_single_class_has_no_roc_curve():
  rows = [{"score": 0.1 * i, "label": 1} for i in range(9)]
  found = [figure.title for figure in scores.reward_model_figures(rows)]
  assert found == ["Calibration", "Scores"]


def test_rows_without_scores_have_no_figures():
  assert scores.reward_model_figures([]) == []
  assert scores.reward_model_figures([{"chosen": 1.0}]) == []

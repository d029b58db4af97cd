"""A linear classifier on features of a frozen model: where a head begins.

A head of zeros has to find its weights while the adapter changes what it reads.
Fitted to the features of the frozen model first, it begins with what that model
knows already, and the adapter learns the rest.

Reference: Kumar et al. 2022, Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution, arXiv:2202.10054 (linear probing, then
fine-tuning).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg, special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold

FOLDS = 5
# Values of C that are tried, from the strongest penalty on.
STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-8, 1))
_ITERATIONS = 100


class Probe(NamedTuple):
  """A fitted classifier: its score of features x is x . weights + bias.

  Attributes:
    weights: `[F]`, float32.
    bias: 0 for pairs, in whose difference it cancels.
    strength: The entry of `STRENGTHS` that was chosen.
    log_loss: Cross-validated log loss with it, in nats.
    accuracy: Cross-validated share of rows that it has right.
  """

  weights: np.ndarray
  bias: float
  strength: float
  log_loss: float
  accuracy: float


def fit(
  features: np.ndarray, labels: np.ndarray | None, groups: Sequence[str]
) -> Probe | None:
  """Logistic regression with an L2 penalty that cross-validation chooses.

  It minimises, over n rows with the features x_i and the labels y_i,

    sum_i log(1 + exp(-(2 y_i - 1) (x_i . w + b))) + s^2 |w|^2 / (2 C)

  where s^2 is the mean variance of a feature, so that the strengths C mean the
  same for models of any scale. C is the one of `STRENGTHS` with the least log
  loss on held-out groups of rows.

  Args:
    features: `[n, F]`; of a pair those of the chosen response less those of the
      rejected one.
    labels: Whether a response is good, `[n]`, bool; None for pairs.
    groups: Rows of one group are held out together, `[n]`.

  Returns:
    The classifier, or None where the rows do not tell: there is one group, or
    one label, be it in the rows that are left when a fold is held out.
  """
  folds = min(FOLDS, len(set(groups)))
  if folds < 2:
    return None
  pairs = labels is None
  x = np.asarray(features, np.float64)
  centre = np.zeros(x.shape[1]) if pairs else x.mean(axis=0)
  scale = np.sqrt(np.mean((x - centre) ** 2)) or 1.0
  x, axes = _narrow((x - centre) / scale)
  y = np.ones(len(x), bool) if pairs else np.asarray(labels, bool)
  splits = list(GroupKFold(folds).split(x, groups=np.asarray(groups)))
  kept = [_turned(x[train], y[train], pairs)[1] for train, _ in splits]
  if any(len(set(labels)) < 2 for labels in kept):
    return None
  strength, loss, scores = _choose(x, y, splits, pairs)
  model = _fit(_new(pairs), x, y, strength, pairs)
  weights = axes @ model.coef_[0] / scale
  return Probe(
    weights.astype(np.float32),
    0.0 if pairs else float(model.intercept_[0] - centre @ weights),
    strength,
    loss,
    float(np.mean((scores > 0) == y)),
  )


def _narrow(x):
  """(z `[n, k]`, axes `[F, k]`) with x = z axes^T and k = min(n, F).

  The weights are a sum of rows, so that n numbers say as much as F do.
  """
  n, count = x.shape
  if count <= n:
    return x, np.eye(count)
  axes, rows = linalg.qr(x.T, mode="economic")
  return rows.T, axes


def _choose(x, y, splits, pairs):
  """(C, log loss, scores `[n]`) of the best on held-out rows.

  From strong penalties to weak ones, until two of them are worse.
  """
  best, worse = None, 0
  models = [_new(pairs) for _ in splits]
  for strength in STRENGTHS:
    scores = np.empty(len(x))
    for model, (train, test) in zip(models, splits, strict=True):
      fitted = _fit(model, x[train], y[train], strength, pairs)
      scores[test] = fitted.decision_function(x[test])
    loss = float(log_loss(y, special.expit(scores), labels=[False, True]))
    if best is None or loss < best[1]:
      best, worse = (strength, loss, scores), 0
    else:
      worse += 1
    if worse == 2:
      break
  return best


def _new(pairs):
  return LogisticRegression(
    solver="newton-cholesky",
    fit_intercept=not pairs,
    max_iter=_ITERATIONS,
    warm_start=True,  # from the weights of the penalty before
  )


def _fit(model, x, y, strength, pairs):
  return model.set_params(C=strength).fit(*_turned(x, y, pairs))


def _turned(x, y, pairs):
  """Rows with two labels: every other pair the other way round.

  Without an intercept that is the same loss.
  """
  if not pairs:
    return x, y
  turned = np.arange(len(x)) % 2 == 1
  return np.where(turned[:, None], -x, x), ~turned

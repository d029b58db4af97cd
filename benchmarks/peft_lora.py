"""PEFT's config of the adapters that ours are measured beside."""

from collections.abc import Sequence
from typing import Any

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def config(task: str, rank: int, targets: Sequence[str] = ATTENTION) -> Any:
  """The config, with an alpha of twice the rank and no dropout.

  Args:
    task: "CAUSAL_LM", or "SEQ_CLS", whose head is trained too.
    rank: Rank of the adapters.
    targets: Projections that get one.
  """
  import peft

  return peft.LoraConfig(
    task_type=task,
    r=rank,
    lora_alpha=2 * rank,
    lora_dropout=0.0,
    target_modules=[*targets],
    modules_to_save=["score"] if task == "SEQ_CLS" else None,
  )

"""What None means in a config: values that depend on the backbone.

A small model that is trained from scratch bears learning rates twenty times
those of a pretrained one, and is trained whole where a pretrained one gets an
adapter. The configs leave such fields None, a command fills them in before it
does anything else, and what it filled in is in the workdir's config.json.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from perl_jax.tasks.settings import shared

# Full tuning of a pretrained model takes a tenth of the learning rate of LoRA
# (Schulman and Thinking Machines Lab 2025, "LoRA Without Regret").
_FULL = 0.1
# A value model learns faster than the policy that it is the baseline of.
_VALUE = 1.5


class Rates(NamedTuple):
  """Learning rates of a task.

  Attributes:
    scratch: Rate of a model that begins with random weights, a few million
      parameters.
    pretrained: Rate of an adapter on a pretrained model.
  """

  scratch: float
  pretrained: float


# By task, and by task and data set where that asks for another one. What was
# tried on SmolLM2-135M: docs/your-model.md, "Learning rates".
RATES = {
  "sft": Rates(2e-3, 2e-4),
  "sft taskmaster": Rates(1e-3, 2e-4),
  "reward": Rates(2e-3, 3e-4),
  "reward taskmaster": Rates(1e-3, 3e-4),
  "rl": Rates(2e-3, 1e-4),
  "rl taskmaster": Rates(1e-3, 1e-4),
  "dpo": Rates(1e-4, 5e-5),
  "dpo coffee": Rates(3e-4, 5e-5),
}
# A value model is not told apart by the data set.
_VALUE_SCRATCH = 3e-3


@dataclasses.dataclass(frozen=True)
class Backbone:
  """What is known of a stage's backbone before it is read.

  Attributes:
    pretrained: Whether it began as somebody else's checkpoint, with whatever
      was trained on it since.
    base_dtype: Storage dtype that an adapter was trained on, which it keeps;
      None if there is none yet.
  """

  pretrained: bool = False
  base_dtype: str | None = None


def resolve(
  config: shared.Config,
  backbone: Backbone,
  platform: str,
  kept: Mapping[str, Any] | None = None,
) -> tuple[shared.Config, dict[str, Any]]:
  """A stage's config with a value in each field that was None.

  Args:
    config: Config of a stage; it is not changed.
    backbone: What the stage starts from.
    platform: "cpu", "gpu" or "tpu": where it runs. Base and arithmetic are
      bfloat16 on the latter two, float32 on a CPU.
    kept: The config of a run that goes on: it keeps the values that it began
      with, whatever this version or this machine would choose.

  Returns:
    The config, locked, and the values that were filled in by dotted name.
  """
  found: dict[str, Any] = {}
  dtype = "float32" if platform == "cpu" else "bfloat16"

  def fill(field: str, value: Any) -> None:
    if _value(config, field, "") is None:
      before = _value(kept or {}, field, None)
      found[field] = value if before is None else before

  fill("tuning", _tuning(config, backbone))
  tuning = found.get("tuning", config.get("tuning"))
  # What is trained whole is kept in float32.
  base = "float32" if tuning == "full" else backbone.base_dtype or dtype
  fill("base_dtype", base)
  fill("model.dtype", dtype)
  if "optimizer" in config:
    fill("optimizer.learning_rate", learning_rate(config, backbone, tuning))
    fill("value.learning_rate", _value_rate(config, backbone, tuning))
  made = config.copy_and_resolve_references()
  made.update_from_flattened_dict(found)
  return made.lock(), found


def from_scratch(config: shared.Config) -> shared.Config:
  """The config of a stage on a CPU that begins with random weights."""
  return resolve(config, Backbone(), "cpu")[0]


def learning_rate(
  config: shared.Config, backbone: Backbone, tuning: str
) -> float:
  """The learning rate of a stage that was given none."""
  names = [f"{config.task} {config.data.name.split('_')[0]}", config.task]
  rates = next(RATES[name] for name in names if name in RATES)
  if not backbone.pretrained:
    return rates.scratch
  return rates.pretrained * (_FULL if tuning == "full" else 1.0)


def _value_rate(config, backbone, tuning) -> float:
  if not backbone.pretrained:
    return _VALUE_SCRATCH
  return _VALUE * learning_rate(config, backbone, tuning)


def _tuning(config, backbone) -> str:
  """Whole for an anchor that begins with random weights, else an adapter."""
  whole = config.task == "sft" and not backbone.pretrained
  return "full" if whole else "lora"


def _value(config: Mapping[str, Any], field: str, absent: Any) -> Any:
  """The value of a dotted field, or `absent` where there is no such field."""
  part: Any = config
  for name in field.split("."):
    # What a workdir's config.json holds may be damaged.
    if not hasattr(part, "items") or name not in part:
      return absent
    part = part[name]
  return part

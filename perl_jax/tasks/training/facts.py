"""How the model of a workdir was trained, for its model card."""

from pathlib import Path
from typing import Any

from perl_jax import json_text
from perl_jax.tasks.initial import manifest
from perl_jax.tasks.training import workdir as workdir_lib


def training_facts(workdir: Path) -> dict[str, Any]:
  """Settings and results of the stage that wrote `workdir`, by name.

  Empty where `workdir` is no workdir of this package (a checkpoint of others).

  Raises:
    ValueError: A file there is damaged; names the file.
  """
  facts: dict[str, Any] = {}
  path = workdir / workdir_lib.CONFIG_FILE
  if (workdir / manifest.MODEL_FILE).exists() and path.exists():
    config = json_text.read_object(path)
    for field in ("task", "tuning", "steps", "batch_size", "beta", "loss"):
      if field in config:
        facts[field] = config[field]
    for name, section, field in (
      ("data", "data", "name"),
      ("learning_rate", "optimizer", "learning_rate"),
    ):
      fields = config.get(section)
      if not isinstance(fields, dict) or field not in fields:
        raise ValueError(
          f"{path} is damaged: it has no {section}.{field}. Restore the file."
        )
      facts[name] = fields[field]
  summary = workdir / "summary.json"
  if summary.exists():
    wanted = (
      "reward_before", "reward_after", "gold_before", "gold_after", "kl",
      "accuracy", "auroc",
    )  # fmt: skip
    found = json_text.read_object(summary)
    facts |= {name: found[name] for name in wanted if name in found}
  return facts

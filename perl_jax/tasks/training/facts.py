"""How the model of a workdir was trained, for its model card."""

from pathlib import Path
from typing import Any

from perl_jax import checkpoint, json_text
from perl_jax.tasks.initial import manifest, saved, sealed
from perl_jax.tasks.training import workdir as workdir_lib


def training_facts(workdir: Path, which: str) -> dict[str, Any]:
  """Settings and results of the stage that wrote `workdir`, by name.

  Args:
    workdir: Workdir of the stage.
    which: "best" or "last": the checkpoint whose results they are.

  Raises:
    ValueError: A file there is damaged; names the file.
  """
  return settings(workdir) | measured(workdir, which)


def settings(workdir: Path) -> dict[str, Any]:
  """Settings of the stage that wrote `workdir`, by name.

  Empty where `workdir` is no workdir of this package (a checkpoint of others).

  Raises:
    ValueError: A file there is damaged; names the file.
  """
  facts: dict[str, Any] = {}
  path = workdir / workdir_lib.CONFIG_FILE
  if (workdir / manifest.MODEL_FILE).exists() and path.exists():
    sealed.require(workdir, path.name, sealed.SUMMARY)
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
  return facts


def measured(workdir: Path, which: str) -> dict[str, Any]:
  """What was measured of a checkpoint, and of the policy before the training.

  A checkpoint that was made between two evaluations has no numbers; which one
  it is, "checkpoint" says.
  """
  if not (workdir / checkpoint.DIRECTORY).is_dir():
    return {}
  step = checkpoint.step_of(workdir, which)
  chosen = " (chosen on the rows of these numbers)" * (which == "best")
  facts: dict[str, Any] = {"checkpoint": f"{which}, step {step}{chosen}"}
  summary, evaluated = {}, {}
  if (workdir / sealed.SUMMARY).is_file():
    summary = json_text.read_object(workdir / sealed.SUMMARY)
  for found in saved.checkpoints(workdir):
    if found.step == step and found.judged:
      evaluated = found.meta.get("evaluated", {})
  for name in ("reward", "gold", "win_rate"):
    before, after = summary.get(f"{name}_before"), f"validation/{name}"
    if before is not None:
      facts[f"{name}_before"] = before
    if after in evaluated:
      facts[f"{name}_after"] = evaluated[after]
  for name in ("kl", "accuracy", "auroc"):
    if f"validation/{name}" in evaluated:
      facts[name] = evaluated[f"validation/{name}"]
  return facts

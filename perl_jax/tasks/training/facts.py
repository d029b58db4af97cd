"""How the model of a workdir was trained, for its model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perl_jax import checkpoint, json_text
from perl_jax.interop import licences, model_card
from perl_jax.tasks.initial import manifest, saved, sealed
from perl_jax.tasks.settings import paths, reward_functions
from perl_jax.tasks.training import workdir as workdir_lib

_FIELDS = (
  *("task", "tuning", "steps", "batch_size", "seed", "estimator"),
  *("samples_per_prompt", "beta", "loss"),
)


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
    facts |= {name: config[name] for name in _FIELDS if name in config}
    if config.get("task") == "rl":
      facts |= _of_rl(config)
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


def _of_rl(config: Mapping[str, Any]) -> dict[str, Any]:
  """Where the KL goes and what the reward is, by names alone.

  A card may be published: no path of this machine, and no address.
  """
  kl, reward = config.get("kl"), config.get("reward")
  facts = {}
  if isinstance(kl, dict) and "place" in kl:
    facts["kl.place"] = kl["place"]
  if not isinstance(reward, dict):
    return facts
  init = reward.get("init")
  if init:
    facts["reward model"] = licences.hub_name(init) or paths.name_of(Path(init))
  terms = reward_functions.terms_of(reward.get("fn", ""))
  if terms:
    facts["reward function"] = ", ".join(map(_function, terms))
  return facts


def _function(term: reward_functions.Term) -> str:
  weight = f"={term.weight:g}" if term.weight != 1 else ""
  if term.name.startswith(reward_functions.SERVERS):
    return f"a server{weight}"
  place, colon, function = term.name.rpartition(":")
  return f"{Path(place).name}{colon}{function}{weight}"


def measured(workdir: Path, which: str) -> dict[str, Any]:
  """What was measured of a checkpoint, and of the policy before the training.

  `NAME_low` and `NAME_high` are the ends of the 95% interval of `NAME`. A
  checkpoint that was made between two evaluations has no numbers; which one
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
      facts |= _with_ends(f"{name}_after", after, evaluated)
  for name in ("kl", "accuracy", "auroc", "loss"):
    if f"validation/{name}" in evaluated:
      facts |= _with_ends(name, f"validation/{name}", evaluated)
  return facts


def _with_ends(
  name: str, key: str, evaluated: Mapping[str, Any]
) -> dict[str, Any]:
  """A number and the ends of its interval, NAME_low and NAME_high, if any."""
  return {
    f"{name}{end}": evaluated[f"{key}{end}"]
    for end in ("", *model_card.ENDS)
    if f"{key}{end}" in evaluated
  }

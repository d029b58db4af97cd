"""Which fields of a config may change when a run goes on, and when.

One table, `RULES`. A field that is in it does not change what is learned, or is
checked otherwise; all others are refused.
"""

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from perl_jax.tasks.initial import saved, sealed
from perl_jax.tasks.settings import members, paths
from perl_jax.tasks.training import nonfinite

ABSENT = "(absent)"
SUMMARY = sealed.SUMMARY
# In the metadata of a checkpoint: digests of what the run was made from.
ENTRY = "stands_on"
# The same of an evaluation, which has no checkpoint.
STANDS_ON = "stands_on.json"


class Change(NamedTuple):
  """A field of a stage that has another value than before.

  Attributes:
    field: Dotted name below the config of the stage, "lora.rank".
    before: Value that the workdir was made with.
    now: Value of the command.
    config: The command's config of the stage.
    workdir: Workdir of the stage.
    piped: Whether it is a stage of a pipeline, or the pipeline itself.
  """

  field: str
  before: Any
  now: Any
  config: Mapping[str, Any]
  workdir: Path
  piped: bool

  @property
  def saved(self) -> list[saved.Saved]:
    """The checkpoints of the stage."""
    return saved.checkpoints(self.workdir)


@dataclasses.dataclass(frozen=True)
class Rule:
  """Fields that may change.

  Attributes:
    fields: Names below the config of a stage; one that holds others stands for
      all of them.
    effect: What the change does, for the log.
    refused: Returns why a change may not be made and how it could, or "".
  """

  fields: tuple[str, ...]
  effect: str
  refused: Callable[[Change], str] = lambda change: ""


def _optimizer(change: Change) -> str:
  if change.field == "optimizer.clip_norm" and not (
    change.before and change.now
  ):
    return _LEARNED  # without clipping, the optimiser's state is another tree
  return "" if nonfinite.is_stopped(change.workdir) else _LEARNED


def _decay(change: Change) -> str:
  adamw = change.config["optimizer"]["name"] == "adamw"
  return _LEARNED if adamw or change.now else ""


def _dropout(change: Change) -> str:
  config = change.config
  dropout = config.get("lora", {}).get("dropout", 0.0)
  # RL has no dropout: its log-probs are those of the sampler.
  if not dropout or config["task"] == "rl" or config["tuning"] == "full":
    return ""
  return (
    "each microbatch draws dropout of its own for each place in its rows"
    f" (lora.dropout={dropout}), so that others learn something else"
  )


def _steps(change: Change) -> str:
  schedule = change.config["optimizer"]["schedule"]
  made = max((s.step for s in change.saved), default=0)
  role = "reward" if change.config["task"] == "reward" else "policy"
  if change.piped and (change.workdir / SUMMARY).is_file():
    return (
      "the stage has finished, and later ones have started from it: give the"
      " pipeline another --workdir"
    )
  if schedule != "constant" and made:
    return (
      f"the {schedule} schedule falls to 0 at config.steps, so that the"
      f" {made} steps made would have had other learning rates; with"
      " --config.optimizer.schedule=constant from the beginning a run can go on"
      " to more steps. To train on from what this one has learned:"
      f" --config.{role}.init={change.workdir} and another --workdir"
    )
  if change.now <= made and change.now < change.before:
    return f"{made} steps have been made already"
  return ""


def _elsewhere(change: Change) -> str:
  if change.piped:
    return (
      "a pipeline does not read again what its finished stages were made from"
    )
  if change.saved and ENTRY in change.saved[-1].meta:
    return ""
  if (change.workdir / STANDS_ON).is_file():
    return ""
  return (
    "whether the same lies there is known only of a run with a checkpoint that"
    " has noted what it was made from"
  )


def _of_members(change: Change) -> str:
  made = len(saved.members(change.workdir))
  if made and members.number_of(change.config) == made:
    return ""
  return _LEARNED


def _judged(change: Change) -> str:
  if change.before == ABSENT or not change.config["judge"]["by"]:
    return ""
  models = str(change.before), str(change.now)
  if change.field == "judge.by" and all(
    m.startswith("reward:") for m in models
  ):
    return _elsewhere(change)
  return (
    "the win rates of a run are those of one judge; it can go on without one:"
    " --config.judge.by="
  )


# How judges of the task `judge` are asked, not what or whom.
HOW_ASKED = (
  "timeout", "endpoint.key_variable", "endpoint.parallel",
  "endpoint.request_seconds",
)  # fmt: skip
_LEARNED = "it changes what is learned"
ROUNDING = "sums are rounded otherwise than if it had stayed"
RULES = (
  Rule(
    (
      "mesh", "rollouts.layout", "rollouts.buckets", "rollouts.by_length",
      "model.remat",
      "model.scan_unroll", "model.attention", "score_microbatches",
      "eval.batch_size",
    ),
    ROUNDING,
  ),
  Rule(("microbatches", "data.pad_to_multiple_of"), ROUNDING, _dropout),
  Rule(
    (
      "fit", "log_every", "eval_every", "eval.samples", "save",
      "reward.timeout", "report_checkpoint", "conversations", "data.preview",
      "trackers", "tracking",
      "profile", "show_samples",
    ),
    "it does not change what is learned",
  ),
  Rule(
    (
      *HOW_ASKED, "endpoint.url", "judge.endpoint.url",
      *(f"judge.{field}" for field in HOW_ASKED),
    ),
    "it changes how the judge is asked",
  ),
  Rule(("judge",), "it does not change what is learned", _judged),
  Rule(
    ("best",),
    "",
    lambda change: "checkpoints have been compared by the other one",
  ),
  Rule(
    ("nonfinite", "nonfinite_limit"),
    "it is asked at a number that is not finite",
  ),
  Rule(
    (
      "optimizer.learning_rate", "optimizer.warmup_steps",
      "optimizer.clip_norm", "value.learning_rate",
    ),
    "the run was stopped at a number that is not finite",
    _optimizer,
  ),
  Rule(
    ("eval.temperature", "eval.greedy"),
    "there is no such field any more, and it had no effect",
    lambda change: "" if change.now == ABSENT else _LEARNED,
  ),
  Rule(
    ("optimizer.weight_decay",),
    "this optimizer takes none, and had none",
    _decay,
  ),
  Rule(("steps",), "the run ends there", _steps),
  Rule(
    ("members", "vary"),
    "each member is compared with what it was",
    _of_members,
  ),
  Rule(
    paths.OF_STAGES,
    "what lies there is compared with what it was",
    _elsewhere,
  ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Review:
  """What a command changes of the config that a workdir was made with.

  Attributes:
    allowed: Lines "config.field: before -> now (effect)".
    refused: Lines "config.field: before -> now", and why.
    flags: What to add to the command to go on as before.
    reopened: summary.json of a stage that has finished and now has more steps.
  """

  allowed: tuple[str, ...]
  refused: tuple[str, ...]
  flags: tuple[str, ...]
  reopened: tuple[Path, ...]


def review(
  theirs: Mapping[str, Any], mine: Mapping[str, Any], workdir: Path
) -> Review:
  """Compares the config of a workdir with that of a command.

  Args:
    theirs: Config that the workdir was made with, of a stage or of a pipeline.
    mine: Config of the command.
    workdir: The workdir.
  """
  allowed, refused, flags, reopened = [], [], [], []
  for name, before, now in differing(theirs, mine):
    change = _change(name, before, now, mine, workdir)
    if change.field in paths.OF_STAGES and _same_path(before, now):
      continue
    line = f"config.{name}: {before!r} -> {now!r}"
    rule = _rule_of(change.field)
    why = _LEARNED if rule is None else rule.refused(change)
    if not why:
      allowed.append(f"{line} ({rule.effect})")
      if change.field == "steps" and (change.workdir / SUMMARY).is_file():
        reopened.append(change.workdir / SUMMARY)
      continue
    refused.append(line if why == _LEARNED else f"{line}: {why}")
    if before != ABSENT and now != ABSENT and before is not None:
      flags.append(f"--config.{name}={_as_flag(before)}")
  return Review(*map(tuple, (allowed, refused, flags, reopened)))


def without_changeable(
  config: Mapping[str, Any], path: str = ""
) -> dict[str, Any]:
  """The config of a stage without all fields that a rule lets change.

  Args:
    config: The config, as config.json has it, or a part of it.
    path: Dotted name of the part.
  """
  found = {}
  for key, value in config.items():
    name = f"{path}.{key}" if path else key
    if _rule_of(name) is None:
      part = isinstance(value, Mapping)
      found[key] = without_changeable(value, name) if part else value
  return found


def differing(
  theirs: Any, mine: Any, path: str = ""
) -> list[tuple[str, Any, Any]]:
  """(dotted name, theirs, mine) of each field that differs."""
  if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
    found = []
    for key in sorted(set(theirs) | set(mine)):
      name = f"{path}.{key}" if path else key
      found += differing(theirs.get(key, ABSENT), mine.get(key, ABSENT), name)
    return found
  return [] if theirs == mine else [(path, theirs, mine)]


def _change(name, before, now, mine, workdir) -> Change:
  """A change as the stage sees it, which may be one of a pipeline."""
  first, _, rest = name.partition(".")
  stage = mine.get(first)
  if isinstance(stage, Mapping) and "task" in stage and rest:
    return Change(rest, before, now, stage, workdir / first, piped=True)
  piped = mine.get("task") == "pipeline"
  return Change(name, before, now, mine, workdir, piped)


def _rule_of(field: str) -> Rule | None:
  for rule in RULES:
    if any(field == end or field.startswith(f"{end}.") for end in rule.fields):
      return rule
  return None


def _same_path(first: Any, second: Any) -> bool:
  """Whether two paths are one, as a shell reads them from here."""
  if not (isinstance(first, str) and isinstance(second, str)):
    return False
  if not first or not second or "://" in first + second:
    return first.rstrip("/") == second.rstrip("/")
  return paths.absolute(first) == paths.absolute(second)


def _as_flag(value: Any) -> str:
  """A value of config.json as a flag takes it."""
  if isinstance(value, list):
    value = tuple(value)
  text = str(value)
  return shlex.quote(text) if text else "''"

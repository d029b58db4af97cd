"""Settings of the task `judge`: who judges, and between whom."""

import os
import re
from typing import NamedTuple

from perl_jax import names
from perl_jax.data.sources import registry
from perl_jax.tasks.settings import (
  config_files,
  paths,
  reward_functions,
  shared,
)
from perl_jax.tasks.settings import reward as reward_settings

EXAMPLE = """'("gold", "reward:runs/reward_other")'"""
_FORMS = (
  "a check of the data set such as gold, reward:WORKDIR, endpoint,"
  " endpoint:MODEL, package.module:function, ./FILE.py:function or the address"
  " of a server of scores"
)
ANCHOR, REFERENCE = "anchor", "reference"
SAME_ROWS = ("refuse", "warn")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What the best checkpoint of RL is kept by.
BEST = ("reward", "judge")


class Section(NamedTuple):
  """The part of a config that says who judges, and how they are asked.

  Attributes:
    path: Dotted name of the part: "config" of the task `judge`, "config.judge"
      of RL.
    field: Dotted name of the field that names judges.
    fields: The part, with `reward`, `endpoint`, `same_rows` and `timeout`.
    named: Value of the field that names judges.
  """

  path: str
  field: str
  fields: shared.Config
  named: str


def section_of(config: shared.Config) -> Section:
  """The part of a config of `judge` or of RL that is about judges."""
  if config.task == "judge":
    return Section("config", "config.judges", config, config.judges)
  part = config.judge
  return Section("config.judge", "config.judge.by", part, part.by)


def judged(config: shared.Config) -> tuple[str, ...]:
  """Workdirs that say by which rows those who are judged have learned."""
  other = config.against.init if config.task == "judge" else config.reward.init
  given = (config.policy.init, other)
  return tuple(w for w in given if w not in ("", ANCHOR, REFERENCE))


class Judge(NamedTuple):
  """A judge that the config names.

  Attributes:
    kind: "check", "reward", "endpoint" or "function".
    name: The name as the config has it.
    of: Name of the check, workdir of the reward model, model of the endpoint
      ("" for `config.endpoint.model`), or name of the function.
    label: What the metrics call it.
  """

  kind: str
  name: str
  of: str
  label: str


def judges_of(config: shared.Config) -> tuple[Judge, ...]:
  """The judges of `config.judges`, with distinct labels.

  Raises:
    ValueError: It names none, one that the data set has not, or none that
      there is.
  """
  section = section_of(config)
  field = section.field
  named = reward_functions.names_of(section.named, field, EXAMPLE)
  if not named:
    raise ValueError(f"{field} is empty: name a judge, which is {_FORMS}.")
  found = [_judge(name, config.data.name, field) for name in named]
  labels = reward_functions.distinct(judge.label for judge in found)
  return tuple(
    judge._replace(label=label)
    for judge, label in zip(found, labels, strict=True)
  )


def beside_reward(config: shared.Config) -> Judge | None:
  """The judge of an RL run, `config.judge.by`; None without one.

  Raises:
    ValueError: It names several, or none that there is.
  """
  if not config.judge.by:
    return None
  found = judges_of(config)
  if len(found) > 1:
    raise ValueError(
      f"config.judge.by={config.judge.by!r} names {len(found)} judges, and one"
      f" is asked during RL. Name it alone; {config_files.called('judge')} asks"
      " several."
    )
  return found[0]


def _judge(name: str, source: str, field: str) -> Judge:
  sources = registry.describe()
  kind, colon, rest = name.partition(":")
  if kind == "reward" and colon:
    if not rest:
      raise ValueError(
        f"{field}: 'reward:' names no workdir. Write reward:WORKDIR."
      )
    label = _letters(os.path.basename(paths.absolute(rest)))
    return Judge("reward", name, os.path.expanduser(rest), label)
  if kind == "endpoint":
    return Judge("endpoint", name, rest, _letters(f"endpoint_{rest}"))
  if colon:
    label = reward_functions.label_of(name)
    if name.startswith(reward_functions.SERVERS):
      label = "server"
    return Judge("function", name, name, label)
  checks = sources[source].checks if source in sources else ()
  if name in checks:
    return Judge("check", name, name, name)
  having = [other for other, s in sources.items() if name in s.checks]
  if having:
    its = ", ".join(checks) or "none"
    raise ValueError(
      f"{field}: {source} has no check {name!r}, which {', '.join(having)} has;"
      f" the checks of {source}: {its}. Name another judge: {_FORMS}."
    )
  hint = names.did_you_mean(name, (*checks, "endpoint"))
  raise ValueError(f"{field}: {name!r} is no judge.{hint} It must be {_FORMS}.")


def _letters(text: str) -> str:
  """A text as a label: letters, digits and single underscores."""
  return re.sub(r"\W+", "_", text).strip("_") or "judge"


def check(config: shared.Config) -> None:
  """Checks the fields that only this task has, before anything is read.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  if not config.policy.init:
    raise ValueError(
      "config.policy.init is empty: give the workdir of the policy to judge."
    )
  if not config.against.init:
    raise ValueError(
      "config.against.init is empty: give 'anchor' for what the policy was"
      " trained from, 'reference' for the responses in the data, or the workdir"
      " of another run."
    )
  against, words = config.against.init, (ANCHOR, REFERENCE)
  if against not in words and not os.path.exists(paths.absolute(against)):
    hint = names.did_you_mean(against, words)
    raise ValueError(
      f"config.against.init={against!r}: there is no such workdir, and it is"
      f" neither 'anchor' nor 'reference'.{hint}"
    )
  _check_asking(section_of(config))


def check_beside_reward(config: shared.Config) -> None:
  """Checks `config.judge` and `config.best` of RL before anything is read.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  if config.best not in BEST:
    hint = names.did_you_mean(config.best, BEST)
    raise ValueError(
      f"config.best={config.best!r}: choose one of {BEST}.{hint}"
    )
  if beside_reward(config) is None and config.best == "judge":
    raise ValueError(
      "config.best='judge', and config.judge.by is empty: name a judge, which"
      f" is {_FORMS}."
    )
  _check_asking(section_of(config))


def _check_asking(section: Section) -> None:
  """Checks the fields that say how judges are read and asked."""
  same_rows = section.fields.same_rows
  if same_rows not in SAME_ROWS:
    raise ValueError(
      f"{section.path}.same_rows={same_rows!r}: choose one of {SAME_ROWS}."
    )
  name, where = section.fields.endpoint.key_variable, f"{section.path}.endpoint"
  if name and not _VARIABLE.fullmatch(name):
    # It is not shown: somebody may have written the key itself here.
    raise ValueError(
      f"{where}.key_variable is no name of an environment variable. Give the"
      " NAME of the one that holds the key, such as OPENAI_API_KEY, and its"
      " value to the shell: export NAME=..."
    )
  reward_settings.check_reading(section.fields.reward, f"{section.path}.reward")

"""Settings of the task `judge`: who judges, and between whom."""

import os
import re
from typing import NamedTuple

from perl_jax import names
from perl_jax.data.sources import registry
from perl_jax.tasks.settings import paths, reward_functions, shared

FIELD = "config.judges"
_EXAMPLE = """'("gold", "reward:runs/reward_other")'"""
_FORMS = (
  "a check of the data set such as gold, reward:WORKDIR, endpoint,"
  " endpoint:MODEL, package.module:function, ./FILE.py:function or the address"
  " of a server of scores"
)
ANCHOR, REFERENCE = "anchor", "reference"
SAME_ROWS = ("refuse", "warn")


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
  named = reward_functions.names_of(config.judges, FIELD, _EXAMPLE)
  if not named:
    raise ValueError(f"{FIELD} is empty: name a judge, which is {_FORMS}.")
  found = [_judge(name, config.data.name) for name in named]
  labels = reward_functions.distinct(judge.label for judge in found)
  return tuple(
    judge._replace(label=label)
    for judge, label in zip(found, labels, strict=True)
  )


def _judge(name: str, source: str) -> Judge:
  sources = registry.describe()
  kind, colon, rest = name.partition(":")
  if kind == "reward" and colon:
    if not rest:
      raise ValueError(
        f"{FIELD}: 'reward:' names no workdir. Write reward:WORKDIR."
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
      f"{FIELD}: {source} has no check {name!r}, which {', '.join(having)} has;"
      f" the checks of {source}: {its}. Name another judge: {_FORMS}."
    )
  hint = names.did_you_mean(name, (*checks, "endpoint"))
  raise ValueError(f"{FIELD}: {name!r} is no judge.{hint} It must be {_FORMS}.")


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
  if config.same_rows not in SAME_ROWS:
    raise ValueError(
      f"config.same_rows={config.same_rows!r}: choose one of {SAME_ROWS}."
    )

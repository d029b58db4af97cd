"""The members of a run: adapters on one base that are trained in one process.

  --config.members=4
      four members, with the seeds `seed`, `seed + 1`, ...
  --config.vary="optimizer.learning_rate=1e-4,3e-4"
      a member for each value
  --config.vary="seed=0,1,0,1 optimizer.learning_rate=1e-4,1e-4,3e-4,3e-4"
      lists of one length: member k has the k-th value of each

A member is what a run of its own would be, and its config is that of such a
run. Members may differ in what is an array in their common step, or is not read
by it at all; a field that is a shape, or decides what is compiled, is the same
for all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from perl_jax import names, steps
from perl_jax.tasks.settings import ranges, shared

SEED = "seed"
# Fields that a step is given as arrays; the other two are read outside of it.
_ARRAYS = (
  "optimizer.learning_rate", "value.learning_rate", "lora.alpha", "beta",
)  # fmt: skip
# Those in which members may differ, where a stage has them.
FIELDS = (SEED, *_ARRAYS, "kl.target")
_WAY_OUT = (
  "Runs that differ in anything else are runs of their own: launch/sweep.py"
  " makes them one after the other."
)


def asked(config: shared.Config) -> bool:
  """Whether a config is of several members."""
  return bool(config.get("vary")) or config.get("members", 1) > 1


def number_of(config: Mapping[str, Any]) -> int:
  """Number of members of a config, whether or not they can be trained."""
  first, *_ = config.get("vary", "").split() or [""]
  return len(first.split(",")) if first else config.get("members", 1)


def refuse(config: shared.Config, where: str) -> None:
  """Refuses members where one model is needed.

  Args:
    config: Config of a stage.
    where: What needs it, with the name of the section, "pipeline: sft".

  Raises:
    ValueError: The config is of several members.
  """
  if asked(config):
    raise ValueError(
      f"{where}.members={config.members}, {where}.vary={config.vary!r}: later"
      " stages start from one model. Train the members by the stage's own"
      " command, and give one of them, WORKDIR/members/0, as init."
    )


def configs_of(config: shared.Config) -> tuple[shared.Config, ...]:
  """The configs of the members of a run, each as of a run of its own.

  Args:
    config: Config of a stage, with no None in it.

  Raises:
    ValueError: The members cannot be trained as one; names the field and the
      way out.
  """
  found = _varied(config)
  count = _count(config, found)
  if SEED not in found and not config.vary:
    found[SEED] = [str(config.seed + k) for k in range(count)]
  made = [_member(config, found, k) for k in range(count)]
  for k, own in enumerate(made):
    ranges.check(own)
    if own in made[:k]:
      raise ValueError(
        f"config.vary={config.vary!r}: members {made.index(own)} and {k} are"
        " the same. Give each another value, or another seed."
      )
  check_together(config, count)
  return tuple(made)


def values_of(configs: Sequence[shared.Config]) -> steps.Values:
  """The numbers in which members differ and that their step is given.

  Returns:
    Arrays `[members]`, float32, by the names of fields.
  """
  found = {}
  for name in _ARRAYS:
    values = [_value(own, name) for own in configs]
    if len(set(values)) > 1:
      found[name] = jnp.asarray(values, jnp.float32)
  return found


def with_alpha(
  config: shared.Config, values: steps.Values, loss_fn: steps.LossFn
) -> steps.LossFn:
  """A loss with a member's own `lora.alpha`.

  Args:
    config: Config that the loss was made by.
    values: Numbers of the member; without that one the loss stays as it is.
    loss_fn: Loss of a stage.
  """
  if "lora.alpha" not in values:
    return loss_fn
  return steps.with_scale(loss_fn, values["lora.alpha"] / config.lora.alpha)


def _varied(config: shared.Config) -> dict[str, list[str]]:
  """The lists of `config.vary`, as texts by field."""
  found: dict[str, list[str]] = {}
  allowed = [name for name in FIELDS if _value(config, name) is not None]
  for part in config.vary.split():
    name, equals, texts = part.partition("=")
    values = texts.split(",")
    if not equals or "" in values:
      raise ValueError(
        f"config.vary={config.vary!r}: {part!r} is not FIELD=VALUE,VALUE, such"
        " as 'optimizer.learning_rate=1e-4,3e-4'; spaces stand between fields."
      )
    name = name.removeprefix("--").removeprefix("config.")
    if name not in allowed:
      hint = names.did_you_mean(name, allowed)
      raise ValueError(
        f"config.vary={config.vary!r}: members of {config.task} may differ in"
        f" {', '.join(allowed)}, and not in {name!r}.{hint} {_WAY_OUT}"
      )
    if name in found:
      raise ValueError(f"config.vary={config.vary!r} has {name} twice.")
    found[name] = values
  return found


def _count(config: shared.Config, found: Mapping[str, Sequence[str]]) -> int:
  """Number of members, which every list agrees on."""
  lengths = {name: len(values) for name, values in found.items()}
  if not lengths:
    return config.members
  counts = set(lengths.values()) | ({config.members} - {1})
  if len(counts) > 1:
    told = ", ".join(f"{name} has {n}" for name, n in lengths.items())
    raise ValueError(
      f"config.vary={config.vary!r} with config.members={config.members}:"
      f" {told}. Give each list a value for every member, and leave"
      " config.members at 1 or set it to their number."
    )
  (count,) = counts
  if count < 2:
    raise ValueError(
      f"config.vary={config.vary!r} is of one member: give several values, or"
      " set the field itself."
    )
  return count


def _member(
  config: shared.Config, found: Mapping[str, Sequence[str]], number: int
) -> shared.Config:
  """The config of one member."""
  own = config.copy_and_resolve_references()
  with own.unlocked():
    own.members, own.vary = 1, ""
    if number:
      own.profile.steps = ()  # one trace shows what all do
    for name, values in found.items():
      section = own
      *above, last = name.split(".")
      for part in above:
        section = section[part]
      section[last] = _number(config, name, values[number])
  return own.lock()


def _number(config: shared.Config, name: str, text: str) -> int | float:
  try:
    return int(text) if name == SEED else float(text)
  except ValueError as error:
    kind = "a whole number" if name == SEED else "a number"
    raise ValueError(
      f"config.vary={config.vary!r}: {name}={text!r} is not {kind}."
    ) from error


def _value(config: shared.Config, name: str) -> float | None:
  """The value of a dotted field; None where there is no such field."""
  found = config
  for part in name.split("."):
    if part not in found:
      return None
    found = found[part]
  return found


def check_together(config: shared.Config, count: int) -> None:
  """Checks what members cannot have, whatever they differ in.

  Args:
    config: Config of a stage.
    count: Number of its members.

  Raises:
    ValueError: They cannot be trained as one; names the field and the way out.
  """
  asked_for = f"config.members={count}"
  if config.vary:
    asked_for = f"config.vary={config.vary!r}"
  if config.tuning != "lora":
    raise ValueError(
      f"{asked_for} with config.tuning={config.tuning!r}: members are adapters"
      " that share one base. Use config.tuning='lora', or launch/sweep.py for"
      " runs of their own."
    )
  if config.get("ensemble", 1) > 1:
    raise ValueError(
      f"{asked_for} with config.ensemble={config.ensemble}: members are reward"
      " models of their own, an ensemble is one. Choose one of the two, or"
      " launch/sweep.py for several ensembles."
    )
  if config.trackers:
    raise ValueError(
      f"{asked_for} with config.trackers={tuple(config.trackers)}: trackers"
      " follow one run in a process. Set config.trackers=(); once members have"
      " finished, the command of one alone, with its --workdir and trackers,"
      " sends what it has written."
    )
  if config.task == "rl" and config.judge.by:
    raise ValueError(
      f"{asked_for} with config.judge.by={config.judge.by!r}: a judge would be"
      " loaded for each member. Set config.judge.by='' and judge the members"
      " with configs/judge.py, or use launch/sweep.py."
    )
  if config.task == "rl" and config.rollouts.by_length:
    raise ValueError(
      f"{asked_for} with config.rollouts.by_length=True: members have responses"
      " of other lengths in one program, which would compute all buckets. Set"
      " config.rollouts.by_length=False."
    )

"""The runs of a sweep: the points of a grid, and which are trained as one."""

import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

# Fields in which members of a run may differ: `settings.members.FIELDS`, which
# is not imported, as a sweep may be started where JAX is not installed.
TOGETHER = (
  "seed", "optimizer.learning_rate", "value.learning_rate", "lora.alpha",
  "beta", "kl.target",
)  # fmt: skip
CLOSING = {"(": ")", "[": "]", "{": "}"}


class Run(NamedTuple):
  """One point of the grid.

  Attributes:
    name: Name of its directory, such as "lora.rank=4__seed=0".
    point: Values of the swept fields.
    arguments: Arguments of `python -m perl_jax.main`, the workdir included.
    workdir: Directory of the run.
  """

  name: str
  point: dict[str, str]
  arguments: list[str]
  workdir: pathlib.Path


class Job(NamedTuple):
  """What is started as one.

  Attributes:
    run: The run that is started.
    points: The points of the grid that it makes, each with the directory of its
      results: the run itself, or its members.
  """

  run: Run
  points: list[Run]


def values_of(text: str) -> list[str]:
  """The parts of "a,b,(c,d)" between commas outside brackets and quotes.

  Raises:
    ValueError: A bracket or quote stays open, or a part is empty.
  """
  parts, open_, quote = [""], [], ""
  for letter in text:
    if quote:
      quote = "" if letter == quote else quote
    elif letter in "'\"":
      quote = letter
    elif letter in CLOSING:
      open_.append(CLOSING[letter])
    elif open_ and letter == open_[-1]:
      open_.pop()
    elif letter == "," and not open_:
      parts.append("")
      continue
    parts[-1] += letter
  if quote or open_:
    raise ValueError(
      f"{text!r}: {quote or open_[-1]} is missing. Put quotes around it for the"
      " shell."
    )
  if len(parts) > 1 and "" in parts:
    raise ValueError(
      f"{text!r} has an empty value between commas. A tuple needs its brackets,"
      " a text with commas quotes of its own: \"'a,b'\"."
    )
  if len(parts) > 1 and len(set(parts)) < len(parts):
    raise ValueError(f"{text!r} has a value twice.")
  return parts


def grid(arguments: Sequence[str], workdir: pathlib.Path) -> list[Run]:
  """All combinations, the last axis changing fastest.

  Raises:
    ValueError: Nothing is swept, or a field is given twice.
  """
  fixed, axes, given = [], {}, set()
  for argument in arguments:
    name, _, text = argument.partition("=")
    values = values_of(text) if name.startswith("--config.") else [text]
    if name == "--config.vary" and len(values) > 1:
      raise ValueError(
        f"{name} has commas of its own. Give its fields as axes of the grid,"
        " such as --config.seed=0,1, with --together=8; or put quotes around it"
        " for the shell and for the sweep: \"--config.vary='seed=0,1'\"."
      )
    if name in given:
      raise ValueError(f"{name} is given twice.")
    given.add(name)
    if len(values) > 1:
      axes[name] = values
    else:
      fixed.append(argument)
  if not axes:
    raise ValueError(
      "nothing to sweep: give a field several values, --config.FIELD=a,b,c"
    )
  runs = []
  for values in itertools.product(*axes.values()):
    point = {
      name.removeprefix("--config."): value for name, value in zip(axes, values)
    }
    name = "__".join(f"{k}={v}" for k, v in point.items())
    name = re.sub(r"[^\w.=+-]", "_", name)
    place = workdir / name
    overrides = [f"{n}={value}" for n, value in zip(axes, values)]
    runs.append(
      Run(name, point, [*fixed, *overrides, f"--workdir={place}"], place)
    )
  if len({run.name for run in runs}) < len(runs):
    raise ValueError("two runs would have one directory: name values apart")
  return runs


def jobs_of(runs: Sequence[Run], most: int) -> list[Job]:
  """What is started for the points of a grid.

  Args:
    runs: The points.
    most: Points of one job; 1 makes a job of each.
  """
  groups: dict[tuple[str, ...], list[Run]] = {}
  for run in runs:
    fixed = tuple(a for a in run.arguments if not _varies(a, run))
    groups.setdefault(fixed if most > 1 else tuple(run.arguments), []).append(
      run
    )
  jobs = []
  for fixed, group in groups.items():
    parts = [group[i : i + most] for i in range(0, len(group), most)]
    for number, part in enumerate(parts):
      if len(part) == 1:
        jobs.append(Job(part[0], part))
      else:
        name = _team(part[0]) + (f"__{number}" if len(parts) > 1 else "")
        jobs.append(_together(name, fixed, part))
  return jobs


def _varies(argument: str, run: Run) -> bool:
  """Whether an argument is of a point, and members may differ in it."""
  name = argument.partition("=")[0].removeprefix("--config.")
  return argument.startswith("--workdir=") or (
    name in TOGETHER and name in run.point
  )


def _team(run: Run) -> str:
  """Name of what the members of a run have in common."""
  same = [
    part
    for part in run.name.split("__")
    if part.partition("=")[0] not in TOGETHER
  ]
  return "__".join(same) or "together"


def _together(name: str, fixed: Sequence[str], part: Sequence[Run]) -> Job:
  """One run whose members are some points of the grid."""
  fields = [field for field in part[0].point if field in TOGETHER]
  vary = " ".join(
    f"{field}={','.join(run.point[field] for run in part)}" for field in fields
  )
  place = part[0].workdir.parent / name
  arguments = [*fixed, f"--config.vary={vary}", f"--workdir={place}"]
  points = [
    run._replace(workdir=place / "members" / str(number))
    for number, run in enumerate(part)
  ]
  return Job(Run(name, {}, arguments, place), points)

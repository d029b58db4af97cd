"""The fields of a config one by one, those of its stages too."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Leaf(NamedTuple):
  """A field of a config that is no section.

  Attributes:
    path: Dotted name of the field in the whole config, "rl.kl.target".
    task: Task of the stage that it belongs to, "rl"; "" if there is none.
    name: Dotted name of the field in that stage, "kl.target".
    value: Value of the field.
    section: The section that holds it, under the last part of `name`.
  """

  path: str
  task: str
  name: str
  value: Any
  section: ConfigDict


def leaves(
  config: ConfigDict, above: str = "", task: str = "", inside: str = ""
) -> Iterator[Leaf]:
  """All fields of a config; a section with a field `task` is a stage.

  Args:
    config: A config, or a part of one.
    above: Dotted name of the part, with a dot at its end.
    task: Task of the stage that the part belongs to.
    inside: Dotted name of the part within its stage, with a dot at its end.
  """
  if not inside:
    task = config.get("task", task)
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      name = "" if "task" in value else f"{inside}{key}."
      yield from leaves(value, f"{above}{key}.", task, name)
    else:
      yield Leaf(f"{above}{key}", task, f"{inside}{key}", value, config)

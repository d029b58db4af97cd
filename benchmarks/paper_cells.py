"""Which run of a table is next, and what it starts from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.paper_tables import Group


class Cell(NamedTuple):
  """A run of a group.

  Attributes:
    group: Its group.
    rate: Its learning rate; None for the config's own.
    seed: Its seed.
    policy_rate: Where it trains nothing: the learning rate of the policy that
      it looks at, None for one that has no other.
  """

  group: Group
  rate: float | None
  seed: int
  policy_rate: float | None = None

  @property
  def name(self) -> str:
    """Its directory, and the name of its line."""
    rate = "" if self.rate is None else f"rate_{self.rate:g}_"
    if self.policy_rate is not None:
      rate += f"policy_rate_{self.policy_rate:g}_"
    return f"{self.group.name}/{rate}seed_{self.seed}"


Lines = Mapping[str, Mapping[str, Any]]


def trials(group: Group, lines: Lines) -> list[Cell]:
  """One cell for each learning rate, on the first seed.

  Raises:
    KeyError: What it starts from has no line yet.
  """
  seed, policy_rate = group.seeds[0], _policy_rate(group, lines)
  rates = group.rates or (None,)
  return [Cell(group, rate, seed, policy_rate) for rate in rates]


def seeds(group: Group, lines: Lines) -> list[Cell]:
  """One cell for each seed, at the chosen rate; raises as `trials`."""
  return [_best(group, seed, lines) for seed in group.seeds]


def _best(group: Group, seed: int, lines: Lines) -> Cell:
  return Cell(group, chosen(group, lines), seed, _policy_rate(group, lines))


def _policy_rate(group: Group, lines: Lines) -> float | None:
  policy = group.init.get("policy")
  return chosen(policy, lines) if policy and not group.rates else None


def chosen(group: Group, lines: Lines) -> float | None:
  """The learning rate whose trial is the best on validation rows.

  Raises:
    KeyError: A trial has no line yet.
  """
  if not group.rates:
    return None
  key, sign = group.best

  def value(cell: Cell) -> float:
    found = lines[cell.name]["summary"]
    return sign * found[key] - group.kl_weight * found.get("kl", 0.0)

  return max(trials(group, lines), key=value).rate


def measured(group: Group, lines: Lines) -> list[Mapping[str, Any]]:
  """Summaries of a group's seeds that are there; [] before its trials are."""
  try:
    cells = seeds(group, lines)
  except KeyError:
    return []
  return [lines[cell.name]["summary"] for cell in cells if cell.name in lines]


def next_cell(groups: Sequence[Group], lines: Lines) -> Cell | None:
  """The first cell that has no line; None if all have one."""
  for group in groups:
    for cell in trials(group, lines):
      if cell.name not in lines:
        return cell
    for cell in seeds(group, lines):
      if cell.name not in lines:
        return cell
  return None


def starts_from(cell: Cell, lines: Lines) -> dict[str, Cell]:
  """The cells that its roles start from, by role."""
  found = {}
  for role, group in cell.group.init.items():
    own = role in cell.group.of_seed
    seed = cell.seed if own else group.seeds[0]
    found[role] = _best(group, seed, lines)
  return found


def standing_on(cell: Cell, groups: Sequence[Group], lines: Lines) -> list[str]:
  """Names of the cells with a line that start from one, or from such a one."""
  found = [cell.name]
  for group in groups:  # each after those that it starts from
    try:
      cells = [*trials(group, lines), *seeds(group, lines)]
    except KeyError:  # not all of its trials have a line
      cells = trials(group, lines) if group.rates else []
    for other in cells:
      names = [start.name for start in starts_from(other, lines).values()]
      known = other.name in lines and other.name not in found
      if known and not set(found).isdisjoint(names):
        found.append(other.name)
  return found[1:]

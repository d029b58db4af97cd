"""The runs of the paper's tables are ones that the program takes."""

import shlex
from pathlib import Path

import pytest

from benchmarks import paper, paper_cells, paper_tables
from perl_jax.tasks.settings import overrides


@pytest.mark.parametrize("table", paper_tables.TABLES)
def test_committed_runs_can_be_typed_in_a_clone(table):
  """No path of the machine that they were made on is in their commands."""
  lines = paper.read(paper.LINES / f"{table}.jsonl")
  assert lines
  for line in lines.values():
    words = shlex.split(line["command"])
    values = [word.partition("=")[2].partition(":")[2] for word in words]
    values += [word.partition("=")[2] for word in words]
    assert not [value for value in values if value.startswith("/")], line


@pytest.mark.parametrize("table", paper_tables.TABLES)
def test_the_configs_of_all_tables_have_their_fields(table):
  """Every run of a table, with the first rate as the best one."""
  groups, lines, seen = paper_tables.TABLES[table](), {}, set()
  while (cell := paper_cells.next_cell(groups, lines)) is not None:
    given = paper.arguments(cell, Path("runs"), lines, "data")
    assert overrides.refusal(["", *given]) in (None, ""), given
    lines[cell.name] = {
      "summary": dict.fromkeys(("log_loss", "auroc", "reward_after", "kl"), 1.0)
    }
    assert cell.name not in seen
    seen.add(cell.name)
  # The same number of trials for each kind of tuning that is compared.
  trials = {}
  for group in groups:
    if group.tuning:
      of = group.stage, group.data, group.backbone
      trials.setdefault(of, set()).add((len(group.rates), group.seeds))
  assert all(len(found) == 1 for found in trials.values())

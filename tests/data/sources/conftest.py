"""Options that load each data set, with small local copies of the files."""

import json

import pytest

from tests.data.sources import upstream_rows


@pytest.fixture(scope="module")
def options(tmp_path_factory):
  """Returns the options of `registry.load` for each data set, by name."""
  root = tmp_path_factory.mktemp("sources")
  copies = root / "copies"
  # Orders 20 to 29 are in dialogs and rated, 0 to 19 in dialogs only.
  dialogs = [upstream_rows.dialog(n, f"order {n % 30}") for n in range(60)]
  turns = [upstream_rows.rated(n, f"order {20 + n % 30}") for n in range(90)]
  find = {"find_movies": {"name.movie": "x"}}
  movies = [upstream_rows.rated(n, f"movie {n % 15}", find) for n in range(45)]
  upstream_rows.spread(copies, "taskmaster_coffee", "dialogs", dialogs)
  upstream_rows.spread(copies, "taskmaster_coffee", "reward", turns)
  upstream_rows.spread(copies, "taskmaster_ticketing", "reward", movies)
  upstream_rows.spread(
    copies,
    "hh_rlhf",
    "test",
    [upstream_rows.pair(n, "Test") for n in range(20)],
  )
  own = root / "own"
  own.mkdir()
  for kind, row in {
    "preferences": {"chosen": "a", "rejected": "b"},
    "labelled": {"response": "a", "label": 1},
    "demonstrations": {"response": "a"},
  }.items():
    rows = [{"prompt": f"p{n}"} | row for n in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (own / f"{kind}.jsonl").write_text(text)
  public = {"data_dir": str(copies), "cache_dir": str(root / "cache")}
  return {
    "coffee_bar": {"size": 100, "validation_size": 50},
    "taskmaster_coffee": public,
    "taskmaster_ticketing": public,
    "hh_rlhf": public,
    "jsonl": {"path": str(own)},
  }

"""A fixture that writes rows as a JSON-lines file."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
  def write(*rows, name="rows.jsonl"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = tmp_path / name
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)

  return write

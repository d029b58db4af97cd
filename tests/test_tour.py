"""The notebook of docs/, without running it: `make nightly` does that.

Its commands, links and code are checked with those of the other pages, by
test_documents.py.
"""

import json
import re
import shutil
import types

import pytest

from perl_jax import tasks
from tests import documents

NOTEBOOKS = sorted(documents.DOCS.rglob("*.ipynb"))
# Folders that are somewhere on a machine, and say nothing to others.
PLACES = re.compile(r"(?<![\w.:/])/(home|tmp|root|work|Users|var|opt|usr|mnt)/")


def cells(notebook, kind):
  return [c for c in notebook["cells"] if c["cell_type"] == kind]


def said(cell):
  """All text that a cell printed or showed."""
  for output in cell["outputs"]:
    yield "".join(output.get("text", ""))
    for name, value in output.get("data", {}).items():
      if name.startswith("text/"):
        yield "".join(value)


def faults(notebook):
  """What is wrong with the outputs that a notebook is committed with."""
  found, code = [], cells(notebook, "code")
  counts = [cell["execution_count"] for cell in code]
  if counts != list(range(1, len(code) + 1)):
    found.append(f"it was not run once from top to bottom: {counts}")
  for number, cell in enumerate(code, 1):
    kinds = [output["output_type"] for output in cell["outputs"]]
    streams = [output.get("name") for output in cell["outputs"]]
    if "error" in kinds or "stderr" in streams:
      found.append(f"cell {number} printed an error or a warning")
    found += [
      f"cell {number} shows a path of a machine, {text[place.start() :][:60]}"
      for text in said(cell)
      for place in PLACES.finditer(text)
    ]
  return found


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
  return json.loads(request.param.read_text(encoding="utf-8"))


def test_there_is_one():
  assert documents.DOCS / "tour.ipynb" in NOTEBOOKS


def test_format(notebook):
  assert notebook["nbformat"] == 4
  ids = [cell["id"] for cell in notebook["cells"]]
  assert len(set(ids)) == len(ids)
  nbformat = pytest.importorskip(
    "nbformat", reason="requirements-docs.txt is not installed"
  )
  nbformat.validate(nbformat.from_dict(notebook))


def test_outputs(notebook):
  assert faults(notebook) == []
  shown = {
    name
    for cell in cells(notebook, "code")
    for output in cell["outputs"]
    for name in output.get("data", {})
  }
  assert "image/png" in shown


def test_code_compiles(notebook):
  for cell in cells(notebook, "code"):
    compile("".join(cell["source"]), "cell", "exec")


def test_the_export_is_made_again_when_its_cell_is_run_again(tmp_path):
  notebook = json.loads((documents.DOCS / "tour.ipynb").read_text())
  (source,) = (
    source
    for cell in cells(notebook, "code")
    if 'get_config("export")' in (source := "".join(cell["source"]))
  )
  formats = []

  def run(config, workdir):
    workdir.mkdir()  # as an export, refuses one that exists
    formats.append(config.format)
    (workdir / config.format).touch()

  names = {
    "tasks": types.SimpleNamespace(get_config=tasks.get_config, run=run),
    "RUNS": tmp_path,
    "clear_output": lambda: None,
    "shutil": shutil,
  }
  exec(source, dict(names))
  exec(source, dict(names))
  exec(source.replace('"merged"', '"gguf"'), dict(names))
  assert formats == ["merged", "merged", "gguf"]
  assert [path.name for path in (tmp_path / "export").iterdir()] == ["gguf"]


@pytest.mark.parametrize(
  "output, count, expected",
  [
    ({"output_type": "stream", "name": "stdout", "text": ["45 %"]}, 1, ""),
    ({"output_type": "stream", "name": "stderr", "text": []}, 1, "a warning"),
    ({"output_type": "error", "ename": "ValueError"}, 1, "an error"),
    ({"output_type": "stream", "name": "stdout", "text": "in /home/me/x"}, 1,
     "/home/me/x"),
    ({"output_type": "display_data", "data": {"text/html": ["<a>/tmp/y"]}}, 1,
     "/tmp/y"),
    ({"output_type": "stream", "name": "stdout", "text": "runs/tmp/x"}, 1, ""),
    ({"output_type": "stream", "name": "stdout", "text": ""}, 7, "[7]"),
  ],
)  # fmt: skip
def test_faults_are_found(output, count, expected):
  cell = {"cell_type": "code", "execution_count": count, "outputs": [output]}
  assert expected in "".join(faults({"cells": [cell]}))
  assert bool(faults({"cells": [cell]})) == bool(expected)

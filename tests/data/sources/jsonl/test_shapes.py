"""Every shape in the docs, in every file format, for every stage it names."""

import json
import pathlib
import re

import pytest

from perl_jax.data.records import Demonstration, Labelled, Preference, Text
from perl_jax.data.sources.jsonl import files, forms
from tests.data.sources.jsonl import writing

PAGE = pathlib.Path(__file__).parents[4] / "docs" / "shapes.md"
KINDS = {
  "SFT": "demonstrations",
  "pairs": "preferences",
  "labels": "labelled",
  "RL": "prompts",
}
STATED = re.compile(r"`--config\.data\.(margin|threshold)=([\d.]+)`")


def shapes():
  """Yields name, row, expected text, kinds and what the user states."""
  for section in PAGE.read_text().split("\n### ")[1:]:
    name = section.split("\n", 1)[0]
    (row,) = re.findall(r"```json\n(.*?)\n```", section, re.DOTALL)
    (text,) = re.findall(r"```text\n(.*?)\n```", section, re.DOTALL)
    (read_for,) = re.findall(r"Read for: (.*)\n", section)
    kinds = [KINDS[stage] for stage in read_for.split(", ")]
    stated = {what: float(n) for what, n in STATED.findall(section)}
    yield name, json.loads(row), text, kinds, stated


SHAPES = {name: rest for name, *rest in shapes()}


def shown(record):
  """A record as the page shows it."""
  if isinstance(record, Text):
    return f"target: {record.text}"
  lines = [(m["role"], m["content"]) for m in record.prompt]
  if isinstance(record, Demonstration):
    names = {"assistant": "target"}
    lines += [
      (names.get(m["role"], m["role"]), m["content"]) for m in record.turns
    ]
  elif isinstance(record, Preference):
    lines += [("chosen", record.chosen), ("rejected", record.rejected)]
  elif isinstance(record, Labelled):
    lines += [("response", record.response), ("label", f"{record.label:g}")]
  else:
    lines += [("reference", record.reference)]
  return "\n".join(f"{who}: {said}" for who, said in lines)


@pytest.mark.parametrize("form", writing.FORMATS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_in_a_format_for_its_stages(tmp_path, name, form):
  row, text, kinds, stated = SHAPES[name]
  path = writing.write([row, row], tmp_path, form)
  read = {
    kind: files.load(
      path, kind, validation_path=path, reading=forms.Reading(**stated)
    )
    for kind in kinds
  }
  whole = "\n\n".join(map(shown, read[kinds[0]].train))
  expected = text.replace("\\n", "\n")
  assert whole == f"{expected}\n\n{expected}"
  if "prompts" not in kinds:
    return
  # RL is given the prompt of any stage, once a row, and the row itself.
  prompts = read["prompts"].train
  assert len(prompts) == 2
  assert [p.fields for p in prompts] == [row, row]
  first = read[kinds[0]].train[0]
  talk = first.prompt
  if "prompt" not in row:  # Of a conversation, all before the last message.
    talk += getattr(first, "turns", ())[:-1]
  assert all(p.prompt == talk for p in prompts)
  # The log says what the file was taken for.
  assert all(len(split.shapes) == 1 for split in read.values())


@pytest.mark.parametrize("name", SHAPES)
def test_null_fields_change_nothing(tmp_path, name):
  row, text, kinds, stated = SHAPES[name]
  others = ("chosen", "rejected", "response", "label", "messages", "prompt")
  mixed = dict.fromkeys(others) | row
  path = writing.write([mixed], tmp_path, "rows.jsonl")
  reading = forms.Reading(**stated)
  found = files.load(path, kinds[0], validation_path=path, reading=reading)
  assert "\n\n".join(map(shown, found.train)) == text.replace("\\n", "\n")


def test_stages_that_a_shape_is_not_for_are_refused(tmp_path):
  """The refusal names what the rows are, and the fields that are needed."""
  for name, (row, _, kinds, stated) in SHAPES.items():
    path = writing.write([row], tmp_path, "rows.jsonl")
    for kind in {"preferences", "demonstrations", "prompts"} - set(kinds):
      reading = forms.Reading(
        **{k: v for k, v in stated.items() if k == "threshold"}
      )
      with pytest.raises(ValueError, match=r"rows\.jsonl") as error:
        files.load(path, kind, validation_path=path, reading=reading)
      message = str(error.value)
      assert "slip" not in message, name
      if "score" in name and kind == "preferences":
        assert "data.margin" in message

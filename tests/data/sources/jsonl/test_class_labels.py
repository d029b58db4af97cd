"""Numbers that stand for names, as `datasets` writes and reads them."""

import json
import logging

import pyarrow
import pytest
from pyarrow import parquet

from perl_jax.data.sources.jsonl import files, forms
from tests.data.sources.jsonl import cases

COUNT = 12


@pytest.fixture(params=["parquet", "disk", "hub"])
def write(request, tmp_path, monkeypatch):
  """Writes rows of texts, and a column of numbers with names."""
  datasets = pytest.importorskip("datasets", reason="writes such columns")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

  def make(column, names, numbers, *texts):
    rows = [
      {name: f"{name} {i}" for name in texts} | {column: numbers[i]}
      for i in range(len(numbers))
    ]
    features = {name: datasets.Value("string") for name in texts}
    features[column] = datasets.ClassLabel(names=names)
    made = datasets.Dataset.from_list(rows, datasets.Features(features))
    meant = [
      None if n < 0 else made.features[column].int2str(n) for n in numbers
    ]
    path = tmp_path / "rows"
    if request.param == "disk":
      made.save_to_disk(path)
      return str(path), meant
    path.mkdir()
    made.to_parquet(path / "rows.parquet")
    return f"hf://{path}" if request.param == "hub" else str(path), meant

  return make


def numbers(count, total=COUNT):
  return [i % count for i in range(total)]


@pytest.mark.parametrize(
  ("names", "good"),
  [
    (["no", "yes"], "yes"),
    (["yes", "no"], "yes"),
    (["True", "False"], "True"),
    (["0", "1"], "1"),
    (["1", "0"], "1"),
    (["unknown", "no", "yes"], "yes"),
  ],
)
def test_labels_are_what_their_names_say(write, names, good):
  path, meant = write("label", names, numbers(len(names)), "prompt", "response")
  found = {r.response: r.label for r in cases.read(path, "labelled")}
  assert found == {
    f"response {i}": float(name == good)
    for i, name in enumerate(meant)
    if name != "unknown"
  }


def test_a_number_without_a_name_is_no_label(write):
  labels = [*numbers(2), -1]
  path, _ = write("label", ["yes", "no"], labels, "prompt", "response")
  assert len(cases.read(path, "labelled")) == COUNT


@pytest.mark.parametrize(
  ("column", "names", "replies", "first", "second"),
  [
    ("preference", ["1", "2"], ("output_1", "output_2"), ("1",), ("2",)),
    (
      "overall_preference", ["-2", "-1", "0", "1"],
      ("response1", "response2"), ("-2", "-1"), ("1",),
    ),
    (
      "winner", ["model_a", "model_b", "tie"], ("response_a", "response_b"),
      ("model_a",), ("model_b",),
    ),
  ],
)  # fmt: skip
def test_verdicts_are_what_their_names_say(
  write, column, names, replies, first, second
):
  path, meant = write(column, names, numbers(len(names)), "prompt", *replies)
  found = {r.chosen for r in cases.read(path, "preferences")}
  assert found == {
    f"{replies[0] if name in first else replies[1]} {i}"
    for i, name in enumerate(meant)
    if name in first + second
  }


def test_scores_are_what_their_names_say(write):
  path, meant = write(
    "score", ["1", "2", "3.5"], numbers(3), "prompt", "response"
  )
  reading = forms.Reading(threshold=3)
  splits = files.load(path, "labelled", validation_path=path, reading=reading)
  labels = {r.response: r.label for r in splits.train}
  assert labels == {
    f"response {i}": float(float(n) >= 3) for i, n in enumerate(meant)
  }


@pytest.mark.parametrize("names", [["safe", "unsafe"], ["bad", "good"]])
def test_names_that_are_not_known_are_in_the_log(write, names, caplog):
  with caplog.at_level(logging.WARNING, logger="absl"):
    path, _ = write("label", names, numbers(2), "prompt", "response")
    found = {r.response: r.label for r in cases.read(path, "labelled")}
  assert found == {f"response {i}": i % 2 for i in range(COUNT)}
  assert f"0 is {names[0]!r}, 1 is {names[1]!r}" in caplog.text
  assert "1 says that a response is good" in caplog.text


@pytest.mark.parametrize(
  "names", [["A", "B", "C", "D"], ["No", "yes"], ["False", "True"], ["0", "1"]]
)
def test_columns_of_prompts_are_left_as_they_are(write, names, caplog):
  """Where the names say nothing else than the numbers do, or nothing known."""
  with caplog.at_level(logging.WARNING, logger="absl"):
    path, _ = write("answer", names, numbers(len(names)), "prompt")
    found = cases.read(path, "prompts")
  assert [row.fields["answer"] for row in found] == numbers(len(names))
  assert not caplog.text


@pytest.mark.parametrize(
  "metadata",
  [b"{", b"[]", b"\xff", b'{"info": 1}', b'{"info": {"features": []}}'],
)
def test_what_stands_beside_a_table_may_be_anything(tmp_path, metadata):
  path = tmp_path / "rows.parquet"
  table = pyarrow.table({"prompt": ["q"], "response": ["a"], "label": [1]})
  parquet.write_table(
    table.replace_schema_metadata({b"huggingface": metadata}), path
  )
  assert cases.read(str(path), "labelled")[0].label == 1


def test_names_of_a_column_that_is_no_longer_one_of_numbers(tmp_path):
  features = {"label": {"_type": "ClassLabel", "names": ["yes", "no"]}}
  features |= {"gone": features["label"]}
  metadata = json.dumps({"info": {"features": features}})
  table = pyarrow.table({"prompt": ["q"], "response": ["a"], "label": ["yes"]})
  path = tmp_path / "rows.parquet"
  parquet.write_table(
    table.replace_schema_metadata({"huggingface": metadata}), path
  )
  assert cases.read(str(path), "labelled")[0].label == 1

"""Files without rows beside others: left out, named, and no end of a run."""

import json

import pytest

from perl_jax.data.sources.jsonl import files, forms, whole
from tests.data.sources.jsonl import cases

METADATA = {"name": "mine", "version": 1, "features": [{"dtype": "string"}]}
SIDE = {
  "an empty shard": "",
  "a line": json.dumps(METADATA),
  "several lines": json.dumps(METADATA, indent=2),
  "columns": '{"tags": ["a", "b"]}',
}


@pytest.mark.parametrize("name", ["a.json", "z.json"])
@pytest.mark.parametrize("text", SIDE.values(), ids=SIDE)
@pytest.mark.parametrize("kind", ["demonstrations", "prompts"])
def test_a_side_file_is_left_out(write, tmp_path, text, name, kind):
  write(*cases.many("demonstrations"), name="rows.jsonl")
  (tmp_path / name).write_text(text)
  found = files.load(str(tmp_path), kind)
  assert len(found.train) + len(found.validation) == 20
  assert found.counts["files"] == found.counts["files_without_rows"] == 1
  note = found.notes[0]
  assert note.startswith("left out a file without rows: ")
  assert str(tmp_path / name) in note


@pytest.mark.parametrize("text", SIDE.values(), ids=SIDE)
def test_a_side_file_beside_rows_to_score(write, tmp_path, text):
  write(*cases.many("demonstrations"), name="rows.jsonl")
  (tmp_path / "metadata.json").write_text(text)
  found = whole.load(str(tmp_path), "candidates")
  assert len(found.validation) == 20
  assert found.counts["files"] == found.counts["files_without_rows"] == 1
  assert str(tmp_path / "metadata.json") in found.notes[0]


def test_a_side_file_beside_columns_with_our_names(write, tmp_path):
  rows = [{"question": f"q{n}", "response": "a"} for n in range(20)]
  write(*rows, name="rows.jsonl")
  write(METADATA, name="metadata.json")
  reading = forms.Reading({"question": "prompt"})
  found = files.load(str(tmp_path), "demonstrations", reading=reading)
  assert found.counts["rows"] == 21
  stated = {"columns": '{"question": "prompt"}'}
  found = whole.load(str(tmp_path), "candidates", stated=stated)
  assert len(found.validation) == 20
  # Rows that are there are not left out for want of a column.
  write(*cases.many("demonstrations"), name="metadata.json")
  with pytest.raises(ValueError, match=r"metadata\.json has no column"):
    files.load(str(tmp_path), "demonstrations", reading=reading)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_with_all_rows_in_one_object_is_no_side_file(
  write, tmp_path, indent
):
  write(*cases.many("demonstrations"), name="rows.jsonl")
  rows = {"data": list(cases.many("demonstrations"))}
  (tmp_path / "more.json").write_text(json.dumps(rows, indent=indent))
  with pytest.raises(ValueError, match=r"more\.json:.*(in 'data'|not valid)"):
    files.load(str(tmp_path), "demonstrations")


@pytest.mark.parametrize(
  ("text", "why"),
  [("", r"a\.json is empty"), ('{"a": 1}', r"1 of 1 rows of .*a\.json"),
   ('{\n"a": 1\n}', r"a\.json:1: not valid JSON")],
)  # fmt: skip
def test_files_of_which_none_has_rows_are_refused(tmp_path, text, why):
  for name in ("a.json", "b.json"):
    (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=why):
    files.load(str(tmp_path), "demonstrations")


def test_a_shard_of_bad_rows_counts_among_all(write, tmp_path):
  write(*cases.many("demonstrations"), name="a.jsonl")
  bad = [{"prompt": "", "response": "a"}] * 5
  write(*bad, name="b.jsonl")
  found = files.load(str(tmp_path), "demonstrations")
  assert found.counts["rows"] == 25
  assert found.counts["unusable_dropped"] == 5
  assert found.notes[0] == (
    f"left out a file without rows: {tmp_path / 'b.jsonl'}: none of 5 rows can"
    " be used."
  )
  write(*bad * 5, name="b.jsonl")
  with pytest.raises(ValueError, match=r"25 of 45 rows of .* cannot be used"):
    files.load(str(tmp_path), "demonstrations")


def test_one_row_that_looks_like_many_is_said_to_be_wrong(write, tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"responses": [{"text": "a"}, {"text": "b"}]}\n')
  with pytest.raises(ValueError, match=r"1 of 1 rows of .* cannot be used"):
    files.load(str(path), "preferences")

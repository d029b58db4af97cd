"""All rows of a file, to be scored or answered: shapes, order, drops."""

import json

import pytest

from perl_jax.data.sources.jsonl import whole

PROMPT = {"role": "user", "content": "A fruit?"}
SAID = {"role": "assistant", "content": "Plum."}


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def candidates(path, *rows, **options):
  return whole.load(write(path / "rows.jsonl", rows), "candidates", **options)


@pytest.mark.parametrize(
  "row, responses, sides, listed",
  [
    (
      {"prompt": "A fruit?", "chosen": "Plum.", "rejected": "Stone."},
      ("Plum.", "Stone."),
      ("chosen", "rejected"),
      False,
    ),
    (
      {
        "prompt": "A fruit?",
        "chosen": ["Plum.", "Fig."],
        "rejected": ["Stone.", "Tin.", "Ash."],
      },
      ("Plum.", "Fig.", "Stone.", "Tin.", "Ash."),
      ("chosen",) * 2 + ("rejected",) * 3,
      True,
    ),
    (
      {"prompt": [PROMPT], "chosen": [SAID], "rejected": [[SAID], [SAID]]},
      ("Plum.",) * 3,
      ("chosen", "rejected", "rejected"),
      True,
    ),
    (
      {"chosen": [[PROMPT, SAID]], "rejected": [[PROMPT, SAID]]},
      ("Plum.", "Plum."),
      ("chosen", "rejected"),
      True,
    ),
    ({"messages": [PROMPT, SAID]}, ("Plum.",), ("response",), False),
    ({"prompt": "A fruit?", "completion": "Plum."}, ("Plum.",), ("response",),
     False),
    (
      {"prompt": "A fruit?", "responses": ["Plum.", "Fig."]},
      ("Plum.", "Fig."),
      ("response", "response"),
      True,
    ),
    # What is to be scored goes before lists beside it.
    (
      {"prompt": "A fruit?", "chosen": "Plum.", "rejected": "Stone.",
       "generations": ["a", "b"], "rating": [1, 2]},
      ("Plum.", "Stone."),
      ("chosen", "rejected"),
      False,
    ),
    (
      {"prompt": "A fruit?", "response": "Plum.", "answers": ["a", "b"]},
      ("Plum.",),
      ("response",),
      False,
    ),
    ({"messages": [PROMPT, SAID], "outputs": ["a"]}, ("Plum.",), ("response",),
     False),
    (
      {"messages": [PROMPT], "completions": [{"text": "Plum.", "score": 3}]},
      ("Plum.",),
      ("response",),
      True,
    ),
  ],
)  # fmt: skip
def test_the_responses_of_every_shape(tmp_path, row, responses, sides, listed):
  (found,) = candidates(tmp_path, row | {"id": 7}).validation
  assert found.prompt == (PROMPT,)
  assert found.responses == responses
  assert found.sides == sides
  assert found.listed == listed
  assert found.fields == row | {"id": 7}
  assert found.id == f"{tmp_path}/rows.jsonl:1"


def test_labels_and_subsets_are_kept(tmp_path):
  pair = {"prompt": "A fruit?", "chosen": "Plum.", "rejected": "Stone."}
  rows = candidates(
    tmp_path,
    {"prompt": "A fruit?", "response": "Plum.", "label": True},
    pair | {"subset": "easy"},
    pair | {"domain": "chat"},
    pair | {"chosen": ["Plum."], "rejected": ["Stone."], "domain": "code"},
    pair,
  ).validation
  assert [row.label for row in rows] == [1.0, None, None, None, None]
  assert [row.subset for row in rows] == ["", "easy", "chat", "code", ""]


def test_a_file_of_several_shapes_is_read_in_its_order(tmp_path):
  found = candidates(
    tmp_path,
    {"prompt": "A", "response": "one"},
    {"prompt": "A"},
    {"prompt": "B", "chosen": "two", "rejected": "three"},
    {"prompt": "C", "response": "  "},
    {"messages": [PROMPT, SAID]},
    {"prompt": "D", "chosen": ["x"], "rejected": []},
    {"prompt": "E", "response": "four"},
  )
  lines = [row.id.rpartition(":")[2] for row in found.validation]
  assert lines == ["1", "3", "5", "7"]
  assert found.counts == {"files": 1, "rows": 7, "unusable_dropped": 3}
  notes = "\n".join(found.notes)
  for text in ("rows.jsonl:2", "generate.py", "rows.jsonl:4", "rows.jsonl:6"):
    assert text in notes
  assert found.train == ()


def test_limit_keeps_the_first_rows(tmp_path):
  rows = [{"prompt": "A", "response": str(n)} for n in range(5)]
  found = candidates(tmp_path, *rows, limit=2)
  assert [row.responses[0] for row in found.validation] == ["0", "1"]
  assert found.counts["over_limit"] == 3


def test_replies_that_follow_other_prompts_are_left_out(tmp_path):
  """Without `prompt`, pairs of texts share other beginnings."""
  good = {"prompt": "A", "response": "one"}
  found = candidates(
    tmp_path,
    good,
    {"chosen": ["Q: A fruit? Plum"], "rejected": ["Q: A tin", "Q: A fruit? x"]},
    good,
  )
  assert len(found.validation) == 2
  assert "do not all follow the same prompt" in found.notes[0]


def test_prompts_are_those_of_all_files_of_a_directory(tmp_path):
  write(tmp_path / "train.jsonl", [{"prompt": "A"}, {"prompt": "B"}])
  write(tmp_path / "test.jsonl", [{"prompt": "C", "answer": "c"}])
  found = whole.load(str(tmp_path), "prompts")
  assert [row.prompt[0]["content"] for row in found.validation] == [*"CAB"]
  assert found.validation[0].reference == "c"
  assert found.train == ()


def test_most_rows_without_a_response_are_refused(tmp_path):
  rows = [{"prompt": "A"}, {"prompt": "B"}, {"prompt": "A", "response": "x"}]
  with pytest.raises(ValueError, match=r"2 of 3 rows.*\n.*'response': missing"):
    candidates(tmp_path, *rows)
  with pytest.raises(ValueError, match="empty"):
    candidates(tmp_path)


def test_fields_that_cannot_be_honoured_are_refused(tmp_path):
  row = {"prompt": "A", "response": "x", "images": ["a.png"]}
  with pytest.raises(ValueError, match=r"rows\.jsonl:1.*'images'"):
    candidates(tmp_path, row)
  assert candidates(tmp_path, row, ignore=("images",)).validation


def test_columns_get_our_names(tmp_path):
  row = {"question": "A fruit?", "reply": "Plum."}
  columns = json.dumps({"question": "prompt", "reply": "response"})
  (found,) = candidates(tmp_path, row, stated={"columns": columns}).validation
  assert found.prompt == (PROMPT,)
  assert found.fields == row

"""Tables as people's programs write them: odd types, times, double names."""

import datetime
import decimal
import json

import pyarrow
import pytest
from pyarrow import parquet

from tests.data.sources.jsonl import cases

PAIR = {"prompt": ["q", "r"], "response": ["a", "b"]}
NANOSECONDS = pyarrow.array([1, 2], pyarrow.timestamp("ns", "UTC"))


def read(root, kind="demonstrations", **columns):
  path = root / "rows.parquet"
  parquet.write_table(pyarrow.table(columns), path)
  return cases.read(str(path), kind)


@pytest.mark.parametrize(
  "as_written",
  [
    lambda texts: pyarrow.array(texts, pyarrow.large_string()),
    lambda texts: pyarrow.array(texts).dictionary_encode(),
    lambda texts: pyarrow.array(texts, pyarrow.string_view()),
    lambda texts: pyarrow.array([text.encode() for text in texts]),
  ],
)
def test_texts_in_types_of_their_own(tmp_path, as_written):
  rows = read(tmp_path, **{k: as_written(v) for k, v in PAIR.items()})
  assert [row.prompt[0]["content"] for row in rows] == ["q", "r"]
  assert [row.turns[0]["content"] for row in rows] == ["a", "b"]


def test_bytes_that_are_no_text_are_left_alone(tmp_path):
  rows = read(tmp_path, "prompts", **PAIR, md5=[b"\xff\x00", b"ok"])
  assert [row.fields["md5"] for row in rows] == [b"\xff\x00", b"ok"]


@pytest.mark.parametrize(
  ("column", "text"),
  [
    (NANOSECONDS, "1970-01-01 00:00:00.000000001Z"),
    (pyarrow.array([1, 2], pyarrow.duration("ns")), "1"),
    (pyarrow.array([1, 2], pyarrow.time64("ns")), "00:00:00.000000001"),
    (pyarrow.array([10**7, 1], pyarrow.date32()), "29349-01-26"),
    (
      pyarrow.array(
        [[{"t": 1, "n": 3}], None],
        pyarrow.list_(
          pyarrow.struct(
            [("t", pyarrow.timestamp("ns")), ("n", pyarrow.int8())]
          )
        ),
      ),
      [{"t": "1970-01-01 00:00:00.000000001", "n": 3}],
    ),
    (
      pyarrow.array(
        [[("k", 1)], None],
        pyarrow.map_(pyarrow.string(), pyarrow.timestamp("ns")),
      ),
      [("k", "1970-01-01 00:00:00.000000001")],
    ),
  ],
)
def test_times_that_python_cannot_hold_are_texts(tmp_path, column, text):
  rows = read(tmp_path, "prompts", **PAIR, when=column)
  assert [row.prompt[0]["content"] for row in rows] == ["q", "r"]
  assert rows[0].fields["when"] == text


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_other_times_are_times(tmp_path, unit):
  day = datetime.datetime(2020, 1, 2)
  when = pyarrow.array([day, None], pyarrow.timestamp(unit))
  rows = read(tmp_path, "prompts", **PAIR, when=when)
  # Not of a class of `pandas`, wherever that is installed.
  assert [repr(row.fields["when"]) for row in rows] == [repr(day), "None"]


@pytest.mark.parametrize(
  "labels",
  [
    pyarrow.array([1, 0], pyarrow.int8()),
    pyarrow.array([1.0, 0.0]),
    pyarrow.array([decimal.Decimal("1.0"), decimal.Decimal("0.0")]),
    pyarrow.array(["1", "0"]),
    pyarrow.array(["1.0", " 0.0"]),
    pyarrow.array(["True", "FALSE"]),
    pyarrow.array(["yes", "no"]).dictionary_encode(),
  ],
)
def test_labels_of_all_types(tmp_path, labels):
  rows = read(tmp_path, "labelled", **PAIR, label=labels)
  assert [row.label for row in rows] == [1.0, 0.0]


def test_a_conversation_of_maps(tmp_path):
  kind = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
  talk = [
    [("role", "user"), ("content", "q")],
    [("role", "assistant"), ("content", "a")],
  ]
  (row,) = read(tmp_path, messages=pyarrow.array([talk], kind))
  assert row.prompt == ({"role": "user", "content": "q"},)
  assert row.turns == ({"role": "assistant", "content": "a"},)


def test_two_columns_of_one_name_are_refused(tmp_path):
  path = tmp_path / "rows.parquet"
  columns = [pyarrow.array(["a"])] * 3
  table = pyarrow.Table.from_arrays(columns, ["prompt", "response", "response"])
  parquet.write_table(table, path)
  with pytest.raises(ValueError, match=r"rows\.parquet: .* 'response'\. .*own"):
    cases.read(str(path), "demonstrations")


def test_a_column_that_cannot_be_read_is_named(tmp_path):
  twice = pyarrow.StructArray.from_arrays([pyarrow.array(["a"])] * 2, ["x"] * 2)
  with pytest.raises(
    ValueError, match=r"rows\.parquet: the column 's' of stru"
  ):
    read(tmp_path, "prompts", prompt=["q"], s=twice)


def test_values_that_are_written_as_json(tmp_path):
  """As `datasets` writes a column in which values of several types stand."""

  def mixed(*values):
    texts = [None if v is None else json.dumps(v) for v in values]
    return pyarrow.ExtensionArray.from_storage(
      pyarrow.json_(), pyarrow.array(texts, pyarrow.string())
    )

  rows = read(tmp_path, prompt=["q", "r"], response=mixed("four", "6"))
  assert [row.turns[0]["content"] for row in rows] == ["four", "6"]
  parts = [{"type": "text", "text": "hello"}]
  said = pyarrow.StructArray.from_arrays(
    [
      pyarrow.array(["user", "assistant"] * 2),
      mixed("hi", "there", parts, parts),
    ],
    ["role", "content"],
  )
  talks = pyarrow.ListArray.from_arrays([0, 2, 4], said)
  rows = read(tmp_path, messages=talks)
  found = [
    [turn["content"] for turn in (*row.prompt, *row.turns)] for row in rows
  ]
  assert found == [["hi", "there"], ["hello", "hello"]]
  rows = read(tmp_path, "prompts", **PAIR, answer=mixed(4, None))
  assert rows[0].fields["answer"] == 4


def test_a_value_of_json_that_is_none(tmp_path):
  bad = pyarrow.ExtensionArray.from_storage(
    pyarrow.json_(), pyarrow.array(["{", "1"], pyarrow.string())
  )
  with pytest.raises(ValueError, match=r"rows\.parquet: the column 'answer'"):
    read(tmp_path, "prompts", **PAIR, answer=bad)

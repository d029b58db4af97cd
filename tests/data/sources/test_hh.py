"""hh-rlhf transcripts: shared turns are the prompt, the rest the replies."""

import gzip
import json

import pytest

from perl_jax.data.sources import hh
from tests.data import shared_files


def _row(chosen, rejected, prompt="\n\nHuman: Hi, there!\n\nAssistant:"):
  return {"chosen": prompt + chosen, "rejected": prompt + rejected}


def test_a_regular_pair():
  prompt = (
    "\n\nHuman: Hi!\n\nAssistant: Yes?\n\nHuman: Why\n\nso? \n\nAssistant:"
  )
  pairs, counts = hh.preferences([_row(" Good. ", " Bad.", prompt)], "x")
  (pair,) = pairs
  assert pair.id == "x:0"
  assert pair.group == "hi"
  assert pair.prompt == (
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why\n\nso?"},
  )
  assert (pair.chosen, pair.rejected) == ("Good.", "Bad.")
  assert counts.pop("rows") == 1
  assert set(counts.values()) == {0}


def test_irregular_pairs_are_repaired_or_dropped_and_counted():
  rows = [
    # Parts before the last turn: the rest of the transcript is the reply.
    _row(" a\n\nHuman: b\n\nAssistant: c", " d"),
    # Human: inside a reply is text, not a turn.
    _row(" a  Human: b", " d"),
    # One speaker twice in a row; an Assistant turn cannot end a prompt.
    _row(" a", " b", "\n\nHuman: x\n\nHuman: y\n\nAssistant:"),
    _row(" a", " b", "\n\nHuman: x\n\nAssistant: y\n\nAssistant:"),
    _row("  ", " d"),
    _row(" d", " d "),
    {"chosen": "no markers", "rejected": "\n\nHuman: a\n\nAssistant: b"},
    {"chosen": "\n\nHuman: a\n\nAssistant: c", "rejected": "\n\nHuman: b"},
  ]
  pairs, counts = hh.preferences(rows)
  assert [(p.chosen, p.rejected) for p in pairs] == [
    ("a\n\nHuman: b\n\nAssistant: c", "d"),
    ("a  Human: b", "d"),
    ("a", "b"),
    ("y\n\nAssistant: a", "y\n\nAssistant: b"),
  ]
  assert pairs[2].prompt == ({"role": "user", "content": "x\n\ny"},)
  assert pairs[3].prompt == ({"role": "user", "content": "x"},)
  assert counts == {
    "rows": 8,
    "parted_earlier": 2,
    "merged_turns": 1,
    "empty_reply_dropped": 1,
    "equal_dropped": 1,
    "malformed_dropped": 2,
  }


def test_prompts_are_those_of_the_pairs_without_a_reference():
  rows = [_row(" a", " b"), _row("", " b")]
  pairs, _ = hh.preferences(rows)
  prompts, _ = hh.prompts(rows)
  assert [(p.id, p.group, p.prompt) for p in prompts] == [
    (p.id, p.group, p.prompt) for p in pairs
  ]
  assert {p.reference for p in prompts} == {None}


def test_a_row_without_a_field_is_refused():
  with pytest.raises(ValueError, match=r"x:1: the field 'rejected'.*None"):
    hh.preferences([_row(" a", " b"), {"chosen": "a"}], "x")


@pytest.mark.shared_data
def test_upstream_pairs():
  path = shared_files.find("hh_harmless/test.jsonl.gz")
  with gzip.open(path, "rt", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
  pairs, counts = hh.preferences(rows)
  assert counts == {
    "rows": 2012,
    "parted_earlier": 4,
    "merged_turns": 3,
    "empty_reply_dropped": 4,
    "equal_dropped": 0,
    "malformed_dropped": 0,
  }
  for pair in pairs:
    roles = [message["role"] for message in pair.prompt]
    expected = ["user", "assistant"] * len(roles)
    assert roles == expected[: len(roles)]
    assert len(roles) % 2 == 1
    # What was read is in the transcripts, whole.
    row = rows[int(pair.id.split(":")[1])]
    assert row["chosen"].strip().endswith(pair.chosen)
    assert row["rejected"].strip().endswith(pair.rejected)

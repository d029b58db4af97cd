"""Rows that cannot be used: counted by reason, shown, refused if most are."""

import pytest

from perl_jax.data import unusable


def test_the_first_three_rows_of_each_reason_are_shown():
  found = unusable.Unusable()
  for n in range(5):
    found.add(f"a.jsonl:{n}: field 'x'", "which are empty")
  found.add("a.jsonl:9: field 'y'", "which are long")
  assert len(found) == 6
  assert found.notes() == [
    "left out 5 rows, which are empty: a.jsonl:0: field 'x' | a.jsonl:1: field"
    " 'x' | a.jsonl:2: field 'x' | and 2 more",
    "left out 1 row, which are long: a.jsonl:9: field 'y'",
  ]


def test_data_of_which_most_rows_cannot_be_used_is_refused():
  found = unusable.Unusable()
  found.add("a.jsonl:1: field 'x'", "which are empty")
  found.check(2, "rows of a.jsonl")
  with pytest.raises(ValueError, match=r"1 of 1 rows of a\.jsonl.*\n.*:1: f"):
    found.check(1, "rows of a.jsonl")


def test_shares_of_keys():
  keys = {"id": 1, "date": 3}.items()
  assert unusable.shares(keys, 4) == "date (75 % of rows), id (25 % of rows)"

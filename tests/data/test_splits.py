"""Splits by group: nothing overlaps, nothing depends on order."""

import random

import pytest

from perl_jax.data import splits
from perl_jax.data.records import Labelled


def _rows(groups):
  return [
    Labelled(str(n), group, (), "yes", 1.0) for n, group in enumerate(groups)
  ]


def test_first_user_turn_folds_case_punctuation_and_space():
  messages = [
    {"role": "assistant", "content": "Welcome!"},
    {"role": "user", "content": "  Hi, I'd like\ta  2% LATTE_please. "},
    {"role": "user", "content": "other"},
  ]
  assert splits.first_user_turn(messages) == "hi id like a 2 latteplease"
  assert splits.first_user_turn(messages[:1]) == ""


def test_every_row_is_held_out_once_and_groups_stay_together():
  rows = _rows([f"g{n % 13}" for n in range(100)])
  held_out = []
  for fold in range(5):
    split = splits.split_records(rows, folds=5, fold=fold, seed=3)
    assert not {r.group for r in split.train} & {
      r.group for r in split.validation
    }
    assert sorted(split.train + split.validation, key=rows.index) == rows
    # Order is kept on both sides.
    for side in (split.train, split.validation):
      assert [int(r.id) for r in side] == sorted(int(r.id) for r in side)
    held_out += split.validation
  assert sorted(held_out, key=rows.index) == rows


def test_folds_depend_on_groups_folds_and_seed_alone():
  groups = [f"g{n}" for n in range(40)]
  first = splits.assign_folds(groups, folds=4, seed=0)
  shuffled = groups * 3 + groups[:7]
  random.Random(1).shuffle(shuffled)
  assert splits.assign_folds(shuffled, folds=4, seed=0) == first
  assert splits.assign_folds(groups, folds=4, seed=1) != first
  sizes = [list(first.values()).count(fold) for fold in range(4)]
  assert sizes == [10] * 4
  assert all(type(fold) is int for fold in first.values())


def test_fixed_folds_are_kept_and_the_rest_divided():
  fixed = splits.assign_folds([f"g{n}" for n in range(20)], folds=5, seed=0)
  groups = [f"g{n}" for n in range(10, 40)]
  assigned = splits.assign_folds(groups, folds=5, seed=0, fixed=fixed)
  assert set(assigned) == set(groups)
  assert all(assigned[g] == fixed[g] for g in groups if g in fixed)
  new = [assigned[g] for g in groups if g not in fixed]
  assert [new.count(fold) for fold in range(5)] == [4] * 5
  few = splits.assign_folds(["g1", "x", "y"], folds=5, seed=0, fixed=fixed)
  assert few == {"g1": fixed["g1"], "x": 0, "y": 1}
  rows = _rows(groups)
  split = splits.split_records(rows, folds=5, fold=2, seed=0, assigned=fixed)
  assert {r.group for r in split.validation} == {
    g for g in groups if assigned[g] == 2
  }


def test_some_folds_are_trained_on():
  rows = _rows([f"g{i % 20}" for i in range(60)])
  whole = splits.split_records(rows, folds=5, fold=1, seed=3)
  fold_of = {
    row.group: fold
    for fold in range(5)
    for row in splits.split_records(rows, folds=5, fold=fold, seed=3).validation
  }
  some = splits.split_records(
    rows, folds=5, fold=1, seed=3, train_folds=(0, 4), counts={"rows": 60}
  )
  assert some.validation == whole.validation
  assert some.train == [row for row in rows if fold_of[row.group] in (0, 4)]
  assert some.counts == {"rows": 60, "in_other_folds": 24}


@pytest.mark.parametrize(
  ("folds", "message"),
  [((1, 2), "fold=1 is held out"), ((0, 5), "train_folds=5 is out of range")],
)
def test_folds_that_cannot_be_trained_on(folds, message):
  with pytest.raises(ValueError, match=message):
    splits.split_records(
      _rows("abcdef"), folds=5, fold=1, seed=0, train_folds=folds
    )


@pytest.mark.parametrize(
  ("groups", "folds", "fold", "message"),
  [
    ([], 5, 0, "empty"),
    (["a", "b", "a"], 3, 0, r"2 distinct group\(s\).*3 folds"),
    (["a", "b"], 2, 2, "fold=2 is out of range.*0 to 1"),
    (["a", "b"], 2, -1, "fold=-1 is out of range"),
    (["a", "b"], 1, 0, "at least 2"),
  ],
)
def test_bad_input_is_refused(groups, folds, fold, message):
  with pytest.raises(ValueError, match=message):
    splits.split_records(_rows(groups), folds=folds, fold=fold, seed=0)


def test_fixed_folds_out_of_range_are_refused():
  with pytest.raises(ValueError, match=r"'a' was assigned fold 4.*3 folds"):
    splits.assign_folds(["a", "b"], folds=3, seed=0, fixed={"a": 4})


def test_a_side_without_rows_is_refused():
  fixed = {"a": 0, "b": 0}
  with pytest.raises(ValueError, match="leaves no training rows"):
    splits.split_records(
      _rows(["a", "b"]), folds=2, fold=0, seed=0, assigned=fixed
    )


def test_keys_of_ascii_are_those_of_the_pattern():
  for code in range(128):
    for text in (f"A{chr(code)}b \t C", f"{chr(code)}A\tb C{chr(code)}"):
      ascii_key = splits.text_key(text)
      assert splits.text_key(text + " \xe9") == f"{ascii_key} \xe9"

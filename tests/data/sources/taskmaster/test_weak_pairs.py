"""Weak preferences: the chosen turns, and where rejected ones come from."""

import json

import pytest

from perl_jax.data import records
from perl_jax.data.sources.taskmaster import weak_pairs


def dialog(number: int, turns: list[tuple[str, str]]) -> records.Demonstration:
  return records.Demonstration(
    id=f"d{number}",
    group=f"g{number}",
    prompt=({"role": "assistant", "content": "welcome"},),
    turns=tuple({"role": r, "content": c} for r, c in turns),
  )


def order(number: int) -> records.Demonstration:
  return dialog(
    number,
    [
      ("user", f"a latte {number}"),
      ("assistant", f'{{"find": {{"query": "latte {number}"}}}}'),
      ("tool", '{"find": {}}'),
      ("assistant", f"anything else, {number}?"),
    ],
  )


@pytest.fixture
def splits() -> records.Splits:
  return records.Splits(
    [order(n) for n in range(40)],
    [order(n) for n in range(90, 99)],
    {"rows": 3},
  )


def test_each_agent_turn_is_chosen_once_in_its_own_context(splits):
  found = weak_pairs.weak_preferences(splits, seed=0)
  assert len(found.train) == 80 and len(found.validation) == 18
  by_id = {d.id: d for d in splits.train}
  for row in found.train:
    source, at = by_id[row.id.split("#")[0]], int(row.id[:-2].split("#")[1])
    assert row.chosen == source.turns[at]["content"]
    assert row.prompt == source.prompt + source.turns[:at]
    assert row.group == source.group and row.rejected != row.chosen
  assert found.counts == {"rows": 3, "pairs": 98, "without_rejected": 0}


def test_a_rejected_turn_is_from_the_same_side(splits):
  found = weak_pairs.weak_preferences(splits, seed=0)
  for side in ("train", "validation"):
    own = {m["content"] for d in getattr(splits, side) for m in d.turns}
    words = {word.strip('"{}') for text in own for word in text.split()} | {
      "OR"
    }
    for row in getattr(found, side):
      edited = row.rejected not in own
      assert not edited or row.chosen.startswith("{")
      assert {w.strip('"{}') for w in row.rejected.split()} <= words


def test_every_way_of_being_wrong_occurs(splits):
  found = weak_pairs.weak_preferences(splits, seed=0).train
  own = {d.id: {m["content"] for m in d.turns} for d in splits.train}
  calls = [row for row in found if row.chosen.startswith("{")]
  step = sum(r.rejected in own[r.id.split("#")[0]] for r in calls)
  two_terms = sum(" OR " in r.rejected for r in calls)
  other_call = len(calls) - step - two_terms
  assert len(calls) == 40
  assert step > 6 and two_terms > 2 and other_call > 12
  # Of two texts for the same moment neither is wrong: another moment's turn.
  texts = [row for row in found if row not in calls]
  assert all(row.rejected.startswith("{") for row in texts)


BEVERAGES = {
  "menu_item_id": "latte",
  "attributes": [
    {"id": "milk", "option": "oat"},
    {"id": "shots", "option": "2"},
  ],
}


@pytest.mark.parametrize("seed", range(8))
def test_an_edit_changes_one_argument_and_stays_a_call(seed):
  other = {
    "menu_item_id": "mocha",
    "attributes": [{"id": "milk", "option": "whole"}],
  }
  sides = [
    dialog(
      n, [("user", "one please"), ("assistant", json.dumps({"add": call}))]
    )
    for n, call in enumerate((BEVERAGES, other, BEVERAGES))
  ]
  found = weak_pairs.weak_preferences(
    records.Splits(sides, [], {}), seed=seed, pairs_per_turn=8
  )
  calls = [json.dumps({"add": call}) for call in (BEVERAGES, other)]
  edits = [row for row in found.train if row.rejected not in calls]
  assert edits
  for row in edits:
    before, after = (json.loads(x)["add"] for x in (row.chosen, row.rejected))
    assert before.keys() == after.keys()
    assert sum(before[key] != after[key] for key in before) == 1
    sizes = [len(call["attributes"]) for call in (before, after)]
    assert after["attributes"] and abs(sizes[0] - sizes[1]) <= 1


def test_the_seed_decides_and_nothing_else(splits):
  first = weak_pairs.weak_preferences(splits, seed=1)
  assert first == weak_pairs.weak_preferences(splits, seed=1)
  assert first != weak_pairs.weak_preferences(splits, seed=2)


def test_a_turn_without_any_other_is_counted():
  only = dialog(0, [("user", "hi"), ("assistant", "hello")])
  found = weak_pairs.weak_preferences(
    records.Splits([only, only], [], {}), seed=0
  )
  assert found.train == []
  assert found.counts == {"pairs": 0, "without_rejected": 2}

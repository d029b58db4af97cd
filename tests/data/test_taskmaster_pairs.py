"""Weak preferences: who is chosen, where the rejected turn comes from."""

import pytest

from perl_jax.data import records, taskmaster_pairs


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
  found = taskmaster_pairs.weak_preferences(splits, seed=0)
  assert len(found.train) == 80 and len(found.validation) == 18
  by_id = {d.id: d for d in splits.train}
  for row in found.train:
    source, at = by_id[row.id.split("#")[0]], int(row.id[:-2].split("#")[1])
    assert row.chosen == source.turns[at]["content"]
    assert row.prompt == source.prompt + source.turns[:at]
    assert row.group == source.group and row.rejected != row.chosen
  assert found.counts == {"rows": 3, "pairs": 98, "without_rejected": 0}


def test_a_rejected_turn_is_from_the_same_side(splits):
  found = taskmaster_pairs.weak_preferences(splits, seed=0)
  for side in ("train", "validation"):
    own = {m["content"] for d in getattr(splits, side) for m in d.turns}
    assert all(row.rejected in own for row in getattr(found, side))


def test_every_way_of_being_wrong_occurs(splits):
  found = taskmaster_pairs.weak_preferences(splits, seed=0).train
  own = {d.id: {m["content"] for m in d.turns} for d in splits.train}
  same_dialog = sum(r.rejected in own[r.id.split("#")[0]] for r in found)
  same_kind = sum(
    r.rejected not in own[r.id.split("#")[0]]
    and r.rejected.startswith("{") == r.chosen.startswith("{")
    for r in found
  )
  other_kind = len(found) - same_dialog - same_kind
  assert same_dialog > 12 and same_kind > 24 and other_kind > 4


def test_the_seed_decides_and_nothing_else(splits):
  first = taskmaster_pairs.weak_preferences(splits, seed=1)
  assert first == taskmaster_pairs.weak_preferences(splits, seed=1)
  assert first != taskmaster_pairs.weak_preferences(splits, seed=2)


def test_a_turn_without_any_other_is_counted():
  only = dialog(0, [("user", "hi"), ("assistant", "hello")])
  found = taskmaster_pairs.weak_preferences(
    records.Splits([only, only], [], {}), seed=0
  )
  assert found.train == []
  assert found.counts == {"pairs": 0, "without_rejected": 2}

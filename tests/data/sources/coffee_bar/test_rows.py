"""The embedded coffee orders: split, noise, mistakes and the gold checker."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from perl_jax.data import records
from perl_jax.data.sources.coffee_bar import orders
from perl_jax.data.sources.coffee_bar import rows as rows_lib
from tests.data.sources.coffee_bar import reading


def test_validation_orders_are_in_no_training_set_of_any_kind_or_seed(splits):
  train, held_out = set(), set()
  another = rows_lib.load(
    "prompts", size=reading.ROWS, validation_size=reading.HELD_OUT, seed=7
  )
  for split in [*splits.values(), another]:
    train |= {row.group for row in split.train}
    held_out |= {row.group for row in split.validation}
  assert len(train) > 3 * reading.ROWS and len(held_out) > 3 * reading.HELD_OUT
  assert not train & held_out
  right = {row.turns[0]["content"] for row in splits["demonstrations"].train}
  right &= {row.group for row in splits["demonstrations"].train}
  assert right and not right & held_out


def test_validation_orders_are_distinct_and_as_many_as_asked():
  # Of as many draws about 20 repeat an earlier one.
  split = rows_lib.load("prompts", size=1, validation_size=1000)
  assert len({row.group for row in split.validation}) == 1000
  assert split.counts == {"train_rows": 1, "validation_rows": 1000}


@pytest.mark.parametrize("quality", [0.0, 0.3, 0.5, 1.0])
def test_share_of_right_demonstrations_is_as_asked(quality):
  split = rows_lib.load(
    "demonstrations", size=reading.ROWS, validation_size=1, demo_quality=quality
  )
  right = sum(row.turns[0]["content"] == row.group for row in split.train)
  assert reading.within(right, reading.ROWS, quality)
  assert split.counts.get("train_right", 0) == right
  assert split.counts.get("train_slipped", 0) == reading.ROWS - right


def test_mistakes_are_of_all_kinds_and_few(splits):
  mistakes, kinds = Counter(), Counter()
  for row in splits["demonstrations"].train:
    answer, truth = row.turns[0]["content"], row.group
    mistakes[reading.differing_fields(answer, truth)] += 1
    (said, malformed), (right, _) = (
      reading.repaired(answer),
      reading.repaired(truth),
    )
    kinds["malformed"] += malformed
    for name in said.keys() | right.keys():
      if name not in said:
        kinds[f"{name} dropped"] += 1
      elif name not in right:
        kinds[f"{name} invented"] += 1
      elif said[name] != right[name]:
        kinds[f"{name} wrong"] += 1
  assert (
    set(mistakes) == {0, 1, 2, 3}
    and mistakes[1] > mistakes[2] > mistakes[3] > 0
  )
  assert all(
    kinds[kind] >= 10
    for kind in (
      "item wrong", "size dropped", "size wrong", "size invented",
      "milk dropped", "milk wrong", "temperature dropped", "quantity wrong",
      "extras dropped", "extras wrong", "extras invented", "malformed",
    )
  ), kinds  # fmt: skip


def test_pairs_differ_in_mistakes_and_a_share_is_flipped(splits):
  flipped = both_slipped = 0
  for row in splits["preferences"].train:
    chosen = reading.differing_fields(row.chosen, row.group)
    rejected = reading.differing_fields(row.rejected, row.group)
    assert chosen != rejected
    flipped += chosen > rejected
    both_slipped += min(chosen, rejected) > 0
  counts = splits["preferences"].counts
  assert flipped == counts["train_flipped"] and reading.within(
    flipped, reading.ROWS, 0.1
  )
  assert both_slipped == counts["train_both_slipped"] > reading.ROWS / 20
  for row in splits["preferences"].validation:
    chosen = reading.differing_fields(row.chosen, row.group)
    assert chosen < reading.differing_fields(row.rejected, row.group)
  assert counts["validation_flipped"] == 0


def test_quality_of_demonstrations_leaves_ratings_as_they_are(splits):
  for kind in ("preferences", "labelled"):
    perfect = rows_lib.load(kind, size=100, validation_size=1, demo_quality=1.0)
    assert perfect.train == splits[kind].train[:100]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
def test_thumbs_are_wrong_in_the_share_asked(noise):
  split = rows_lib.load(
    "labelled", size=reading.ROWS, validation_size=100, label_noise=noise
  )
  wrong = sum(r.label != float(r.response == r.group) for r in split.train)
  assert reading.within(wrong, reading.ROWS, noise)
  assert split.counts["train_flipped"] == wrong
  right = sum(row.response == row.group for row in split.train)
  assert reading.within(right, reading.ROWS, rows_lib.RATED_QUALITY)
  for row in split.validation:
    assert row.label == float(row.response == row.group)


def test_mistakes_are_alike_in_all_kinds(splits):
  def mean(answers):
    mistakes = [reading.differing_fields(a, t) for a, t in answers if a != t]
    return sum(mistakes) / len(mistakes)

  demos = mean(
    (row.turns[0]["content"], row.group)
    for row in splits["demonstrations"].train
  )
  rated = mean((row.response, row.group) for row in splits["labelled"].train)
  # Mistakes of a wrong answer: 1 + 0.3 + 0.3 * 0.15 on average.
  assert demos == pytest.approx(1.345, abs=0.08)
  assert rated == pytest.approx(1.345, abs=0.08)


class TestCheckResponse:
  def gold(self, prompt, response):
    checks = rows_lib.check_response(prompt, response)
    assert set(checks) == {"gold"}
    return checks["gold"]

  @pytest.fixture
  def prompt(self, splits):
    return next(
      row
      for row in splits["prompts"].validation
      if len(json.loads(row.group)["add_item"].get("extras", ())) == 2
    )

  def test_the_reference_is_right_and_every_mistake_wrong(self, splits):
    for prompt in splits["prompts"].validation:
      assert self.gold(prompt, prompt.reference) == 1.0
    dice = orders.Dice(3)
    for _ in range(1000):
      request = orders.draw(dice)
      for count in (1, 2, 3):
        answer = orders.answer(request, count, dice)
        truth = request.order.call()
        prompt = records.Prompt("id", truth, (), truth)
        assert reading.differing_fields(answer, truth) == count
        assert self.gold(prompt, answer) == 0.0

  def test_order_of_keys_and_extras_and_white_space_are_free(self, prompt):
    call = json.loads(prompt.reference)["add_item"]
    turned = dict(reversed(call.items()))
    turned["extras"] = turned["extras"][::-1]
    text = json.dumps({"add_item": turned}, separators=(",", ":"))
    assert text != prompt.reference
    assert self.gold(prompt, text) == 1.0
    assert self.gold(prompt, f" {json.dumps({'add_item': turned}, indent=2)}\n")

  def test_anything_else_is_wrong(self, prompt):
    right = prompt.reference
    call = json.loads(right)["add_item"]
    extras = call["extras"]
    number = int(call["quantity"])
    wrong = [
      "",
      "null",
      "{}",
      "[]",
      "NaN",
      "[" * 100_000,
      "9" * 10_000,
      right[:-1],
      right + "}",
      right + " thanks",
      right + right,
      "ok " + right,
      right.replace('"', "'"),
      json.dumps(call),
      json.dumps([json.loads(right)]),
      json.dumps(right),
      json.dumps({"add_item": call, "pay": {}}),
      json.dumps({"Add_item": call}),
      json.dumps({"add_item": call | {"quantity": number}}),
      json.dumps({"add_item": call | {"extras": extras[:1]}}),
      json.dumps({"add_item": call | {"extras": extras + extras[:1]}}),
      json.dumps({"add_item": call | {"extras": [*extras, 1]}}),
      json.dumps({"add_item": call | {"note": ""}}),
      json.dumps({"add_item": {k: v for k, v in call.items() if k != "item"}}),
      right.replace('"quantity"', '"quantity": "9", "quantity"'),
    ]
    for response in wrong:
      assert self.gold(prompt, response) == 0.0, response[:80]

  def test_an_empty_list_of_extras_is_wrong(self, splits):
    prompt = next(
      row
      for row in splits["prompts"].validation
      if "extras" not in json.loads(row.group)["add_item"]
    )
    call = json.loads(prompt.reference)["add_item"] | {"extras": []}
    assert self.gold(prompt, json.dumps({"add_item": call})) == 0.0

  @pytest.mark.parametrize("reference", [None, "a latte"])
  def test_needs_a_reference_that_is_a_call(self, reference):
    prompt = records.Prompt("row 3", "g", (), reference)
    with pytest.raises(ValueError, match=r"row 3.*reference.*(None|a latte)"):
      rows_lib.check_response(prompt, "{}")


def test_more_rows_keep_the_first_ones_and_streams_are_independent(splits):
  few = rows_lib.load("preferences", size=50, validation_size=20)
  assert few.train == splits["preferences"].train[:50]
  assert few.validation == splits["preferences"].validation[:20]
  other = rows_lib.load("preferences", size=50, validation_size=1, seed=1)
  assert [r.group for r in other.train] != [r.group for r in few.train]
  firsts = {split.train[0].group for split in splits.values()}
  assert len(firsts) == len(rows_lib.KINDS)


def test_same_rows_in_every_process():
  code = (
    "from perl_jax.data.sources.coffee_bar import rows as c;"
    "import hashlib;"
    "print(hashlib.sha256(repr([c.load(k, size=200, validation_size=50)"
    " for k in c.KINDS]).encode()).hexdigest())"
  )
  digests = {
    subprocess.run(
      [sys.executable, "-c", code],
      env=os.environ | {"PYTHONHASHSEED": seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in ("1", "2")
  }
  assert len(digests) == 1 and len(digests.pop().strip()) == 64


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "dialogs"}, "coffee_bar has no 'dialogs'.*demonstrations"),
    ({"size": 0}, "size must be .* from 1 on, got 0"),
    ({"size": 2.5}, "size must be a whole number .* got 2.5"),
    ({"validation_size": -1}, "validation_size .* got -1"),
    ({"seed": -1}, "seed .* got -1"),
    ({"demo_quality": 1.5}, "demo_quality .* 0 to 1.0, got 1.5"),
    ({"label_noise": 0.6}, "label_noise .* 0 to 0.5, got 0.6"),
  ],
)
def test_options_out_of_range_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    rows_lib.load(**{"kind": "prompts"} | options)

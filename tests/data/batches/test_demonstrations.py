"""Rows of packed dialogues: padding, and dialogues without a target."""

import numpy as np
import pytest

from perl_jax.data import records, unusable
from perl_jax.data.batches import demonstrations
from tests.data.batches import cases
from tests.data.text.messages import assistant, user


def test_collated_targets_are_filled_with_padding():
  row = ([5, 6, 7, 0], [0, 1, 2, 0], [1, 1, 1, 0], [False, True, True, False])
  rows = [demonstrations.TargetBatch(*map(np.array, row))]
  batch = demonstrations.collate_targets(rows, 4, 2)
  assert batch.tokens.tolist() == [[5, 6, 7, 0], [0, 0, 0, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
  assert batch.segments.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
  assert batch.target_mask.tolist() == [[False, True, True, False], [False] * 4]
  assert [leaf.dtype for leaf in batch] == [np.int32] * 3 + [np.bool_]
  with pytest.raises(ValueError, match="4 tokens, the batch 8"):
    demonstrations.collate_targets(rows, 8)


def test_a_dialogue_without_an_assistant_message_is_named(tokenization):
  silent = records.Demonstration("f.json:9", "g", cases.CONTEXT, cases.CONTEXT)
  with pytest.raises(ValueError, match=r"f\.json:9: .*assistant message"):
    demonstrations.encode_demonstrations([silent], tokenization)


def test_a_dialogue_that_cannot_be_encoded_is_left_out(tokenization):
  rows = [
    records.Demonstration(
      f"f.json:{n}", "g", cases.CONTEXT[:1], (assistant(text),)
    )
    for n, text in enumerate(["12", "there \ud800", "hello"])
  ]
  bad = unusable.Unusable()
  found = demonstrations.encode_demonstrations(rows, tokenization, bad)
  assert len(found) == 2
  (note,) = bad.notes()
  assert "f.json:1: Text that is not valid Unicode" in note


def test_parts_are_the_runs_of_a_row():
  row = ([5, 6, 7, 8], [False, True, True, False])
  assert demonstrations.parts(row) == [
    ("given", [5], False),
    ("target", [6, 7], True),
    ("given", [8], False),
  ]


def test_an_answer_of_weight_0_is_no_target(tokenization):
  row = records.Demonstration(
    "f.json:1",
    "g",
    cases.CONTEXT[:1],
    (assistant("12 mochas") | {"weight": 0}, user("again"), assistant("hello")),
  )
  ((tokens, mask),) = demonstrations.encode_demonstrations([row], tokenization)
  names = [
    tokenization.decode(ids)
    for name, ids, _ in demonstrations.parts((tokens, mask))
    if name == "target"
  ]
  assert names == ["hello"]


def test_a_token_of_a_dialogue_takes_four_bytes_and_one_of_its_mask(
  tokenization,
):
  turns = (assistant("12 mochas"), user("again"), assistant("hello"))
  rows = [
    records.Demonstration("f.json:1", "g", cases.CONTEXT[:1], turns),
    records.Text("f.json:2", "g", "hello there"),
  ]
  for row in demonstrations.encode_demonstrations(rows, tokenization):
    assert [part.nbytes / len(part) for part in row] == [4, 1]
    assert all(part.base is None for part in row)

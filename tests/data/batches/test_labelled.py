"""Labelled responses: their items, and responses that are too long."""

import pytest

from perl_jax.data import records
from perl_jax.data.batches import labelled
from tests.data.batches import cases
from tests.data.plain import plain


def test_an_item_is_a_prompt_with_one_response():
  row = labelled.EncodedLabelled([1, 2, 5], 1, 1.0, 3)
  assert (row.prompt, row.responses) == ([1], ([2, 5],))
  assert (row.length, row.response_length) == (3, 2)


def test_labelled_rows_end_with_the_stop_token(tokenization):
  rows = [
    records.Labelled(str(i), "g", cases.CONTEXT[:1], "", 1.0) for i in range(2)
  ]
  encoded, _ = plain(labelled.encode_labelled(rows, tokenization, 100))
  prompt, _ = tokenization.encode_prompt(cases.CONTEXT[:1])
  assert encoded[1] == (
    [*prompt, tokenization.stop_ids[0]],
    len(prompt),
    1.0,
    1,
  )
  assert encoded[1].response_length == 1


def test_responses_that_do_not_fit_are_left_out_or_named(tokenization):
  row = records.Labelled("f.json:7", "g", cases.CONTEXT, cases.LONG_REPLY, 1.0)
  found, counts = labelled.encode_labelled([row], tokenization, 20, "drop")
  assert found == [] and counts["too_long_dropped"] == 1
  with pytest.raises(ValueError, match=r"f\.json:7: the response has \d+ of"):
    labelled.encode_labelled([row], tokenization, 20, "error")

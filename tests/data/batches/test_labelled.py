"""Labelled responses: padding on the right, and responses that are too long."""

import numpy as np
import pytest

from perl_jax.data import records
from perl_jax.data.batches import labelled
from tests.data.batches import cases


def test_collated_labelled_rows_are_padded_on_the_right():
  batch = labelled.collate_labelled(
    [labelled.EncodedLabelled([1, 2], 1, 1.0, 3)], 3, 2
  )
  assert batch.tokens.tolist() == [[1, 2, 0], [0, 0, 0]]
  assert batch.labels.tolist() == [1.0, 0.0]
  assert batch.labels.dtype == np.float32
  assert batch.lengths.tolist() == [2, 1]
  assert batch.prompt_lengths.tolist() == [1, 1]
  assert batch.valid.tolist() == [True, False]
  assert batch.index.tolist() == [3, -1]


def test_labelled_rows_end_with_the_stop_token(tokenization):
  rows = [
    records.Labelled(str(i), "g", cases.CONTEXT[:1], "", 1.0) for i in range(2)
  ]
  encoded, _ = labelled.encode_labelled(rows, tokenization, 100)
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

"""What all kinds of batches share: sizes, buckets, rows that are left out."""

import numpy as np
import pytest

from perl_jax.data import batches, records, unusable
from perl_jax.data.batches import common, preferences
from perl_jax.data.batches import prompts as prompts_lib
from tests.data.batches import cases


def test_collating_refuses_what_does_not_fit():
  row = prompts_lib.EncodedPrompt([1, 2, 3], 0)
  with pytest.raises(ValueError, match="3 tokens; the batch takes 1 to 2"):
    prompts_lib.collate_prompts([row], 2)
  with pytest.raises(ValueError, match="2 rows do not fit in a batch of 1"):
    prompts_lib.collate_prompts([row, row], 4, 1)


def test_bucket_for_takes_the_smallest_that_holds_it():
  assert common.bucket_for(5, (16, 8)) == 8
  assert common.bucket_for(8, (16, 8)) == 8
  assert common.bucket_for(9, (16, 8)) == 16
  with pytest.raises(ValueError, match=r"17 tokens fits in none.*\[16, 8\]"):
    common.bucket_for(17, (16, 8))


@pytest.fixture
def rows():
  """Pairs of which the second is a tie and the third has no room."""
  context = cases.CONTEXT[:1]
  return [
    records.Preference("a:1", "g", context, "hello", "no"),
    records.Preference("a:2", "g", context, "12", "12"),
    records.Preference("a:3", "g", context, cases.LONG_REPLY, "no"),
    records.Preference("a:4", "g", context, "there \ud800", "no"),
  ]


@pytest.mark.parametrize("long", ["turns", "cut", "drop"])
def test_rows_that_cannot_be_used_are_counted_by_reason(
  rows, tokenization, long
):
  bad = unusable.Unusable()
  found, counts = preferences.encode_preferences(
    rows, tokenization, 40, long, bad=bad
  )
  assert [row.index for row in found] == [0]
  assert counts["too_long_dropped"] == counts["ties_dropped"] == 1
  tie, long_, refused = sorted(bad.notes(), key=lambda note: note.count(":"))
  for note, where in ((tie, "a:2: "), (long_, "a:3: "), (refused, "a:4: ")):
    assert note.startswith("left out 1 row, which") or "replies" in note
    assert where in note
  assert len(bad) == 3


def test_a_row_that_is_too_long_says_whose_length_of_what(rows, tokenization):
  """And the value that it names is enough."""
  response = len(tokenization.encode_response((), cases.LONG_REPLY))
  prompt = len(tokenization.encode_prompt(cases.CONTEXT[:1])[0])
  limit = response + 1
  bad = unusable.Unusable()
  args = rows[2:3], tokenization
  preferences.encode_preferences(*args, limit, bad=bad)
  (note,) = bad.notes()
  assert (
    f"the response has {response} of the {limit} tokens of data.max_len, which"
    f" leaves 1 for a prompt of {prompt} tokens: raise data.max_len to"
    f" {response + prompt} to keep all of it."
  ) in note  # A prompt of one token is none.
  bad = unusable.Unusable()
  preferences.encode_preferences(*args, response + prompt - 1, bad=bad)
  (note,) = bad.notes()
  assert "keep all of it, or shorten prompts with data.long='cut'." in note
  found, _ = preferences.encode_preferences(*args, response + prompt)
  assert found[0].length == response + prompt
  found, _ = preferences.encode_preferences(*args, response + prompt - 1, "cut")
  assert found[0].length < response + prompt
  with pytest.raises(ValueError, match="a:3: the response has"):
    preferences.encode_preferences(*args, limit, "error")


def test_a_prompt_that_is_too_long_names_its_own_field(tokenization):
  row = records.Prompt("a:1", "g", cases.CONTEXT, None)
  bad = unusable.Unusable()
  assert prompts_lib.encode_prompts([row], tokenization, 3, bad=bad)[0] == []
  (note,) = bad.notes()
  assert "a:1: the prompt has" in note and "data.prompt_len is 3" in note


@pytest.mark.parametrize("kind", batches.KINDS)
def test_a_token_of_a_row_takes_four_bytes(kind, tokenization):
  """A list takes 36 of most: 8 in itself, and 28 for the number."""
  given = ("a:1", "g", cases.CONTEXT)
  row = {
    "preferences": records.Preference(*given, "hello", "12"),
    "labelled": records.Labelled(*given, "hello", 1.0),
    "candidates": records.Candidates(*given, ("hello",), ("response",)),
    "prompts": records.Prompt(*given, None),
  }[kind]
  (found,), _ = batches.KINDS[kind].encode([row], tokenization, 500)
  held = [value for value in found if isinstance(value, np.ndarray)]
  assert not any(isinstance(value, list | tuple) for value in found)
  assert sum(map(len, held)) >= found.length > 20
  assert sum(value.nbytes for value in held) == 4 * sum(map(len, held))
  assert all(value.base is None for value in held)

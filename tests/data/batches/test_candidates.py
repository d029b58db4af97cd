"""Responses to score: a row of a batch each, all of one prompt cut alike."""

from perl_jax.data import records, unusable
from perl_jax.data.batches import candidates, preferences
from tests.data.batches import cases
from tests.data.plain import plain


def row(prompt, *responses, label=None):
  sides = ("response",) * len(responses)
  return records.Candidates("id", "g", prompt, responses, sides, label=label)


def test_a_pair_is_encoded_as_pairs_are(tokenization):
  """Long prompts too, which both responses are shortened for."""
  pair = records.Preference("id", "g", cases.CONTEXT, "Tea.", "Tea, please!")
  for limit in (100, 40, 30):
    for closed in (False, True):
      (theirs,), _ = plain(
        preferences.encode_preferences(
          [pair], tokenization, limit, closed=closed
        )
      )
      mine, _ = plain(
        candidates.encode_candidates(
          [records.candidates_of(pair)], tokenization, limit, closed=closed
        )
      )
      assert [r.tokens for r in mine] == [theirs.chosen, theirs.rejected]
      assert {r.prompt_length for r in mine} == {theirs.prompt_length}


def test_a_row_that_does_not_fit_keeps_its_numbers(tokenization):
  bad = unusable.Unusable()
  rows = [
    row(cases.CONTEXT[:1], "Tea."),
    row(cases.CONTEXT[:1], "Tea.", cases.LONG_REPLY),
    row(cases.CONTEXT[:1], "Tea.", "Tea.", label=1.0),
  ]
  found, counts = candidates.encode_candidates(rows, tokenization, 40, bad=bad)
  assert [r.index for r in found] == [0, 3, 4]
  assert [r.label for r in found] == [0.0, 1.0, 1.0]
  assert counts["too_long_dropped"] == len(bad) == 1

"""Pairs of responses: one shared prompt, and pairs too long."""

from perl_jax.data import records
from perl_jax.data.batches import preferences
from tests.data.batches import cases
from tests.data.plain import plain


def test_an_item_is_a_prompt_with_two_responses():
  row = preferences.EncodedPreference([1, 2, 3], [1, 4], 1, 17)
  assert (row.prompt, row.responses) == ([1], ([2, 3], [4]))
  assert row.length == 3 and row.response_length == 2


def test_both_responses_follow_the_same_shortened_prompt(tokenization):
  row = records.Preference("a:1", "g", cases.CONTEXT, "hello there", "12")
  whole, counts = plain(
    preferences.encode_preferences([row], tokenization, 500)
  )
  assert not any(counts.values())
  chosen = tokenization.encode_response((), "hello there")
  rejected = tokenization.encode_response((), "12")
  prompt, _ = tokenization.encode_prompt(cases.CONTEXT)
  assert whole == [(prompt + chosen, prompt + rejected, len(prompt), 0)]

  (short,), counts = plain(
    preferences.encode_preferences([row], tokenization, whole[0].length - 1)
  )
  prompt, _ = tokenization.encode_prompt(cases.CONTEXT[1:])
  assert short == (prompt + chosen, prompt + rejected, len(prompt), 0)
  assert counts == {
    "truncated_rows": 1, "dropped_turns": 1, "cut_tokens": 0,
    "too_long_dropped": 0,
  }  # fmt: skip


def test_pairs_that_do_not_fit_are_left_out_and_counted(tokenization):
  """The pairs that remain keep the number of their record."""
  rows = [
    records.Preference(str(i), "g", cases.CONTEXT[:1], reply, "no")
    for i, reply in enumerate(("hello", cases.LONG_REPLY, "12"))
  ]
  encoded, counts = preferences.encode_preferences(
    rows, tokenization, 30, "drop"
  )
  assert [row.index for row in encoded] == [0, 2]
  assert counts["too_long_dropped"] == 1

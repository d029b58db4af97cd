"""Rows of tokens keep both ends of a record; what is too long is named."""

import pytest

from perl_jax.data import records
from perl_jax.data.batches import demonstrations, preferences, prompts
from perl_jax.data.batches import labelled as labelled_lib
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import train_tokenizer


@pytest.fixture(scope="module")
def tokenization(tmp_path_factory):
  path = tmp_path_factory.mktemp("batches") / "tokenizer"
  return tokenization_lib.load_tokenizer(
    train_tokenizer.train_tokenizer(["hello there, 12 mochas"] * 4, 300, path)
  )


CONTEXT = tuple(
  {"role": "user", "content": f"hello there, {i} mochas"} for i in range(4)
)


def test_both_responses_follow_the_same_shortened_prompt(tokenization):
  row = records.Preference("a:1", "g", CONTEXT, "hello there", "12")
  whole, counts = preferences.encode_preferences([row], tokenization, 500)
  assert not any(counts.values())
  chosen = tokenization.encode_response((), "hello there")
  rejected = tokenization.encode_response((), "12")
  prompt, _ = tokenization.encode_prompt(CONTEXT)
  assert whole == [
    (
      prompt + chosen,
      prompt + rejected,
      len(prompt),
      0,
    )
  ]

  (short,), counts = preferences.encode_preferences(
    [row], tokenization, whole[0].length - 1
  )
  prompt, _ = tokenization.encode_prompt(CONTEXT[1:])
  assert short == (
    prompt + chosen,
    prompt + rejected,
    len(prompt),
    0,
  )
  assert counts == {
    "truncated_rows": 1, "dropped_turns": 1, "cut_tokens": 0,
    "too_long_dropped": 0,
  }  # fmt: skip


def test_labelled_rows_end_with_the_stop_token(tokenization):
  rows = [records.Labelled(str(i), "g", CONTEXT[:1], "", 1.0) for i in range(2)]
  encoded, _ = labelled_lib.encode_labelled(rows, tokenization, 100)
  prompt, _ = tokenization.encode_prompt(CONTEXT[:1])
  assert encoded[1] == (
    [*prompt, tokenization.stop_ids[0]],
    len(prompt),
    1.0,
    1,
  )
  assert encoded[1].response_length == 1


def test_rows_that_do_not_fit_are_left_out_and_counted(tokenization):
  """With "drop"; the others keep the number of their record."""
  replies = ("hello", "hello " * 30, "12")
  rows = [
    records.Preference(str(i), "g", CONTEXT[:1], reply, "no")
    for i, reply in enumerate(replies)
  ]
  encoded, counts = preferences.encode_preferences(
    rows, tokenization, 30, "drop"
  )
  assert [row.index for row in encoded] == [0, 2]
  assert counts["too_long_dropped"] == 1
  labelled = records.Labelled("a", "g", CONTEXT, replies[1], 1.0)
  found, counts = labelled_lib.encode_labelled(
    [labelled], tokenization, 20, "drop"
  )
  assert found == [] and counts["too_long_dropped"] == 1
  # A prompt is cut before it is given up.
  long = records.Prompt("b", "g", CONTEXT, None)
  cut, counts = prompts.encode_prompts([long], tokenization, 8, "drop")
  assert len(cut) == 1 and counts["cut_tokens"] > 0
  none, counts = prompts.encode_prompts([long], tokenization, 2, "drop")
  assert none == [] and counts["too_long_dropped"] == 1
  with pytest.raises(ValueError, match=r"'keep' is none of .*drop"):
    prompts.encode_prompts([long], tokenization, 8, "keep")


def test_rows_that_do_not_fit_are_named(tokenization):
  labelled = records.Labelled("f.json:7", "g", CONTEXT, "hello " * 30, 0.0)
  with pytest.raises(ValueError, match=r"f\.json:7: A response has \d+ tokens"):
    labelled_lib.encode_labelled([labelled], tokenization, 20)
  prompt = records.Prompt("f.json:8", "g", CONTEXT, None)
  with pytest.raises(ValueError, match=r"f\.json:8: The prompt has .*is 20"):
    prompts.encode_prompts([prompt], tokenization, 20, long="error")
  encoded, counts = prompts.encode_prompts([prompt], tokenization, 8, "cut")
  assert encoded[0].length <= 8 and counts["cut_tokens"] > 0
  silent = records.Demonstration("f.json:9", "g", CONTEXT, CONTEXT)
  with pytest.raises(ValueError, match=r"f\.json:9: .*assistant message"):
    demonstrations.encode_demonstrations([silent], tokenization)

"""Rows of tokens keep both ends of a record; what is too long is named."""

import pytest

from perl_jax.data import encoding, records, text, tokenizer


@pytest.fixture(scope="module")
def tokenization(tmp_path_factory):
  path = tmp_path_factory.mktemp("batches") / "tokenizer"
  return text.load_tokenizer(
    tokenizer.train_tokenizer(["hello there, 12 mochas"] * 4, 300, path)
  )


CONTEXT = tuple(
  {"role": "user", "content": f"hello there, {i} mochas"} for i in range(4)
)


def test_both_responses_follow_the_same_shortened_prompt(tokenization):
  row = records.Preference("a:1", "g", CONTEXT, "hello there", "12")
  whole, counts = encoding.encode_preferences([row], tokenization, 500)
  assert counts == {"truncated_rows": 0, "dropped_turns": 0, "cut_tokens": 0}
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

  (short,), counts = encoding.encode_preferences(
    [row], tokenization, whole[0].length - 1
  )
  prompt, _ = tokenization.encode_prompt(CONTEXT[1:])
  assert short == (
    prompt + chosen,
    prompt + rejected,
    len(prompt),
    0,
  )
  assert counts == {"truncated_rows": 1, "dropped_turns": 1, "cut_tokens": 0}


def test_labelled_rows_end_with_the_stop_token(tokenization):
  rows = [records.Labelled(str(i), "g", CONTEXT[:1], "", 1.0) for i in range(2)]
  encoded, _ = encoding.encode_labelled(rows, tokenization, 100)
  prompt, _ = tokenization.encode_prompt(CONTEXT[:1])
  assert encoded[1] == (
    [*prompt, tokenization.stop_ids[0]],
    len(prompt),
    1.0,
    1,
  )
  assert encoded[1].response_length == 1


def test_rows_that_do_not_fit_are_named(tokenization):
  labelled = records.Labelled("f.json:7", "g", CONTEXT, "hello " * 30, 0.0)
  with pytest.raises(ValueError, match=r"f\.json:7: A response has \d+ tokens"):
    encoding.encode_labelled([labelled], tokenization, 20)
  prompt = records.Prompt("f.json:8", "g", CONTEXT, None)
  with pytest.raises(ValueError, match=r"f\.json:8: The prompt has .*is 20"):
    encoding.encode_prompts([prompt], tokenization, 20, long="error")
  encoded, counts = encoding.encode_prompts([prompt], tokenization, 8, "cut")
  assert encoded[0].length <= 8 and counts["cut_tokens"] > 0
  silent = records.Demonstration("f.json:9", "g", CONTEXT, CONTEXT)
  with pytest.raises(ValueError, match=r"f\.json:9: .*assistant message"):
    encoding.encode_demonstrations([silent], tokenization)

"""Rows of openai/summarize_from_feedback, with texts of ours in them."""

import pytest

from tests.data.sources.jsonl import cases
from tests.data.text.messages import assistant, user

POST = {"subreddit": "tea", "title": "Mugs", "post": "I have too many.\n"}
ASKED = "SUBREDDIT: r/tea\n\nTITLE: Mugs\n\nPOST: I have too many.\n\n\nTL;DR:"


def comparison(info, choice):
  """A line of a batch of comparisons; tables have null for what is absent."""
  return {
    "info": {"id": "t3_1", "site": None, "article": None} | info,
    "split": "train",
    "summaries": [
      {"text": " one", "policy": "sup2", "note": None},
      {"text": " two", "policy": "ref", "note": "short"},
    ],
    "choice": choice,
    "worker": "w",
    "batch": "batch3",
    "extra": {"confidence": 7},
  }


@pytest.mark.parametrize(("choice", "replies"), [(0, "12"), (1, "21")])
def test_the_summary_of_their_choice_is_chosen(write, choice, replies):
  path = write(comparison(POST, choice))
  (pair,) = cases.read(path, "preferences")
  assert pair.prompt == (user(ASKED),)
  texts = {"1": " one", "2": " two"}
  assert [pair.chosen, pair.rejected] == [texts[n] for n in replies]
  (prompt,) = cases.read(path, "prompts")
  assert prompt.prompt == (user(ASKED),) and prompt.reference is None


def test_of_an_article(write):
  path = write(comparison({"article": "It rained.", "site": "cnn"}, 1))
  (pair,) = cases.read(path, "preferences")
  assert pair.prompt == (user("Article:\n\nIt rained.\n\nTL;DR:"),)


def test_a_post_with_its_own_summary(write):
  """A line of tldr_3_filtered."""
  path = write({"id": "t3_1", **POST, "summary": "Mugs, many."})
  (row,) = cases.read(path, "demonstrations")
  assert row.prompt == (user(ASKED),)
  assert row.turns == (assistant("Mugs, many."),)


def test_others_are_read_as_they_are(write):
  path = write({"prompt": "q", "response": "a", "summary": "s", **POST})
  (row,) = cases.read(path, "demonstrations")
  assert row.prompt == (user("q"),)
  three = comparison(POST, 0) | {"summaries": [{"text": str(n)} for n in "abc"]}
  with pytest.raises(ValueError, match="it has info, split, summaries"):
    cases.read(write(three, three), "preferences")

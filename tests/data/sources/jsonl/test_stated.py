"""What a user states about rows, and the names of their shapes."""

import pytest

from perl_jax.data.sources.jsonl import described, forms
from perl_jax.data.sources.jsonl.forms import Reading
from tests.data.sources.jsonl.formed import PAIR, RATED, one
from tests.data.text.messages import user


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ({"columns": "question=prompt"}, "must be a JSON object .*question"),
    ({"columns": '["a"]'}, "must be a JSON object"),
    ({"columns": '{"a": 1}'}, "must be a JSON object"),
    ({"columns": '{"a": "prompt", "a": "label"}'}, "key 'a' stands twice"),
    ({"threshold": "high"}, "threshold='high' must be a number"),
    ({"threshold": "nan"}, "must be a number"),
  ],
)
def test_fields_of_the_config_that_are_malformed(text, message):
  with pytest.raises(ValueError, match=message):
    forms.stated(**text)


def test_fields_of_the_config():
  assert forms.stated() == Reading()
  assert forms.stated('{"q": "prompt"}', 2.0, "0") == Reading(
    {"q": "prompt"}, 2.0, 0.0
  )


class TestColumns:
  def test_get_our_names(self):
    row = {"question": "q", "gold": "a", "n": 1, "prompt": None}
    columns = {"question": "prompt", "gold": "response"}
    assert one(row, "demonstrations", columns=columns) == {
      "prompt": "q", "response": "a", "n": 1,
    }  # fmt: skip
    # A name may change its meaning.
    row = {"prompt": "topic", "text": "q"}
    columns = {"text": "prompt", "prompt": "subset"}
    assert one(row, columns=columns) == {"prompt": "q", "subset": "topic"}

  def test_one_that_is_not_there_is_named_with_those_that_are(self):
    reader = forms.Reader("prompts", Reading({"qestion": "prompt"}))
    list(reader.rows("f:1", {"question": "q", "id": 1}))
    with pytest.raises(
      ValueError,
      match=r"f has no column 'qestion'.* has id, question\. .* 'question'",
    ):
      reader.check_columns("f")
    list(reader.rows("f:2", {"qestion": None}))
    reader.check_columns("f")

  @pytest.mark.parametrize(
    ("stated", "message"),
    [
      ({"columns": {"a": "promt"}}, "'promt'.* no field .* mean 'prompt'"),
      ({"columns": {"a": "prompt", "b": "prompt"}}, "several .* to prompt"),
      ({"margin": 0}, "margin=0 must be more than 0"),
    ],
  )
  def test_what_cannot_be_meant(self, stated, message):
    with pytest.raises(ValueError, match=message):
      Reading(**stated)

  def test_two_columns_of_one_name(self):
    reader = forms.Reader("prompts", Reading({"question": "prompt"}))
    with pytest.raises(ValueError, match=r"f:1: .* second field .*'prompt'"):
      list(reader.rows("f:1", {"question": "q", "prompt": "p"}))


@pytest.mark.parametrize(
  ("row", "name"),
  [
    (PAIR, "a prompt and pairs of messages"),
    ({"chosen": "a b", "rejected": "a c"}, "pairs of texts that begin alike"),
    ({"conversations": [{"from": "human", "value": "q"}]}, "ShareGPT conv"),
    ({"messages": [user("q")], "label": 1}, "conversations with labels"),
    ({"instruction": "q", "output": "a"}, "Alpaca instruction and response"),
    ({"prompt": "q", "completion": "a", "label": 1}, "response and label"),
    ({"prompt": "q", "solution": "a"}, "prompt and solution"),
    ({"prompt": "q", "response": "a", "score": 1}, "response and score"),
    (RATED, "several replies with scores"),
    ({"chosen": ["a"], "rejected": ["b", "c"]}, "lists of chosen"),
  ],
)
def test_shapes_have_names(row, name):
  assert name in described.about(row)

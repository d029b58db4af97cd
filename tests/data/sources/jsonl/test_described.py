"""How rows of other kinds, or with other names, become rows of a kind."""

import json
import shlex

import pytest

from perl_jax.data.sources.jsonl import files, forms
from tests.data.sources.jsonl import cases


@pytest.mark.parametrize(
  ("row", "kind"),
  [
    ({"Prompt": "q", "Response": "a"}, "demonstrations"),
    ({"prompt ": "q", "response": "a"}, "demonstrations"),
    ({"question": "q", "answer": "a"}, "demonstrations"),
    ({"input": "q", "output": "a"}, "demonstrations"),
    ({"prompt": "q", "answer": "a"}, "demonstrations"),
    ({"question": "q", "chosen": "a", "rejected": "b"}, "preferences"),
    ({"prompt": "q", "response": "a", "kto_tag": True}, "labelled"),
    ({"question": "q", "gold": "a"}, "prompts"),
    # The names of Tunix.
    ({"prompts": "q", "answer": "a"}, "prompts"),
    ({"prompts": "q", "chosen_responses": "a", "rejected_responses": "b"},
     "preferences"),
    ({"inputs": "q", "targets": "a"}, "demonstrations"),
    ({"prompt": "q", "chosen_response": "a", "rejected_response": "b"},
     "preferences"),
    ({"question": "q", "response_chosen": "a", "response_rejected": "b"},
     "preferences"),
    ({"prompt": "q", "win": "Yes, it is.", "lose": "It is not."},
     "preferences"),
    ({"prompt": "q", "pos": "Yes, it is.", "neg": "It is not."},
     "preferences"),
  ],
)  # fmt: skip
def test_the_option_that_is_named_makes_rows(write, row, kind):
  path = write(row)
  with pytest.raises(ValueError, match=r"data\.columns=") as error:
    cases.read(path, kind)
  options = [
    json.loads(part.partition("=")[2].rstrip("."))
    for part in shlex.split(str(error.value).replace("\"'.", "\"'"))
    if part.startswith("--config.data.columns=")
  ]
  reading = forms.Reading(options[0])
  found = files.load(path, kind, validation_path=path, reading=reading)
  assert found.train[0].prompt[0]["content"] == "q"


def test_a_column_that_may_be_the_score_is_named(write):
  path = write({"prompt": "q", "response": "a", "helpfulness": 4})
  for kind, stated in (("labelled", "threshold"), ("preferences", "margin")):
    reading = forms.Reading(**{stated: 3.0})
    with pytest.raises(ValueError, match=r'columns=.*"helpfulness": "score"'):
      files.load(path, kind, validation_path=path, reading=reading)


def test_of_prompts_the_prompt_alone_is_named(write):
  """A long solution that is called a response is not the right answer."""
  path = write({"problem": "1 + 1", "solution": "One and ...", "answer": "2"})
  with pytest.raises(ValueError, match=r'columns=.\{"problem": "prompt"\}'):
    cases.read(path, "prompts")
  columns = forms.Reading({"problem": "prompt"})
  found = files.load(path, "prompts", validation_path=path, reading=columns)
  assert found.train[0].reference == "2"


@pytest.mark.parametrize(
  ("row", "kind", "wrong"),
  [
    ({"question": "q", "winner": "model_a"}, "preferences", '"winner"'),
    ({"context": [], "response1": "a"}, "preferences", "'context' for"),
  ],
)
def test_what_is_no_slip_is_not_named(write, row, kind, wrong):
  with pytest.raises(ValueError) as error:
    cases.read(write(row), kind)
  assert wrong not in str(error.value)


@pytest.mark.parametrize(
  ("kind", "option"),
  [
    ("preferences", '{"YOUR_CHOSEN": "chosen", "YOUR_REJECTED": "rejected"}'),
    ("labelled", '{"YOUR_RESPONSE": "response", "YOUR_LABEL": "label"}'),
  ],
)
def test_columns_that_are_not_known_are_named(write, kind, option):
  """The names of a user's columns, and the option that gives them ours."""
  path = write({"prompt": "q", "better": "a", "worse": "b"})
  with pytest.raises(ValueError) as error:
    cases.read(path, kind)
  assert (
    f"No {kind} can be made of {path}, which has prompts (prompt) in the"
    " columns prompt, better, worse. The fields for" in str(error.value)
  )
  assert f"--config.data.columns='{option}'." in str(error.value)

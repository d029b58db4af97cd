"""Files of questions with several turns, as those of MT-Bench."""

import pytest

from perl_jax.data.sources.jsonl import files, forms, whole
from tests.data.sources.jsonl import cases, writing
from tests.data.text.messages import assistant, user

# Rows as in question.jsonl of MT-Bench: some have references, others do not.
ROWS = [
  {
    "question_id": 81,
    "category": "writing",
    "turns": ["Write a post.", "Rewrite it."],
  },
  {
    "question_id": 111,
    "category": "math",
    "turns": ["1 + 1?", "Twice that?"],
    "reference": ["2", "4"],
  },
  {"question_id": 1, "category": "once", "turns": ["Say something."]},
]
SAID = (
  "2 rows have several turns of a user, of which the first is the prompt."
  " The others follow an answer, so they are not asked."
)


@pytest.mark.parametrize("form", writing.FORMATS)
def test_the_first_turn_is_the_prompt_and_the_log_says_so(tmp_path, form):
  path = writing.write(ROWS, tmp_path, form)
  found = whole.load(path, "prompts")
  assert [row.prompt for row in found.validation] == [
    (user("Write a post."),),
    (user("1 + 1?"),),
    (user("Say something."),),
  ]
  assert [row.reference for row in found.validation] == [None, "2", None]
  assert [row.fields["turns"] for row in found.validation] == [
    row["turns"] for row in ROWS
  ]
  assert found.counts["first_turns_only"] == 2
  assert f"{path}: {SAID}" in found.notes
  assert found.shapes[0].endswith(": several turns of a user, read as prompts")


def test_a_judge_and_rl_read_the_same(write):
  path = write(*ROWS)
  found = files.load(path, "prompts", validation_path=path)
  assert found.train[1].prompt == (user("1 + 1?"),)
  assert f"{path}: {SAID}" in found.notes


def test_turns_of_one_text_say_nothing(write):
  found = whole.load(write({"turns": [{"content": "Hard one."}]}), "prompts")
  (row,) = found.validation
  assert row.prompt == (user("Hard one."),)
  assert "first_turns_only" not in found.counts and not found.notes


def test_texts_under_the_name_prompt_are_refused_with_the_option(write):
  row = {"prompt": ["1 + 1?", "Twice that?"], "prompt_id": 3}
  path = write(row)
  with pytest.raises(ValueError, match=r"field 'prompt': is a list of texts"):
    whole.load(path, "prompts")
  stated = {"columns": '{"prompt": "turns"}'}
  (found,) = whole.load(path, "prompts", stated=stated).validation
  assert found.prompt == (user("1 + 1?"),)
  assert found.fields == row


@pytest.mark.parametrize(
  "row",
  [
    {"prompt": "a", "turns": ["b", "c"]},
    {"messages": [user("a")], "turns": ["b", "c"]},
    {"instruction": "a", "turns": ["b", "c"]},
  ],
)
def test_turns_beside_a_prompt_are_not_read(row):
  reader = forms.Reader("prompts", forms.Reading())
  ((_, fields),) = reader.rows("f:1", row)
  assert fields["prompt"] in ("a", [user("a")])
  assert reader.first_turns_only == 0


def test_turns_are_no_demonstrations(write):
  with pytest.raises(ValueError, match=r"No demonstrations .*prompts \(prompt"):
    files.load(write(*ROWS), "demonstrations")


def test_turns_that_are_messages_keep_their_hint(write):
  row = {"turns": [{"role": "user", "content": "a"}]}
  with pytest.raises(ValueError, match=r'{"turns": "messages"}'):
    whole.load(write(row, row), "prompts")


def test_a_chatbot_is_the_assistant(write):
  """As Cohere's files for fine-tuning have it."""
  talk = [{"role": "User", "content": "q"}, {"role": "Chatbot", "content": "a"}]
  (row,) = cases.read(write({"messages": talk}), "demonstrations")
  assert row.turns == (assistant("a"),)


@pytest.mark.parametrize(
  ("message", "there"),
  [
    ({"author": "user", "content": "q"}, r"has content, author\)"),
    ({"role": "user", "message": "q"}, r"has role, message\)"),
  ],
)
def test_keys_of_a_message_without_a_role_or_content(write, message, there):
  path = write({"messages": [message, assistant("a")]})
  with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{there}; give each"):
    cases.read(path, "demonstrations")

"""Completions of several messages, and what may follow a prompt."""

import pytest

from perl_jax.data.sources.jsonl import files, whole
from tests.data.sources.jsonl import cases
from tests.data.text.messages import assistant, message, system, user

CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
FOUND = message("tool", "blue")
LAST = assistant("It is blue.")


def roles(messages):
  return [m["role"] for m in messages]


@pytest.mark.parametrize("field", ["completion", "response"])
@pytest.mark.parametrize(
  ("prompt", "turns"),
  [
    ("Why?", [CALLING, FOUND, LAST]),
    ([user("Why?")], [assistant("Hm."), user("So?"), LAST]),
    ([system("Brief.")], [user("Why?"), LAST]),
    ([user("Hi"), assistant("Hello")], [user("Why?"), LAST]),
    ([user("Why?"), CALLING], [FOUND, LAST]),
    ([user("Why?"), CALLING, FOUND], [FOUND, LAST]),
  ],
)
def test_the_prompt_is_given_and_what_follows_it_is_learned(
  write, field, prompt, turns
):
  path = write({"prompt": prompt, field: turns})
  (row,) = cases.read(path, "demonstrations")
  given = [user(prompt)] if isinstance(prompt, str) else prompt
  assert roles(row.prompt) == roles(given)
  assert roles(row.turns) == roles(turns)
  assert row.turns[-1] == LAST
  assert [bool(m.get("tool_calls")) for m in row.turns] == [
    "tool_calls" in m for m in turns
  ]


def test_a_column_with_the_system_message_is_before_both(write):
  path = write(
    {
      "system": "Brief.",
      "prompt": [user("Hi"), assistant("Hello")],
      "completion": [user("Why?"), LAST],
    }
  )
  (row,) = cases.read(path, "demonstrations")
  assert roles(row.prompt) == ["system", "user", "assistant"]
  assert roles(row.turns) == ["user", "assistant"]


def test_a_completion_may_repeat_the_prompt(write):
  prompt = [system("Brief."), user("Why?")]
  turns = [assistant("Hm."), user("So?"), LAST]
  path = write(
    {"prompt": prompt, "completion": [*prompt, *turns]},
    {"prompt": prompt, "completion": [*prompt, LAST]},
  )
  several, one = cases.read(path, "demonstrations")
  assert several.prompt == one.prompt == tuple(prompt)
  assert several.turns == tuple(turns)
  assert one.turns == (LAST,)


@pytest.mark.parametrize(
  ("prompt", "turns", "field", "said"),
  [
    ([user("a")], [user("b"), LAST], "completion", "user.* one of the user"),
    ([user("a")], [system("b"), user("a"), LAST], "completion",
     "of the system, and `prompt` ends with one of the user: .*`messages`"),
    ([user("a")], [FOUND, LAST], "completion", "tool.* of the user"),
    ([user("a"), assistant("b")], [LAST], "prompt", "ends with .*assistant"),
    ([user("a"), assistant("b")], "c", "prompt", "ends with .*assistant"),
    ([user("a")], [LAST, user("b")], "completion", "last message is .* user"),
    ([user("a")], [assistant(""), user("b"), LAST], "completion",
     "answer without text before the last"),
    ([user("a")], [LAST | {"weight": 0}, user("b"), LAST | {"weight": 0}],
     "completion", "weight of every answer is 0"),
  ],
)  # fmt: skip
def test_what_cannot_follow_a_prompt(write, prompt, turns, field, said):
  path = write(
    cases.GOOD["demonstrations"],
    *[{"prompt": prompt, "completion": turns}] * 2,
  )
  pattern = rf"rows\.jsonl:2: field '{field}': .*{said}"
  with pytest.raises(ValueError, match=pattern):
    files.load(path, "demonstrations")


def test_rl_is_given_the_prompt_of_the_row(write):
  """As TRL reads the column `prompt`, and whole conversations as before."""
  turns = [assistant("Hm."), user("So?"), LAST]
  path = write(
    {"prompt": "Why?", "completion": turns},
    {"prompt": [system("Brief.")], "completion": [user("Why?"), LAST]},
    {"messages": [user("Why?"), *turns]},
  )
  several, one, talk = cases.read(path, "prompts")
  assert (several.prompt, several.reference) == ((user("Why?"),), None)
  assert one.prompt == (system("Brief."), user("Why?"))
  assert one.reference == talk.reference == "It is blue."
  assert talk.prompt == (user("Why?"), *turns[:-1])


def test_the_last_message_is_labelled_and_scored(write):
  turns = [assistant("Hm."), user("So?"), LAST]
  row = {"prompt": "Why?", "completion": turns}
  path = write(row | {"label": 1})
  (labelled,) = cases.read(path, "labelled")
  assert labelled.prompt == (user("Why?"), *turns[:-1])
  assert (labelled.response, labelled.label) == ("It is blue.", 1.0)
  (scored,) = whole.load(write(row), "candidates").validation
  assert scored.prompt == labelled.prompt
  assert scored.responses == ("It is blue.",)


def test_a_side_of_a_pair_is_one_message(write):
  turns = [assistant("Hm."), user("So?"), LAST]
  row = {"prompt": "Why?", "chosen": turns, "rejected": [LAST]}
  with pytest.raises(ValueError, match=r"'chosen': has 3 messages that are"):
    files.load(write(row), "preferences")

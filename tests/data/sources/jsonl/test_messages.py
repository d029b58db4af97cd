"""Keys of messages: rendered, masked, refused by name, or left out."""

import json

import pytest

from perl_jax.data.sources.jsonl import messages
from tests.data.text.messages import assistant, user


def read(*talk, ignore=()):
  return messages.read(list(talk), "messages", "a.jsonl:1", ignore)


CALL = {"type": "function", "function": {"name": "look", "arguments": {"n": 1}}}


@pytest.mark.parametrize(
  "keys",
  [
    {"tool_calls": [CALL]},
    {"tool_calls": [{**CALL, "index": None}], "function_call": None},
    {"tool_calls": [{"type": "function", "function": {
      "name": "look", "arguments": '{"n": 1}'}}]},
    {"tool_calls": '[{"type": "function", "function": {"name": "look",'
     ' "arguments": {"n": 1}}}]'},
    {"function_call": {"name": "look", "arguments": '{"n": 1}'}},
  ],
)  # fmt: skip
@pytest.mark.parametrize("content", ["", None])
def test_a_call_is_kept_with_its_arguments_as_an_object(keys, content):
  talk, ignored = read(user("q"), {**assistant(content), **keys})
  text = json.dumps([CALL])
  assert talk == (user("q"), {**assistant(text), "tool_calls": [CALL]})
  assert ignored == set()


def test_a_call_without_a_function_around_it():
  call = {"name": "look", "arguments": {"n": 1}}
  talk, _ = read(user("q"), {**assistant(""), "tool_calls": [call]})
  assert talk[1]["tool_calls"] == [CALL]


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize(("value", "kept"), [(0, True), (1, False)])
def test_a_weight_of_0_is_kept(key, value, kept):
  for written in (value, float(value), bool(value)):
    talk, _ = read(user("q"), {**assistant("a"), key: written})
    assert talk[1] == assistant("a") | ({"weight": 0} if kept else {})


@pytest.mark.parametrize(
  ("keys", "why"),
  [
    ({"images": ["a.png"]}, r"'messages\[1\]\.images': changes .*data\.ignore"),
    ({"tool_call": [CALL]}, "Is 'tool_calls' meant"),
    ({"function_calls": "look(n=1)"}, "changes .*Calls are `tool_calls`"),
    ({"functions": '[{"name": "look"}]'}, "Tools are a column `tools`"),
    ({"mask": True}, "changes .*`weight` 0 of a message masks it"),
    ({"masked": False}, "`weight` 0"),
    ({"no_loss": 1}, "`weight` 0"),
    ({"train_on": False}, "`weight` 0"),
    ({"tools": [CALL]}, r"'messages\[1\]\.tools': changes what the row means"),
    ({"system": "x"}, "read as a column of the row, and not here"),
  ],
)
def test_a_key_that_cannot_be_honoured_is_refused(keys, why):
  with pytest.raises(ValueError, match=rf"a\.jsonl:1: field .*{why}") as found:
    read(user("q"), {**assistant("a"), **keys})
  assert not isinstance(found.value, messages.UnusableError)


@pytest.mark.parametrize(
  ("keys", "why"),
  [
    ({"weight": 0.5}, r"'messages\[1\]\.weight': must be 0 or 1"),
    ({"weight": "none"}, "must be 0 or 1"),
    ({"tool_calls": ["look"]}, "must be a list of objects"),
    ({"tool_calls": "look(1)"}, "must be a list of objects"),
    ({"tool_calls": [{"function": {}}]}, "must have the name"),
    ({"content": [{"type": "image"}]}, "not text"),
  ],
)
def test_a_key_with_a_wrong_value_makes_the_row_unusable(keys, why):
  with pytest.raises(
    messages.UnusableError, match=rf"a\.jsonl:1: field .*{why}"
  ):
    read(user("q"), {**assistant("a"), **keys})


@pytest.mark.parametrize(
  "keys",
  [
    {"tool_calls": '[{"name": "look", "name": "go"}]'},
    {"function_call": {"name": "look", "arguments": '{"n": 1, "n": 2}'}},
  ],
)
def test_a_key_twice_in_json_text_makes_the_row_unusable(keys):
  with pytest.raises(messages.UnusableError, match="stands twice"):
    read(user("q"), assistant("") | keys)


def test_the_way_out_leaves_the_key_out():
  more = {"images": ["a.png"], "weight": 0}
  talk, ignored = read(
    user("q"), assistant("a") | more, ignore=("images", "weight")
  )
  assert talk == (user("q"), assistant("a"))
  assert ignored == {"images", "weight"}


def test_other_keys_are_named():
  talk, ignored = read(user("q") | {"date": 3, "id": None}, assistant("a"))
  assert talk == (user("q"), assistant("a"))
  assert ignored == {"date"}


def test_texts_of_a_content_are_joined():
  parts = [{"type": "text", "text": "a "}, {"text": "b"}]
  assert read(user(parts))[0] == (user("a b"),)
  parts = [
    *({"type": "input_text", "text": "a"}, " ", {"type": None, "text": "b"}),
    {"type": "output_text", "text": "c"},
  ]
  assert read(user(parts))[0] == (user("a bc"),)


def test_the_name_of_a_speaker_is_kept_but_for_answers():
  talk, ignored = read(user("q") | {"name": "Ann"}, assistant("a"))
  assert talk[0]["name"] == "Ann" and not ignored
  talk, ignored = read(user("q"), assistant("a") | {"name": "Bot"})
  assert talk[1] == assistant("a") and ignored == {"name"}
  talk, ignored = read(user("q"), assistant("a") | {"tool_call_id": "1"})
  assert talk[1] == assistant("a") and ignored == {"tool_call_id"}


def test_a_call_by_itself_keeps_its_id_apart():
  flat = {"name": "look", "arguments": {"at": "x"}, "id": "abcdefghi"}
  talk, _ = read(user("q"), {**assistant(""), "tool_calls": [flat]})
  assert talk[1]["tool_calls"] == [
    {
      "type": "function",
      "id": "abcdefghi",
      "function": {"name": "look", "arguments": {"at": "x"}},
    }
  ]

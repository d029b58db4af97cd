"""One tokenisation path: round trips, targets, stop tokens, truncation."""

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import train_tokenizer
from tests.data.text import families
from tests.data.text.chat_templates import CHATML
from tests.data.text.families import Family
from tests.data.text.messages import assistant, message, system, user

TEXTS = ["hello there, what can I get you? 12 mochas and\n\nmilk"] * 8


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "ours"
  return tokenization_lib.load_tokenizer(
    train_tokenizer.train_tokenizer(TEXTS, 320, path)
  )


# Our own tokenizer.


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_responses_round_trip(ours, response):
  ids = ours.encode_response((), response)
  assert ids[-1] == ours.stop_ids[0]
  assert not set(ids[:-1]) & set(range(7))
  assert ours.decode(ids) == response


@settings(max_examples=40, deadline=None)
@given(
  st.lists(st.sampled_from([*train_tokenizer.SPECIAL_TOKENS, "a", " ", "\n"]))
)
def test_special_tokens_in_contents_stay_text(ours, parts):
  content = "".join(parts)
  ids, _ = ours.encode_prompt([user(content)])
  assert [i for i in ids if i < 7] == [1, 4, 2, 5]
  assert ours.decode(ours.encode_response((), content)) == content


def test_an_empty_response_is_the_stop_token(ours):
  assert ours.encode_response((), "") == [2]
  assert ours.decode([2]) == ""


def test_decode_ends_at_the_first_stop_token(ours):
  ids = ours.encode_response((), "yes")
  assert ours.decode([*ids, *ids, 0, 0]) == "yes"


def test_a_dialog_is_the_prompt_and_the_response_at_every_target(ours):
  prompt = (system("be kind"), assistant("what can I get you?"))
  turns = (user("12 mochas"), assistant(" {call} "), message("tool", "ok"))
  turns = (*turns, assistant("here"), user("more"), assistant(""), user("bye"))
  ids, mask = ours.encode_dialog(prompt, turns)
  messages = [*prompt, *turns]
  expected = [False] * len(ids)
  for i in (3, 5, 7):
    context, _ = ours.encode_prompt(messages[:i])
    response = ours.encode_response(messages[:i], messages[i]["content"])
    end = len(context) + len(response)
    assert ids[:end] == context + response
    expected[len(context) : end] = [True] * len(response)
  assert end == len(ids)  # What follows the last assistant turn is left out.
  assert mask == expected


def test_an_empty_context_is_bos_and_the_generation_prompt(ours):
  assert ours.encode_prompt([])[0] == [1, 5]


def test_text_that_is_not_unicode_is_refused(ours):
  with pytest.raises(ValueError, match="not valid Unicode"):
    ours.encode_response((), "\ud800")


def test_unknown_role_and_no_target_are_refused(ours):
  with pytest.raises(ValueError, match=r"'narrator'.*number 2"):
    ours.encode_prompt([user("a"), message("narrator", "b")])
  with pytest.raises(ValueError, match=r"assistant message.*\['user'\]"):
    ours.encode_dialog((assistant("a"),), (user("b"),))


# Truncation.

LONG = [system("be kind"), *(user(f"{i} mochas and milk") for i in range(6))]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90))
def test_turns_are_dropped_whole_and_no_more_than_needed(ours, limit):
  try:
    ids, flags = ours.encode_prompt(LONG, limit, "turns")
  except ValueError as error:
    assert f"limit is {limit}" in str(error)
    assert len(ours.encode_prompt([LONG[0], LONG[-1]])[0]) > limit
    return
  dropped = flags["dropped_turns"]
  assert ids == ours.encode_prompt([LONG[0], *LONG[1 + dropped :]])[0]
  assert len(ids) <= limit
  if dropped:
    assert len(ours.encode_prompt([LONG[0], *LONG[dropped:]])[0]) > limit


@settings(max_examples=40, deadline=None)
@given(st.integers(9, 40), st.text(min_size=30))
def test_cut_keeps_bos_markers_and_the_end_of_the_text(ours, limit, content):
  ids, flags = ours.encode_prompt([user("a"), user(content)], limit, "cut")
  assert len(ids) <= limit
  assert ids[:2] == [1, 4] and ids[-2:] == [2, 5]
  if flags["cut_tokens"]:
    assert flags["dropped_turns"] == 1
    assert content.endswith(ours.decode(ids[2:-2]))
    assert ids[2:-2]


def test_a_long_prompt_names_length_and_limit(ours):
  length = len(ours.encode_prompt(LONG)[0])
  with pytest.raises(ValueError, match=f"{length} tokens.*limit is 20"):
    ours.encode_prompt(LONG, 20)
  with pytest.raises(ValueError, match=f"{length} tokens.*limit is 5"):
    ours.encode_prompt(LONG, 5, "cut")
  with pytest.raises(ValueError, match="long='truncate' is none of"):
    ours.encode_prompt(LONG, 20, "truncate")
  assert ours.encode_prompt(LONG, length)[1] == {
    "dropped_turns": 0,
    "cut_tokens": 0,
  }


def test_missing_and_broken_directories_are_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere"):
    tokenization_lib.load_tokenizer(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="no tokenizer that transformers"):
    tokenization_lib.load_tokenizer(tmp_path)


@pytest.mark.parametrize("reply", ["ok", "ok.", "what? "])
@pytest.mark.parametrize(
  ("end", "finish", "ends_turn"),
  [
    ("<|im_end|>", "", True),
    ("<|im_end|>\n", "", True),
    ("<|im_end|>\n", "<eos>", True),
    (" <|im_end|>\n\n", "over<|im_start|>", True),
    ("", "<eos>", True),
    ("\n", "", False),
    ("\n--\n", " over <eos>", False),
    ("", "", False),
  ],
)
def test_a_closed_response_ends_as_a_conversation(
  tmp_path, end, finish, ends_turn, reply
):
  template = CHATML.replace("<|im_end|>\n", end)
  template = template.removesuffix("{% endif %}")
  template += "{% else %}" + finish + "{% endif %}"
  special = ("<eos>", "<|im_start|>", "<|im_end|>")
  family = Family(template, "bytes", special, {"eos_token": "<eos>"}, None, ())
  path = families.write(family, tmp_path)
  wrapped = transformers.AutoTokenizer.from_pretrained(path)
  talk = [user("a"), assistant(reply)]
  whole = wrapped.apply_chat_template(talk)["input_ids"]
  loaded = tokenization_lib.load_tokenizer(path)
  assert loaded.ends_turn == ends_turn
  response = loaded.encode_response(talk[:1], reply, closed=True)
  assert loaded.encode_prompt(talk[:1])[0] + response == whole
  sampled = loaded.encode_response(talk[:1], reply)
  assert sampled[-1] == loaded.stop_ids[0]
  if ends_turn:
    assert [*sampled, *loaded.closing] == response
  else:
    assert wrapped.decode([*sampled[:-1], *loaded.closing]) == wrapped.decode(
      response
    )


def test_without_a_template_a_response_ends_with_the_stop_token(tmp_path):
  family = Family(None, "bytes", ("<eos>",), {"eos_token": "<eos>"}, None, ())
  loaded = tokenization_lib.load_tokenizer(families.write(family, tmp_path))
  assert loaded.ends_turn and loaded.closing == ()
  response = loaded.encode_response((), " ok", closed=True)
  assert response == loaded.encode_response((), " ok")

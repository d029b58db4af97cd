"""Templates that know of thoughts, and templates that write the date.

A response is what a model writes behind the prompt that it is given; where the
template renders prompt and response so, transformers is the reference.
"""

import dataclasses
import datetime

import pytest
import transformers

from perl_jax.data import records
from perl_jax.data.batches import demonstrations as demonstrations_lib
from perl_jax.data.batches import labelled as labelled_lib
from perl_jax.data.text import tokenization as tokenization_lib
from tests.data.plain import plain
from tests.data.text import families
from tests.data.text.families import FAMILIES, REASONING
from tests.data.text.messages import TALK, assistant, user

R1 = ("r1", "r1_special")
OPENED = (*R1, "qwen3_thinking", "qwen3_thinking_text")
THOUGHTS = "hm\n</think>\n\n12 milk"
# Responses, and what a model writes for them after "<think>\n".
AFTER_THINK = {
  "12 milk": "\n</think>\n\n12 milk",
  "": "\n</think>\n\n",
  THOUGHTS: THOUGHTS,
  f"<think>\n{THOUGHTS}": THOUGHTS,
  "<think>\nhm": "hm",  # Cut off by a limit.
  "<think>\n": "",
}


def set_clock(monkeypatch, time):
  """Sets what templates take for now when transformers renders them."""

  class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return time

  monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Clock)


@pytest.fixture(autouse=True)
def fixed_day(monkeypatch):
  """Transformers, the reference, has the day that prompts are written on."""
  set_clock(monkeypatch, datetime.datetime(2024, 7, 26))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(tokenization, transformers' tokenizer) by the name of a family."""
  root = tmp_path_factory.mktemp("reasoning")
  found = {}
  for name, family in REASONING.items():
    directory = families.write(family, root / name)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    found[name] = (tokenization_lib.load_tokenizer(directory), theirs)
  return found


def rendered(tokenizer, messages, generate=False):
  return tokenizer.apply_chat_template(
    messages,
    tokenize=False,
    add_generation_prompt=generate,
    enable_thinking=False,
  )


def tokens(tokenizer, text):
  return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", REASONING)
def test_a_prompt_is_what_transformers_gives_to_sampling(made, name):
  ours, theirs = made[name]
  for talk in (TALK[:1], TALK, [user("a"), assistant(THOUGHTS), user("b")]):
    expected = tokens(theirs, rendered(theirs, talk, True))
    assert ours.encode_prompt(talk)[0] == expected


@pytest.mark.parametrize("response", AFTER_THINK)
@pytest.mark.parametrize("name", OPENED)
def test_a_response_goes_on_where_the_prompt_has_opened_thoughts(
  made, name, response
):
  ours, theirs = made[name]
  prompt = rendered(theirs, TALK, True)
  assert prompt.endswith("<think>\n")
  row = records.Labelled("r", "g", tuple(TALK), response, 1.0)
  (row,), _ = plain(labelled_lib.encode_labelled([row], ours, 500))
  stop = theirs.convert_ids_to_tokens(ours.stop_ids[0])
  expected = prompt + AFTER_THINK[response] + stop
  assert theirs.decode(row.tokens) == expected
  # Thoughts end with the token for it, where there is one.
  end = tokens(theirs, "</think>")
  if len(end) == 1:
    assert (end[0] in row.tokens[row.prompt_length :]) == (
      "</think>" in AFTER_THINK[response]
    )
  # The template's rendering of both is the same text, if it keeps thoughts.
  if name not in R1 and "hm" not in response.split("</think>")[-1]:
    whole = rendered(theirs, [*TALK, assistant(response)])
    if response != "<think>\n":
      assert whole == expected + "\n"


@pytest.mark.parametrize("response", ["12 milk", "\n\n12 milk", "", THOUGHTS])
@pytest.mark.parametrize("name", REASONING)
def test_a_closed_row_is_the_conversation(made, name, response):
  """As a reward model reads it: thoughts are left out if the template does."""
  ours, theirs = made[name]
  if response == THOUGHTS and name not in OPENED:
    return  # Refused: see below.
  row = records.Labelled("r", "g", tuple(TALK), response, 1.0)
  (row,), _ = plain(
    labelled_lib.encode_labelled([row], ours, 500, "error", True)
  )
  whole = rendered(theirs, [*TALK, assistant(response)])
  assert row.tokens == tokens(theirs, whole)
  assert ours.unsaid == ("<think>\n" if name in R1 else "")
  if name in R1:
    assert "think" not in whole
    start = rendered(theirs, TALK, True).removesuffix("<think>\n")
    assert theirs.decode(row.tokens[: row.prompt_length]) == start
    # However short the prompt has to be.
    short = ours.encode_prompt(TALK, 12, "cut", closed=True)[0]
    assert short == ours.encode_prompt(TALK, 14, "cut")[0][:-2]


@pytest.mark.parametrize("name", OPENED)
def test_decoding_is_the_inverse_of_encoding(made, name):
  ours, theirs = made[name]
  for response in AFTER_THINK:
    ids = ours.encode_response((), response)
    text = ours.decode(ids)
    assert ours.encode_response((), text) == ids
    same = {f"<think>\n{THOUGHTS}": THOUGHTS, THOUGHTS: THOUGHTS}
    if name in R1:  # Its messages begin behind what the prompt opens.
      assert text == same.get(response, response)
    else:  # Its messages have that.
      full = f"<think>\n{THOUGHTS}"
      assert text == (full if response in same else response)
  # Whatever is sampled.
  for sampled in (
    "hm", "hm</think>12", "<think>\nhm", "<think>\nhm</think>\n\n12",
    "\n</think>\n\n12</think>",
  ):  # fmt: skip
    ids = [*tokens(theirs, "a" + sampled)[1:], ours.stop_ids[0]]
    text = ours.decode(ids)
    assert text.endswith(sampled) or text == sampled.strip()
    if name in R1:
      again = ours.encode_response((), text)
      assert theirs.decode(again) == theirs.decode(ids)


@pytest.mark.parametrize("name", OPENED)
def test_each_turn_of_a_dialogue_is_trained_on_after_its_own_prompt(made, name):
  ours, theirs = made[name]
  turns = (*TALK[:1], assistant(THOUGHTS), *TALK[2:], assistant("a 12"))
  row = records.Demonstration("r", "g", (), turns)
  first, second = plain(demonstrations_lib.encode_demonstrations([row], ours))
  for (ids, mask), n in ((first, 1), (second, 3)):
    prompt = ours.encode_prompt(turns[:n])[0]
    response = ours.encode_response((), turns[n]["content"])
    assert ids == prompt + response
    assert mask == [False] * len(prompt) + [True] * len(response)
  # The template has left the earlier thoughts out.
  assert "hm" not in theirs.decode(second[0])


def test_thoughts_that_a_template_strips_are_refused(made, tmp_path):
  ours, _ = made["r1_first"]
  row = records.Labelled("my.jsonl:3", "g", tuple(TALK), THOUGHTS, 1.0)
  with pytest.raises(
    ValueError,
    match=r"my\.jsonl:3: .*thoughts.*out, here 'hm'.*'</think>', or .*template",
  ):
    labelled_lib.encode_labelled([row], ours, 500)
  # Both ways out.
  assert ours.decode(ours.encode_response((), "12 milk")) == "12 milk"
  directory = families.write(REASONING["r1_first"], tmp_path)
  template = REASONING["r1_first"].template
  strip = "{% set content = content.split('</think>')[-1] %}"
  assert strip in template
  (directory / "chat_template.jinja").write_text(template.replace(strip, ""))
  ours = tokenization_lib.load_tokenizer(directory)
  assert ours.decode(ours.encode_response((), THOUGHTS)) == THOUGHTS


def test_a_prompt_that_ends_thoughts_has_answers_without_them(made, tmp_path):
  """Qwen3, of which the way out is a template that does not end them."""
  family = FAMILIES["qwen3"]
  directory = families.write(family, tmp_path)
  thought = f"<think>\n{THOUGHTS}"
  with pytest.raises(ValueError, match=r"something else.*thinking.*template"):
    tokenization_lib.load_tokenizer(directory).encode_response((), thought)
  (directory / "chat_template.jinja").write_text(
    family.template.replace("enable_thinking is false", "false")
  )
  ours = tokenization_lib.load_tokenizer(directory)
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  for response in (thought, "12 milk"):
    whole = rendered(theirs, [*TALK, assistant(response)])
    ids = ours.encode_prompt(TALK)[0] + ours.encode_response((), response)
    assert theirs.decode(ids) + "\n" == whole
    assert ours.decode(ours.encode_response((), response)) == response


@pytest.mark.parametrize("name", ["smollm3", "llama3.2"])
def test_no_prompt_depends_on_the_day(name, tmp_path, monkeypatch):
  directory = families.write((FAMILIES | REASONING)[name], tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  found = []
  for year in (2025, 2031):
    set_clock(monkeypatch, datetime.datetime(year, 11, 12, 13, 14))
    # The clock is theirs.
    assert f"{year}" in theirs.apply_chat_template(TALK, tokenize=False)
    prompt = tokenization_lib.load_tokenizer(directory).encode_prompt(TALK)[0]
    assert "26 Ju" in theirs.decode(prompt)
    found.append(prompt)
  assert found[0] == found[1]


def test_dates_have_any_format(tmp_path):
  family = REASONING["smollm3"]
  formats = (
    "%d %b %Y", "%Y-%m-%d", "%B %-d, %Y", "%A %a %j", "%H:%M:%S %I %p", "%D %y",
  )  # fmt: skip
  template = family.template.replace("%d %B %Y", "; ".join(formats))
  directory = families.write(
    dataclasses.replace(family, template=template), tmp_path
  )
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  ours = tokenization_lib.load_tokenizer(directory)
  expected = rendered(theirs, TALK, True)
  assert "Date: 26 Jul 2024; 2024-07-26; July 26, 2024; Friday " in expected
  assert theirs.decode(ours.encode_prompt(TALK)[0]) == expected

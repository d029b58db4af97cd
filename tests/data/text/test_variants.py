"""Chat templates under the variables that rows give them.

The reference is `apply_chat_template` of transformers with the same variables.
"""

import dataclasses

import pytest
import transformers

from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import variants
from tests.data.text import families
from tests.data.text.families import FAMILIES, REASONING
from tests.data.text.messages import TALK, assistant, system, user
from tests.data.text.tool_templates import TOOL_FAMILIES, tool

MODE = FAMILIES["qwen2"].template.replace(
  "{% for message in messages %}",
  "{% if mode is defined %}{{ 'Mode: ' + mode + '\n' }}{% endif %}"
  "{% for message in messages %}",
)


def made(directory, family):
  """(ours, transformers' tokenizer) of a family."""
  path = families.write(family, directory / "tokenizer")
  theirs = transformers.AutoTokenizer.from_pretrained(path)
  return tokenization_lib.load_tokenizer(path), theirs


def under(messages, **variables):
  first = messages[0] | {"chat_template_kwargs": variables}
  return [first, *messages[1:]]


def reference(theirs, messages, **variables):
  return theirs.apply_chat_template(
    list(messages), add_generation_prompt=True, return_dict=True, **variables
  )["input_ids"]


@pytest.fixture
def moded(tmp_path):
  return made(tmp_path, dataclasses.replace(FAMILIES["qwen2"], template=MODE))


def test_every_row_has_its_own_variables(moded, monkeypatch):
  ours, theirs = moded
  monkeypatch.setattr(variants, "_MOST", 2)
  for mode in ("a", "b", "milk", "a"):
    ids, _ = ours.encode_prompt(under(TALK, mode=mode))
    assert ids == reference(theirs, TALK, mode=mode)
    assert theirs.decode(ids).startswith(f"Mode: {mode}\n<|im_start|>")
  assert ours.encode_prompt(TALK)[0] == reference(theirs, TALK)


def test_a_variable_that_is_not_read_changes_nothing(moded):
  ours, _ = moded
  assert ours.encode_prompt(under(TALK, x=[1])) == ours.encode_prompt(TALK)


@pytest.mark.parametrize("name", ["qwen3", "smollm3", "qwen3_thinking"])
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("said", ["12 mochas", "hello\n\nthere "])
def test_decoding_is_the_inverse_of_encoding(tmp_path, name, thinking, said):
  ours, _ = made(tmp_path, (FAMILIES | REASONING)[name])
  prompt = under([user("hello")], enable_thinking=thinking)
  ids = ours.encode_response(prompt, said)
  assert ours.decode(ids, prompt) == said


def test_a_sampled_answer_is_read_under_the_variables_of_its_prompt(tmp_path):
  """Qwen3 writes empty thoughts itself where its prompt has not."""
  ours, theirs = made(tmp_path, FAMILIES["qwen3"])
  ids = theirs("<think>\n\n</think>\n\n12<|im_end|>")["input_ids"]
  prompt = [user("hello")]
  assert ours.decode(ids, under(prompt, enable_thinking=True)) == "12"
  assert ours.decode(ids, prompt) == "<think>\n\n</think>\n\n12"


def test_a_shortened_prompt_keeps_them(moded):
  ours, theirs = moded
  talk = [user("hello " * 30), assistant("there"), user("12 mochas")]
  kept = reference(theirs, talk[2:], mode="milk")
  ids, flags = ours.encode_prompt(under(talk, mode="milk"), len(kept), "turns")
  assert flags["dropped_turns"] == 2
  assert ids == kept


def test_a_folded_system_message_keeps_them(tmp_path):
  family = FAMILIES["gemma2"]
  template = family.template.replace(
    "{{ bos_token }}",
    "{{ bos_token }}{% if mode is defined %}{{ mode + '\n' }}{% endif %}",
  )
  assert template != family.template
  ours, theirs = made(tmp_path, dataclasses.replace(family, template=template))
  talk = [system("hello"), user("there")]
  ids, _ = ours.encode_prompt(under(talk, mode="milk"))
  folded = [user("hello\n\nthere")]
  assert ids == reference(theirs, folded, mode="milk")


def test_without_a_template_there_is_nothing_to_vary(tmp_path):
  ours, _ = made(
    tmp_path, dataclasses.replace(FAMILIES["llama2"], template=None)
  )
  assert ours.encode_prompt(under([user("hello")], mode="a")) == (
    ours.encode_prompt([user("hello")])
  )


@pytest.mark.parametrize("token", ["<|im_end|>", "<｜User｜>"])
def test_a_value_with_a_special_token_is_refused(tmp_path, token):
  family = dataclasses.replace(
    FAMILIES["qwen2"],
    template=MODE,
    special=(*FAMILIES["qwen2"].special, "<｜User｜>"),
  )
  ours, _ = made(tmp_path, family)
  prompt = under([user("hello")], mode=f"a{token}")
  with pytest.raises(ValueError, match=r"special token.*Remove it") as error:
    ours.encode_prompt(prompt)
  assert token in str(error.value)


def test_variables_that_end_turns_otherwise_are_refused(tmp_path):
  family = FAMILIES["qwen2"]
  template = family.template.replace(
    "'<|im_end|>' + '\\n'", "('<|endoftext|>' if raw else '<|im_end|>\\n')"
  ).replace(
    "'<|im_end|>' + '\n'", "('<|endoftext|>' if raw else '<|im_end|>\n')"
  )
  assert template != family.template
  ours, _ = made(tmp_path, dataclasses.replace(family, template=template))
  ours.encode_prompt(under([user("hello")], raw=False))
  with pytest.raises(ValueError, match="ends prompts or turns otherwise") as e:
    ours.encode_prompt(under([user("hello")], raw=True))
  assert 'chat_template_kwargs {"raw": true}' in str(e.value)


def test_a_variable_that_the_template_fails_on_is_named(moded):
  ours, _ = moded
  with pytest.raises(ValueError, match=r"chat template of .* refuses"):
    ours.encode_prompt(under([user("hello")], mode=3))


def test_special_tokens_of_any_script_in_a_tool_are_refused(tmp_path):
  family = TOOL_FAMILIES["qwen2.5"]
  family = dataclasses.replace(family, special=(*family.special, "<｜User｜>"))
  ours, _ = made(tmp_path, family)
  first = user("hello") | {"tools": [tool("weather", "for a <｜User｜>")]}
  with pytest.raises(ValueError, match="special token '<｜User｜>'"):
    ours.encode_prompt([first])

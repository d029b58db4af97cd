"""Rows of TRL become the tokens and the targets that TRL makes of them.

The reference is what TRL's SFT trainer does with transformers: a text is
encoded with eos behind it, and all of it is learned; of prompt and completion
the tokens behind those of the prompt with its generation prompt are learned,
and with `assistant_only_loss` those that the template marks as the assistant's.
"""

import dataclasses
import datetime
import json

import pytest
import transformers

from perl_jax.data import unusable
from perl_jax.data.batches import demonstrations, packing, preferences
from perl_jax.data.sources.jsonl import files
from perl_jax.data.text import tokenization as tokenization_lib
from tests.data.plain import plain
from tests.data.text import families, test_reasoning
from tests.data.text.families import FAMILIES, REASONING
from tests.data.text.messages import assistant, message, system, user

# As the templates of TRL for training, whose marks are read for the mask. A
# switch says how much the model should think.
MARKED = (
  "{% for m in messages %}{% if m.role == 'assistant' %}"
  "{{ '<|im_start|>assistant\n' }}{% generation %}"
  "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
  "{{ '<|im_start|>' + m.role + '\n' + m.content }}"
  "{% if effort is defined %}{{ ' /' + effort }}{% endif %}"
  "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Families whose templates ask whether to think. Tokens of thoughts may be
# special ones, which no text becomes.
THINKING = {
  name: (FAMILIES | REASONING)[name]
  for name in ("qwen3", "smollm3", "qwen3_thinking")
}
THINKING["qwen3_special"] = dataclasses.replace(
  FAMILIES["qwen3"],
  special=(*FAMILIES["qwen3"].special, *FAMILIES["qwen3"].plain),
  plain=(),
)
ASSISTANT = "<|im_start|>assistant\n"
TEXTS = [
  "hello there, what can I get you?",
  " 12 mochas\nand\n\nmilk \n",
  "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n12<|im_end|>\n",
  "[INST] hello [/INST] 12</s>",
]
SEVERAL = [
  assistant("hello there"),
  message("tool", "12 mochas"),
  assistant("what?\n\n can I get"),
  user("and milk"),
  assistant(" milk"),
]


def made(directory, family):
  """(transformers' tokenizer, ours) of a family."""
  path = families.write(family, directory / "tokenizer")
  theirs = transformers.AutoTokenizer.from_pretrained(path)
  return theirs, tokenization_lib.load_tokenizer(path)


@pytest.fixture
def marked(tmp_path):
  family = dataclasses.replace(FAMILIES["smollm2"], template=MARKED)
  return made(tmp_path, family)


def rows_of(tmp_path, kind, *rows):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return files.load(str(path), kind, validation_path=str(path)).train


def encoded(tmp_path, ours, *rows):
  read = rows_of(tmp_path, "demonstrations", *rows)
  return plain(demonstrations.encode_demonstrations(read, ours))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_and_eos_are_learned_as_they_are(tmp_path, name):
  theirs, ours = made(tmp_path, FAMILIES[name])
  eos = theirs.eos_token
  texts = [*TEXTS, f"hello{eos}"]
  found = encoded(tmp_path, ours, *[{"text": text} for text in texts])
  for text, (tokens, mask) in zip(texts, found, strict=True):
    whole = text if text.endswith(eos) else text + eos
    ids = theirs(whole)["input_ids"]
    # One that begins with bos, as after a template, has it once.
    twice = ids[:2] == [theirs.bos_token_id] * 2
    assert tokens == (ids[1:] if twice else ids)
    # The first token is predicted from nothing, there and here.
    assert mask == [False] + [True] * (len(tokens) - 1)


@pytest.mark.parametrize("name", ["llama2", "llama3", "gemma2", "mistral1"])
def test_a_text_from_a_template_begins_once(tmp_path, name):
  """transformers puts a second bos before it, as its template has one."""
  theirs, ours = made(tmp_path, FAMILIES[name])
  bos = theirs.bos_token
  for text in (f"{bos}hello", f"{bos} hello", "hello"):
    ((tokens, _),) = encoded(tmp_path, ours, {"text": text})
    assert tokens.count(theirs.bos_token_id) == 1
    ids = theirs(text + theirs.eos_token)["input_ids"]
    assert tokens == (ids[1:] if text != "hello" else ids)


def test_tokens_of_a_text_in_full(tmp_path):
  """The tokens themselves, as no library says them: <s>, pieces, </s>."""
  theirs, ours = made(tmp_path, FAMILIES["llama2"])
  ((tokens, _),) = encoded(tmp_path, ours, {"text": "12</s>a"})
  assert theirs.convert_ids_to_tokens(tokens) == [
    "<s>", "▁12", "</s>", "a", "</s>",
  ]  # fmt: skip


def test_texts_that_no_tokenizer_takes_are_left_out(tmp_path):
  family = families.write(FAMILIES["qwen2"], tmp_path / "tokenizer")
  theirs = transformers.AutoTokenizer.from_pretrained(family)
  ours = tokenization_lib.load_tokenizer(family)
  read = rows_of(
    tmp_path, "demonstrations", *[{"text": "a"}] * 5, {"text": "\ud800"}
  )
  bad = unusable.Unusable()
  assert len(demonstrations.encode_demonstrations(read, ours, bad)) == 5
  assert "rows.jsonl:6: Text that is not valid Unicode" in bad.notes()[0]
  # A text may have a token that the model has no row for.
  last = max(theirs.get_vocab().values())
  small = tokenization_lib.load_tokenizer(family, rows=last)
  with pytest.raises(ValueError, match=f"embedding of the model has {last}"):
    small.encode_text(theirs.decode([last]))


def test_a_long_text_is_learned_in_windows(tmp_path, marked):
  _, ours = marked
  text = " ".join(f"mocha {n}" for n in range(60))
  ((tokens, mask),) = encoded(tmp_path, ours, {"text": text})
  rows = packing.pack_dialogues([(tokens, mask)], 64, ours.beginning)
  assert len(tokens) > 128
  assert sum(int(row.target_mask.sum()) for row in rows) == len(tokens) - 1
  assert all(len(row.tokens) == 64 for row in rows)


def reference(theirs, prompt, completion, **variables):
  """(tokens, mask of the completion, mask of the assistant), as in TRL."""
  given = theirs.apply_chat_template(
    prompt, add_generation_prompt=True, return_dict=True, **variables
  )["input_ids"]
  whole = theirs.apply_chat_template(
    prompt + completion,
    return_dict=True,
    return_assistant_tokens_mask=True,
    **variables,
  )
  ids = whole["input_ids"]
  assert ids[: len(given)] == given
  completion_mask = [i >= len(given) for i in range(len(ids))]
  return ids, completion_mask, [bool(m) for m in whole["assistant_masks"]]


@pytest.mark.parametrize("variables", [{}, {"effort": "high"}])
@pytest.mark.parametrize(
  ("prompt", "completion"),
  [
    ([system("Be brief."), user("hello")], SEVERAL),
    ([user("hello")], SEVERAL[:1]),
    ([user("hello"), assistant("there"), user("12?")], SEVERAL[2:]),
  ],
)
def test_a_completion_of_several_messages(
  tmp_path, marked, prompt, completion, variables
):
  theirs, ours = marked
  row = {"prompt": prompt, "completion": completion}
  row |= {"chat_template_kwargs": variables} if variables else {}
  ((tokens, mask),) = encoded(tmp_path, ours, row)
  ids, behind, said = reference(theirs, prompt, completion, **variables)
  # TRL goes on behind the last answer, with what nobody learns.
  assert tokens == ids[: len(tokens)]
  assert mask == [a and b for a, b in zip(behind, said)][: len(tokens)]
  assert not any(said[len(tokens) :])
  shown = theirs.decode([t for t, m in zip(tokens, mask) if m])
  answers = [m["content"] for m in completion if m["role"] == "assistant"]
  assert shown == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_the_parts_of_a_completion_in_full(tmp_path, marked):
  theirs, ours = marked
  row = {
    "prompt": [user("hello")],
    "completion": [assistant("12?"), user("a"), assistant("milk")],
    "chat_template_kwargs": {"effort": "low"},
  }
  parts = demonstrations.parts(*encoded(tmp_path, ours, row))
  assert [(name, theirs.decode(ids)) for name, ids, _ in parts] == [
    ("given", "<|im_start|>user\nhello /low<|im_end|>\n" + ASSISTANT),
    ("target", "12?<|im_end|>"),
    ("given", "\n<|im_start|>user\na /low<|im_end|>\n" + ASSISTANT),
    ("target", "milk<|im_end|>"),
  ]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", THINKING)
def test_a_row_says_whether_the_model_thinks(
  tmp_path, monkeypatch, name, thinking
):
  test_reasoning.set_clock(monkeypatch, datetime.datetime(2024, 7, 26))
  theirs, ours = made(tmp_path, THINKING[name])
  variables = {"enable_thinking": thinking}
  prompt, completion = [user("hello there")], [assistant("12 mochas")]
  pair = {"chosen": completion, "rejected": [assistant("milk")]}
  row = {"prompt": prompt, "chat_template_kwargs": variables}
  given = theirs.apply_chat_template(
    prompt, add_generation_prompt=True, return_dict=True, **variables
  )["input_ids"]
  whole = theirs.apply_chat_template(
    prompt + completion, return_dict=True, **variables
  )["input_ids"]
  ((tokens, mask),) = encoded(tmp_path, ours, row | {"completion": completion})
  assert whole[: len(given)] == given
  assert tokens == whole[: len(tokens)]
  assert theirs.decode(whole[len(tokens) :]).strip() == ""
  assert mask == [i >= len(given) for i in range(len(tokens))]
  read = rows_of(tmp_path, "preferences", row | pair)
  (found,), _ = plain(preferences.encode_preferences(read, ours, 500))
  assert found.prompt == given
  # A reward model may read whole conversations, as TRL's does.
  (found,), _ = plain(
    preferences.encode_preferences(read, ours, 500, closed=True)
  )
  assert found.chosen == whole

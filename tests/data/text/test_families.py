"""The chat templates of real model families, through every encoding.

The reference is `apply_chat_template` of transformers on the same messages,
tokenised in one go: `prompt + response` must be how it begins.
"""

import json

import numpy as np
import pytest
import transformers

from perl_jax.data import records
from perl_jax.data.batches import demonstrations as demonstrations_lib
from perl_jax.data.batches import labelled as labelled_lib
from perl_jax.data.batches import packing, preferences, prompts
from perl_jax.data.text import tokenization as tokenization_lib
from tests.data.plain import plain
from tests.data.text import families
from tests.data.text.families import FAMILIES
from tests.data.text.messages import TALK, assistant, message, system, user

# The variables that the encodings pass to a template.
OPTIONS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
REPLIES = [
  "hello there",
  "12",
  "a",
  "what?\n\n can I get",
  " milk \n",
  "milk\n",
]
# These have a line break after the end of a turn.
CLOSES = ("smollm2", "qwen2", "qwen2.5", "qwen3", "gemma2", "gemma3")
TRIMS = ("llama2", "llama2_fast", "llama3", "llama3.2", "gemma2", "gemma3")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Directory of each family's tokenizer."""
  root = tmp_path_factory.mktemp("families")
  return {n: families.write(f, root / n) for n, f in FAMILIES.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, made):
  """(name, tokenization, transformers' tokenizer)."""
  directory = made[request.param]
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  return request.param, tokenization_lib.load_tokenizer(directory), theirs


def reference(tokenizer, messages, generate=False):
  return tokenizer.apply_chat_template(
    list(messages), add_generation_prompt=generate, **OPTIONS
  )["input_ids"]


def targets(row):
  """Tokens on which there is a loss."""
  tokens, mask = row
  return [t for t, target in zip(tokens, mask, strict=True) if target]


def test_class_bos_and_stops_are_those_of_the_family(family):
  name, ours, theirs = family
  known = FAMILIES[name]
  ids = theirs.convert_tokens_to_ids
  if known.config["tokenizer_class"] != "PreTrainedTokenizerFast":
    assert type(theirs).__name__ == known.config["tokenizer_class"]
  assert ours.stop_ids == tuple(map(ids, known.stops))
  assert ours.bos_id == (None if known.bos is None else ids(known.bos))


@pytest.mark.parametrize("start", [0, 2])
def test_a_prompt_ends_with_the_generation_prompt(family, start):
  _, ours, theirs = family
  asked = records.Prompt("r", "g", tuple(TALK[start:]), None)
  (row,), _ = plain(prompts.encode_prompts([asked], ours, 500))
  assert row.tokens == reference(theirs, TALK[start:], generate=True)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("reply", REPLIES)
def test_prompt_and_response_are_the_whole_conversation(family, start, reply):
  name, ours, theirs = family
  prompt = tuple(TALK[start:])
  whole = reference(theirs, [*prompt, assistant(reply)])
  labelled = records.Labelled("r", "g", prompt, reply, 1.0)
  (row,), _ = plain(labelled_lib.encode_labelled([labelled], ours, 500))
  # Behind the end of the turn a template may have a line break.
  assert row.tokens == whole[: row.length]
  assert row.tokens[-1] == ours.stop_ids[0]
  assert list(ours.closing) == whole[row.length :]
  assert theirs.decode(ours.closing) == ("\n" if name in CLOSES else "")
  (closed,), _ = plain(
    labelled_lib.encode_labelled([labelled], ours, 500, "error", True)
  )
  assert (closed.tokens, closed.prompt_length) == (whole, row.prompt_length)
  pair = records.Preference("r", "g", prompt, reply, "no")
  (both,), _ = plain(preferences.encode_preferences([pair], ours, 500))
  assert (both.chosen, both.prompt_length) == (row.tokens, row.prompt_length)
  expected = reply.strip() if name in TRIMS else reply
  decoded = ours.decode([*row.tokens[row.prompt_length :], 5, 5])
  assert decoded == expected


def test_bos_is_once_at_the_start_or_never(family):
  name, ours, theirs = family
  prompt = ours.encode_prompt(TALK)[0]
  dialog = plain(
    demonstrations_lib.encode_demonstrations(
      [records.Demonstration("r", "g", (), (*TALK, assistant("ok")))], ours
    )
  )[-1][0]
  for ids in (prompt, dialog):
    if ours.bos_id is None:
      assert theirs.bos_token_id is None
      assert theirs.convert_ids_to_tokens(ids[0]) == "<|im_start|>"
      continue
    assert ids[0] == ours.bos_id
    if name == "smollm2":  # BOS opens every turn.
      assert ids.count(ours.bos_id) == ids.count(ours.stop_ids[0]) + (
        ids is prompt
      )
      continue
    # Llama 2 begins each exchange with BOS, behind the end of the one before.
    again = [i for i, id_ in enumerate(ids) if id_ == ours.bos_id][1:]
    assert len(again) == int(name.startswith("llama2"))
    assert all(ids[i - 1] == ours.stop_ids[0] for i in again)


def test_dialogues_have_their_loss_on_assistant_turns(family):
  name, ours, theirs = family
  turns = (*TALK, assistant("a 12"))
  row = records.Demonstration("r", "g", (), turns)
  rows = plain(demonstrations_lib.encode_demonstrations([row], ours))
  answers = [ours.encode_response((), turns[i]["content"]) for i in (1, 3)]
  whole = reference(theirs, turns)
  assert rows[-1][0] == whole[: len(rows[-1][0])]
  if name == "qwen3":  # It writes past turns without the empty thinking.
    assert [targets(row) for row in rows] == answers
    assert rows[0][0] == ours.encode_prompt(TALK[:1])[0] + answers[0]
    with pytest.raises(ValueError, match="in the middle of a dialogue"):
      ours.encode_dialog((), turns)
  else:
    assert len(rows) == 1
    assert targets(rows[0]) == answers[0] + answers[1]
  assert answers[0][-1] == ours.stop_ids[0]


def test_packed_dialogues_begin_with_one_bos_each(family):
  name, ours, _ = family
  # The BOS of SmolLM2 opens turns, and would open one inside another.
  bos = () if ours.bos_id is None or name == "smollm2" else (ours.bos_id,)
  assert ours.beginning == bos
  turns = (*TALK, assistant("a 12"), *TALK, assistant("milk"))
  demonstrations = [
    records.Demonstration(str(i), "g", (), turns[:n])
    for i, n in enumerate((2, 4, 8, 2))
  ]
  rows = demonstrations_lib.encode_demonstrations(demonstrations, ours)
  for length in (max(len(ids) for ids, _ in rows) * 2, 48):
    packed = packing.pack_dialogues(rows, length, ours.beginning)
    expected = sum(sum(mask) for _, mask in rows)
    assert sum(int(row.target_mask.sum()) for row in packed) == expected
    for row in packed:
      for segment in range(1, int(row.segments.max()) + 1):
        ids = row.tokens[row.segments == segment]
        if ours.beginning:
          assert ids[0] == ours.bos_id and ids[1] != ours.bos_id
          behind = np.flatnonzero(ids[1:] == ours.bos_id)
          assert all(ids[i] == ours.stop_ids[0] for i in behind)


def test_system_text_is_where_the_family_has_it(family):
  name, ours, theirs = family
  messages = [system("be kind"), *TALK]
  expected = messages
  if name in ("gemma2", "mistral1"):  # Those refuse the role.
    expected = [user("be kind\n\nhello there"), *TALK[1:]]
    with pytest.raises(Exception, match=r"(?i)role"):
      reference(theirs, messages)
  found = ours.encode_prompt(messages)[0]
  assert found == reference(theirs, expected, generate=True)
  assert "be kind" in theirs.decode(found)
  rows = plain(
    demonstrations_lib.encode_demonstrations(
      [records.Demonstration("r", "g", (*messages,), (assistant("a"),))], ours
    )
  )
  answer = ours.encode_response((), "a")
  assert [targets(row) for row in rows] == [answer]
  assert rows[0][0] == found + answer
  # Shortening keeps the system text, folded or not.
  short, flags = ours.encode_prompt(messages, len(found) - 1, "turns")
  assert flags["dropped_turns"] > 0
  assert "be kind" in theirs.decode(short)


@pytest.mark.parametrize("name", ["llama2", "mistral2", "gemma2", "gemma3"])
def test_roles_that_do_not_alternate_name_the_row(made, name):
  ours = tokenization_lib.load_tokenizer(made[name])
  row = records.Prompt("my.jsonl:7", "g", (user("a"), user("b")), None)
  with pytest.raises(
    ValueError, match=r"my\.jsonl:7: .*refuses.*number 2.*alternate.*Leave"
  ):
    prompts.encode_prompts([row], ours, 500)


@pytest.mark.parametrize("name", ["mistral1", "gemma2"])
def test_a_system_message_without_a_user_behind_it_is_refused(made, name):
  ours = tokenization_lib.load_tokenizer(made[name])
  with pytest.raises(ValueError, match=r"refuses.*'system'"):
    ours.encode_prompt([system("a"), assistant("b"), user("c")])


def test_tool_answers_are_in_a_turn_of_their_own(made):
  """Qwen2.5 has them as a turn of the user."""
  ours = tokenization_lib.load_tokenizer(made["qwen2.5"])
  theirs = transformers.AutoTokenizer.from_pretrained(made["qwen2.5"])
  messages = [*TALK, assistant("{call}"), message("tool", "ok")]
  expected = reference(theirs, messages, generate=True)
  assert ours.encode_prompt(messages)[0] == expected


def test_qwen2_has_its_default_system_prompt(made):
  ours = tokenization_lib.load_tokenizer(made["qwen2"])
  assert ours.encode_prompt([user("a")]) == ours.encode_prompt(
    [system("You are a helpful assistant."), user("a")]
  )


def test_qwen3_answers_without_thinking(made):
  ours = tokenization_lib.load_tokenizer(made["qwen3"])
  theirs = transformers.AutoTokenizer.from_pretrained(made["qwen3"])
  prompt = ours.encode_prompt(TALK[:1])[0]
  assert theirs.decode(prompt).endswith("assistant\n<think>\n\n</think>\n\n")
  thought = "<think>\nhm\n</think>\n\nhello"
  row = records.Labelled("my.jsonl:3", "g", tuple(TALK[:1]), thought, 1.0)
  with pytest.raises(
    ValueError, match=r"my\.jsonl:3: .*something else.*thinking.*template"
  ):
    labelled_lib.encode_labelled([row], ours, 500)
  # Thoughts of earlier turns are left out by the template.
  messages = [user("a"), assistant(thought), user("b")]
  assert ours.encode_prompt(messages) == ours.encode_prompt(
    [user("a"), assistant("hello"), user("b")]
  )


def test_the_date_of_a_prompt_is_not_todays(made):
  """A run that goes on tomorrow sees the same prompts."""
  theirs = transformers.AutoTokenizer.from_pretrained(made["llama3.2"])
  ours = tokenization_lib.load_tokenizer(made["llama3.2"]).encode_prompt(TALK)[
    0
  ]
  assert "Today Date: 26 Jul 2024\n" in theirs.decode(ours)


def test_a_response_shares_no_token_with_the_prompt(made):
  """A sampler's first token comes behind those of the prompt."""
  ours = tokenization_lib.load_tokenizer(made["qwen2"])
  prompt, response = ours.encode_prompt(TALK)[0], "\nhello"
  assert ours.decode(ours.encode_response((), response)) == response
  ids, _ = ours.encode_dialog((), (*TALK, assistant(response)))
  assert ids[: len(prompt)] == prompt


@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen2", "gemma2"])
def test_base_models_without_a_template_take_plain_text(tmp_path, name):
  family = FAMILIES[name]
  bare = families.Family(
    None, family.kind, family.special, family.config, None, ()
  )
  directory = families.write(bare, tmp_path)
  ours = tokenization_lib.load_tokenizer(directory)
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  assert ours.stop_ids == (theirs.eos_token_id,)
  prompt = ours.encode_prompt([user("what can I get?")])[0]
  assert prompt == theirs("what can I get?").input_ids
  assert (prompt[0] == theirs.bos_token_id) == (family.bos is not None)
  for reply in (" 12 milk", " hello", "\nhello"):
    response = ours.encode_response((), reply)
    whole = theirs("what can I get?" + reply).input_ids
    assert prompt + response == [*whole, theirs.eos_token_id]
    assert ours.decode(response) == reply
  row = records.Prompt("my.jsonl:2", "g", tuple(TALK), None)
  with pytest.raises(
    ValueError, match=r"my\.jsonl:2: .*no chat template.*chat_template\.jinja"
  ):
    prompts.encode_prompts([row], ours, 500)


def test_templates_without_a_generation_prompt_are_refused(tmp_path):
  family = FAMILIES["qwen2"]
  template = family.template.split("{% if add_generation_prompt")[0]
  broken = families.Family(
    template, family.kind, family.special, family.config, None, ()
  )
  directory = families.write(broken, tmp_path)
  with pytest.raises(ValueError, match=r"add_generation_prompt.*assistant"):
    tokenization_lib.load_tokenizer(directory)


@pytest.mark.parametrize("eos", [3, [3, 4], None])
def test_eos_of_the_generation_config_is_one_or_many(made, tmp_path, eos):
  directory = families.write(FAMILIES["qwen2"], tmp_path)
  path = directory / "generation_config.json"
  path.write_text(json.dumps({"eos_token_id": eos}))
  more = {3: (3,), None: ()}.get(eos if eos != [3, 4] else 0, (3, 4))
  assert tokenization_lib.load_tokenizer(directory).stop_ids == (2, *more)
  path.unlink()
  (directory / "config.json").write_text(json.dumps({"eos_token_id": eos}))
  assert tokenization_lib.load_tokenizer(directory).stop_ids == (2, *more)
  path.write_text("{")
  with pytest.raises(
    ValueError, match=r"generation_config\.json:1: not valid JSON"
  ):
    tokenization_lib.load_tokenizer(directory)

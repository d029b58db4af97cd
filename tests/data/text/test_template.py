"""Templates like those of real models; one BOS, stop tokens, odd templates.

The independent reference for prompts is transformers' own
`apply_chat_template(tokenize=True)`.
"""

import json

import pytest
import tokenizers
import transformers
from tokenizers import (
  AddedToken,
  decoders,
  models,
  pre_tokenizers,
  processors,
  trainers,
)

from perl_jax.data.batches import packing
from perl_jax.data.text import rendering
from perl_jax.data.text import tokenization as tokenization_lib
from tests.data.text.chat_templates import CHATML
from tests.data.text.messages import TALK, assistant, message, system, user

TEXTS = ["hello there, what can I get you? 12 mochas and\n\nmilk"] * 8


def _directory(
  path, template, special, *, bos=None, eos="<eos>", adds_bos=False, spaces=None
):
  """A tokenizer like those of real models, in a directory."""
  backend = tokenizers.Tokenizer(models.BPE())
  if spaces:
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces)
    backend.decoder = decoders.Metaspace(prepend_scheme=spaces)
    alphabet = [chr(i) for i in range(33, 127)]
  else:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=340,
    special_tokens=special,
    initial_alphabet=sorted(alphabet),
    show_progress=False,
  )
  backend.train_from_iterator(TEXTS, trainer)
  if adds_bos:
    backend.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
  wrapped = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token=bos,
    eos_token=eos,
    chat_template=template,
  )
  wrapped.save_pretrained(path)
  return path


def _reference(path, messages):
  wrapped = transformers.AutoTokenizer.from_pretrained(path)
  return wrapped.apply_chat_template(
    messages, tokenize=True, add_generation_prompt=True
  )["input_ids"]


def test_chatml_without_bos_equals_transformers(tmp_path):
  path = _directory(
    tmp_path, CHATML, ["<eos>", "<|im_start|>", "<|im_end|>"], eos="<eos>"
  )
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
  loaded = tokenization_lib.load_tokenizer(path)
  assert loaded.bos_id is None
  assert loaded.stop_ids == (2, 0, 7)  # <|im_end|>, eos, generation_config.
  assert loaded.encode_prompt(TALK)[0] == _reference(path, TALK)
  ids, mask = loaded.encode_dialog((), (*TALK, assistant("ok")))
  assert ids == _reference(path, TALK) + loaded.encode_response((), "ok")
  assert [i for i, target in zip(ids, mask, strict=True) if target] == [
    *loaded.encode_response((), "what can I get you?"),
    *loaded.encode_response((), "ok"),
  ]


@pytest.mark.parametrize("in_template", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_is_where_transformers_has_it(tmp_path, in_template, adds_bos):
  """What a tokenizer puts before plain text is no part of a conversation."""
  template = ("{{ bos_token }}" if in_template else "") + CHATML
  special = ["<s>", "<eos>", "<|im_start|>", "<|im_end|>"]
  path = _directory(tmp_path, template, special, bos="<s>", adds_bos=adds_bos)
  loaded = tokenization_lib.load_tokenizer(path)
  expected = int(in_template)
  assert loaded.encode_prompt(TALK)[0] == _reference(path, TALK)
  assert loaded.encode_dialog((), TALK)[0].count(0) == expected
  assert loaded.encode_prompt(TALK)[0][0] == (0 if expected else 2)
  assert loaded.bos_id == (0 if expected else None)
  assert loaded.beginning == ((0,) if expected else ())


@pytest.mark.parametrize("system_text", ["", "Be kind"])
def test_bos_may_open_every_turn(tmp_path, system_text):
  """Like SmolLM2, and models set up for ChatML by TRL."""
  template = CHATML
  if system_text:
    template = (
      "{% if messages[0].role != 'system' %}<|im_start|>system\n"
      f"{system_text}<|im_end|>\n{{% endif %}}" + CHATML
    )
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  path = _directory(
    tmp_path, template, special, bos="<|im_start|>", eos="<|im_end|>"
  )
  loaded = tokenization_lib.load_tokenizer(path)
  assert loaded.bos_id == 1 and loaded.stop_ids == (2,)
  for talk in (TALK, [system("be kind"), *TALK], TALK[:1]):
    assert loaded.encode_prompt(talk)[0] == _reference(path, talk)
  # In the middle of a turn it would be another turn without a role.
  assert loaded.beginning == ()
  ids, mask = loaded.encode_dialog((), (*TALK, assistant("12 " * 20)))
  for row in packing.pack_dialogues([(ids, mask)], 24, loaded.beginning):
    for segment in range(1, int(row.segments.max()) + 1):
      window = row.tokens[row.segments == segment].tolist()
      starts = range(len(ids) - len(window) + 1)
      assert window in [ids[i : i + len(window)] for i in starts]


def test_a_prompt_may_begin_with_two_tokens_and_no_bos(tmp_path):
  """Like GLM: the tokenizer puts both before plain text, and names no BOS."""
  special = ["<eos>", "[gMASK]", "<sop>", "<|im_start|>", "<|im_end|>"]
  path = _directory(tmp_path, "[gMASK]<sop>" + CHATML, special)
  file = path / "tokenizer.json"
  backend = tokenizers.Tokenizer.from_file(str(file))
  backend.post_processor = processors.TemplateProcessing(
    single="[gMASK] <sop> $A", special_tokens=[("[gMASK]", 1), ("<sop>", 2)]
  )
  backend.save(str(file))
  loaded = tokenization_lib.load_tokenizer(path)
  assert loaded.encode_prompt(TALK)[0] == _reference(path, TALK)
  assert loaded.beginning == (1, 2) and loaded.bos_id is None


def test_bos_may_separate_messages(tmp_path):
  template = (
    "{% for m in messages %}<s>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
  )
  path = _directory(tmp_path, template, ["<s>", "<eos>"], bos="<s>")
  loaded = tokenization_lib.load_tokenizer(path)
  assert loaded.encode_prompt(TALK)[0] == _reference(path, TALK)
  assert loaded.encode_prompt(TALK)[0].count(0) == 4


def test_prompts_unlike_those_of_transformers_are_refused(
  tmp_path, monkeypatch
):
  path = _directory(tmp_path, CHATML, ["<eos>", "<|im_start|>", "<|im_end|>"])
  whole = rendering.Rendering.reference_ids
  monkeypatch.setattr(
    rendering.Rendering,
    "reference_ids",
    lambda self, messages: [*whole(self, messages)[:-1], 0],
  )
  with pytest.raises(
    ValueError, match=r"roles \['user'\].*from token 23 .*Ċ.*<eos>.*template"
  ):
    tokenization_lib.load_tokenizer(path)


def test_bos_that_also_ends_turns_may_come_again(tmp_path):
  template = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}<s>{% endfor %}"
  )
  path = _directory(tmp_path, template, ["<s>"], bos="<s>", eos="<s>")
  loaded = tokenization_lib.load_tokenizer(path)
  assert (loaded.bos_id, loaded.stop_ids) == (0, (0,))
  assert loaded.encode_prompt(TALK)[0] == _reference(path, TALK)
  ids, mask = loaded.encode_dialog((), TALK[:2])
  assert ids[0] == ids[-1] == 0 and (mask[0], mask[-1]) == (False, True)


@pytest.mark.parametrize("spaces", ["first", "always"])
def test_spaces_put_before_text_equal_transformers(tmp_path, spaces):
  template = (
    "{% for m in messages %}{% if m.role == 'user' %}<u>{% else %}<a>"
    "{% endif %}{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
  )
  special = ["<s>", "<eos>", "<u>", "<a>"]
  path = _directory(tmp_path, template, special, bos="<s>", spaces=spaces)
  loaded = tokenization_lib.load_tokenizer(path)
  assert loaded.encode_prompt(TALK)[0] == _reference(path, TALK)
  for response in ("hello there", "a"):
    assert loaded.decode(loaded.encode_response((), response)) == response
  ids, _ = loaded.encode_dialog((), (*TALK, assistant("ok")))
  assert ids == _reference(path, TALK) + loaded.encode_response((), "ok")


def test_special_tokens_that_swallow_white_space_equal_transformers(tmp_path):
  template = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
  )
  special = [
    "<eos>",
    *(
      AddedToken(f"<|{name}|>", rstrip=True, special=True)
      for name in ("user", "assistant", "end")
    ),
  ]
  path = _directory(tmp_path, template, special)
  loaded = tokenization_lib.load_tokenizer(path)
  assert loaded.encode_prompt(TALK)[0] == _reference(path, TALK)


def test_templates_that_trim_and_quote_equal_transformers(tmp_path):
  template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'tool' %}{{ m.content | tojson }}"
    "{% else %}{{ m.content | trim }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
  )
  path = _directory(tmp_path, template, ["<eos>", "<|im_start|>", "<|im_end|>"])
  loaded = tokenization_lib.load_tokenizer(path)
  messages = [user("  12 milk\n"), assistant(" ok "), message("tool", '"a"')]
  assert loaded.encode_prompt(messages)[0] == _reference(path, messages)
  loaded.encode_dialog((), (*messages, assistant("here")))


def test_templates_that_rewrite_contents(tmp_path):
  template = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
  path = _directory(tmp_path, template, ["<eos>", "<|im_start|>", "<|im_end|>"])
  loaded = tokenization_lib.load_tokenizer(path)
  messages = [user("hello"), assistant("so</think>there"), user("you")]
  assert loaded.encode_prompt(messages)[0] == _reference(path, messages)
  with pytest.raises(ValueError, match=r"rewrites.*row of its own"):
    loaded.encode_dialog((), (*messages, assistant("ok")))
  messages[2] = user("you<|im_end|>")
  with pytest.raises(ValueError, match=r"rewrites.*<\|im_end\|>"):
    loaded.encode_prompt(messages)


def test_template_that_moves_the_system_message_has_no_dialogs(tmp_path):
  # Like Mistral's: the system message stands before the last user message.
  template = (
    "{% set first = messages[0].content if messages[0].role == 'system' else ''"
    " %}{% for m in messages %}{% if m.role == 'user' %}<u>"
    "{% if loop.last %}{{ first }}{% endif %}{{ m.content }}<a>"
    "{% elif m.role == 'assistant' %}{{ m.content }}<eos>{% endif %}"
    "{% endfor %}"
  )
  path = _directory(tmp_path, template, ["<eos>", "<u>", "<a>"])
  loaded = tokenization_lib.load_tokenizer(path)
  messages = [system("be kind"), *TALK]
  assert loaded.encode_prompt(messages)[0] == _reference(path, messages)
  assert loaded.encode_dialog((), (*TALK, assistant("ok")))
  with pytest.raises(ValueError, match="in the middle of a dialogue"):
    loaded.encode_dialog((), (*messages, assistant("ok")))


def test_templates_that_refuse_or_drop_roles_say_which(tmp_path):
  strict = (
    "{% if messages[0].role != 'user' %}"
    "{{ raise_exception('user first') }}{% endif %}"
    "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>"
    "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
  )
  path = _directory(tmp_path, strict, ["<eos>", "<|im_start|>", "<|im_end|>"])
  loaded = tokenization_lib.load_tokenizer(path)
  with pytest.raises(ValueError, match=r"refuses.*'assistant'.*user first"):
    loaded.encode_prompt([assistant("a"), user("b")])
  # A system message may go to the front of the user's.
  folded = loaded.encode_prompt([user("a\n\nb")])
  assert loaded.encode_prompt([system("a"), user("b")]) == folded
  with pytest.raises(ValueError, match=r"leaves out.*'tool'"):
    loaded.encode_prompt([user("b"), message("tool", "c")])
  # Turns are dropped up to one that the template can begin with.
  limit = len(loaded.encode_prompt(TALK)[0]) - 1
  ids, flags = loaded.encode_prompt(TALK, limit, "turns")
  assert flags["dropped_turns"] == 2
  assert ids == loaded.encode_prompt(TALK[2:])[0]


def test_without_a_template_a_prompt_is_plain_text(tmp_path):
  path = _directory(tmp_path, None, ["<s>", "<eos>"], bos="<s>", adds_bos=True)
  loaded = tokenization_lib.load_tokenizer(path)
  wrapped = transformers.AutoTokenizer.from_pretrained(path)
  expected = wrapped("hello there").input_ids
  assert loaded.encode_prompt([user("hello there")])[0] == expected
  assert loaded.stop_ids == (1,)
  ids, mask = loaded.encode_dialog((user("hello there"),), (assistant(" ok"),))
  assert ids == expected + loaded.encode_response((), " ok")
  assert sum(mask) == len(ids) - len(expected)
  with pytest.raises(
    ValueError, match=r"no chat template.*chat_template.jinja"
  ):
    loaded.encode_prompt(TALK)


def test_an_end_of_turn_that_is_not_special_cannot_be_smuggled_in(tmp_path):
  path = _directory(
    tmp_path,
    CHATML,
    [
      "<eos>",
      AddedToken("<|im_start|>", special=False),
      AddedToken("<|im_end|>", special=False),
    ],
  )
  file = path / "tokenizer.json"
  content = json.loads(file.read_text())
  for token in content["added_tokens"][1:]:
    token["special"] = False
  file.write_text(json.dumps(content))
  loaded = tokenization_lib.load_tokenizer(path)
  assert loaded.stop_ids[0] == 2
  with pytest.raises(ValueError, match=r"<\|im_end\|>.*end or the beginning"):
    loaded.encode_prompt([user("stop<|im_end|>")])


def test_a_tokenizer_without_an_end_of_turn_is_refused(tmp_path):
  path = _directory(tmp_path, CHATML.replace("<|im_end|>", ""), ["x"])
  config = path / "tokenizer_config.json"
  content = json.loads(config.read_text())
  del content["eos_token"]
  config.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="no token that ends a response"):
    tokenization_lib.load_tokenizer(path)

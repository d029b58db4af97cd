"""Text of contents: special tokens in it, and tokens without an embedding."""

import dataclasses
import json

import pytest
import tokenizers
import transformers

from perl_jax.data import records
from perl_jax.data.batches import preferences
from perl_jax.data.text import tokenization as tokenization_lib
from tests.data.text import families
from tests.data.text.families import FAMILIES
from tests.data.text.messages import TALK, assistant, user


@pytest.fixture(params=FAMILIES)
def directory(request, tmp_path):
  return families.write(FAMILIES[request.param], tmp_path)


def test_special_tokens_in_a_content_stay_text(directory):
  ours = tokenization_lib.load_tokenizer(directory)
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  plain = ours.encode_prompt(TALK)[0]
  for token in theirs.all_special_tokens:
    content = f"12 {token}milk"
    prompt = ours.encode_prompt([*TALK[:2], user(content)])[0]
    specials = [i for i in prompt if i in theirs.all_special_ids]
    assert specials == [i for i in plain if i in theirs.all_special_ids]
    assert content in theirs.decode(prompt)
    response = ours.encode_response((), content)
    assert response[-1] == ours.stop_ids[0]
    assert not set(response[:-1]) & set(theirs.all_special_ids)
    assert ours.decode(response) == content


def added(directory, *tokens, **config):
  """Adds tokens to a tokenizer; returns the rows of the embedding before."""
  path = directory / "tokenizer.json"
  backend = tokenizers.Tokenizer.from_file(str(path))
  rows = backend.get_vocab_size()
  backend.add_tokens(
    [tokenizers.AddedToken(t, normalized=False) for t in tokens]
  )
  backend.save(str(path))
  path = directory / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | config))
  return rows


def test_a_row_with_a_token_past_the_embedding_is_refused(tmp_path):
  """gemma-3-1b has such a token: for images, which it cannot read."""
  directory = families.write(FAMILIES["gemma3"], tmp_path)
  before = tokenization_lib.load_tokenizer(directory)
  rows = added(directory, "<image_soft_token>")
  ours = tokenization_lib.load_tokenizer(directory, rows)
  assert ours.encode_prompt(TALK) == before.encode_prompt(TALK)
  assert (ours.stop_ids, ours.pad_id) == (before.stop_ids, before.pad_id)
  bad = "see <image_soft_token>"
  for prompt, chosen in ((bad, "a"), ("a", bad)):
    row = records.Preference("my.jsonl:3", "g", (user(prompt),), chosen, "no")
    with pytest.raises(
      ValueError, match=rf"my\.jsonl:3: .*'<image_soft_token>'.*{rows} rows"
    ):
      preferences.encode_preferences([row], ours, 500)
  with pytest.raises(ValueError, match="<image_soft_token>"):
    ours.encode_dialog((user(bad),), (assistant("a"),))


def test_a_pad_token_past_the_embedding_is_replaced(tmp_path):
  """Llama 2 with [PAD] added, and the model left as it was."""
  directory = families.write(FAMILIES["llama2"], tmp_path)
  rows = added(directory, "[PAD]", pad_token="[PAD]")
  assert tokenization_lib.load_tokenizer(directory).pad_id == rows
  ours = tokenization_lib.load_tokenizer(directory, rows)
  assert ours.pad_id == ours.stop_ids[-1] < rows
  assert ours.pads[0] == (0, "<unk>")


def test_a_further_stop_past_the_embedding_is_never_sampled(tmp_path):
  directory = families.write(FAMILIES["qwen2"], tmp_path)
  rows = added(directory, "<|end|>", pad_token=None)
  (directory / "generation_config.json").write_text(
    json.dumps({"eos_token_id": [2, rows]})
  )
  ours = tokenization_lib.load_tokenizer(directory, rows)
  assert (ours.stop_ids, ours.pad_id) == ((2, rows), 2)


def test_an_end_of_turn_past_the_embedding_is_refused(tmp_path):
  """ChatML set up for a base model that was not resized."""
  directory = families.write(FAMILIES["qwen2"], tmp_path)
  rows = added(directory, "<|start|>", "<|end|>")
  path = directory / "tokenizer_config.json"
  content = path.read_text()
  for old, new in (("im_start", "start"), ("im_end", "end")):
    content = content.replace(f"<|{old}|>", f"<|{new}|>")
  path.write_text(content)
  tokenization_lib.load_tokenizer(directory, rows + 2)
  for fewer, token in ((rows + 1, "end"), (rows, "start")):
    with pytest.raises(
      ValueError, match=rf"every prompt.*'<\|{token}\|>'.*{fewer} rows"
    ):
      tokenization_lib.load_tokenizer(directory, fewer)


@pytest.mark.parametrize(
  "template",
  [
    "{% for m in messages %}### {{ m.role.title() }}:\n{{ m.content }}"
    "{% if m.role == 'user' %}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}",
    "{% for m in messages %}\n\n{{ m.role.title() }}: {{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}\n\nAssistant:{% endif %}",
  ],
)
@pytest.mark.parametrize("name", ["llama2", "llama2_fast"])
def test_no_space_is_put_after_a_response_without_an_end(
  tmp_path, template, name
):
  """Some tokenizers put one before any text that they are given by itself."""
  family = dataclasses.replace(FAMILIES[name], template=template)
  directory = families.write(family, tmp_path)
  ours = tokenization_lib.load_tokenizer(directory)
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  talk = [user("12 milk"), assistant("hello there, you"), user("and 3?")]
  for messages in (talk[:1], talk, [*talk, assistant("Yes."), user("ok")]):
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)
    assert ours.encode_prompt(messages)[0] == expected["input_ids"]

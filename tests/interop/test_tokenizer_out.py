"""The tokenizer's files of an export, read by transformers and tokenizers."""

import json

import pytest
import tokenizers
import transformers

from perl_jax.data.text import gguf_tokenizer
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import tokenizer_out
from tests.data.text import families
from tests.data.text.chat_templates import CHATML
from tests.data.text.families import FAMILIES, REASONING, Family
from tests.data.text.messages import TALK
from tests.interop.gguf import models

ONLY_END = Family(
  None, "bytes", ("<|im_end|>",), {"eos_token": "<|im_end|>"}, None, ()
)


def written(directory, family, special_map=None):
  families.write(family, directory)
  if special_map is not None:
    path = directory / "special_tokens_map.json"
    path.write_text(json.dumps(special_map))
  return tokenization_lib.load_tokenizer(directory)


def reads(directory):
  """(id, text) of the pad token as transformers reads the files."""
  found = transformers.AutoTokenizer.from_pretrained(directory)
  assert found.pad_token in found.all_special_tokens
  return found.pad_token_id, found.pad_token


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("reward", [True, False])
def test_every_family_is_padded(name, reward, tmp_path):
  """Its own pad token stays, unless it could end what a reward model reads."""
  ours = written(tmp_path, FAMILIES[name])
  id_, text = tokenizer_out.pad_token(ours, reward=reward)
  own = FAMILIES[name].config.get("pad_token")
  if own is not None and not reward:
    assert text == own
  if reward:
    assert id_ not in ours.stop_ids
  before = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ids = before(families.TEXTS[0]).input_ids
  tokenizer_out.set_pad_token(tmp_path, id_, text)
  assert reads(tmp_path) == (id_, text)
  after = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert after(families.TEXTS[0]).input_ids == ids
  assert len(after) == len(before)
  again = tokenization_lib.load_tokenizer(tmp_path)
  assert (again.pad_id, again.stop_ids) == (id_, ours.stop_ids)
  batch = after(["12", families.TEXTS[0]], padding=True)
  rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
  padded = [{i for i, m in zip(*row, strict=True) if not m} for row in rows]
  assert padded == [{id_}, set()]


def test_all_files_name_one_pad_token(tmp_path):
  """Also where they disagreed, and padding was saved with the pipeline."""
  family = FAMILIES["qwen2.5"]
  special = (*family.special, "<|vision_pad|>")
  family = Family(
    CHATML, "bytes", special, family.config, family.eos, family.stops
  )
  more = {"pad_token": {"content": "<|endoftext|>"}, "eos_token": "<|im_end|>"}
  ours = written(tmp_path, family, more)
  path = tmp_path / "tokenizer.json"
  backend = tokenizers.Tokenizer.from_file(str(path))
  backend.enable_padding(pad_id=0, pad_token="<|endoftext|>")
  backend.save(str(path))
  path = tmp_path / "tokenizer_config.json"
  settings = json.loads(path.read_text())
  settings["added_tokens_decoder"] = {
    "3": {"content": "<|vision_pad|>", "special": False}
  }
  path.write_text(json.dumps(settings))
  id_, text = tokenizer_out.pad_token(ours, reward=True)
  assert (id_, text) == (3, "<|vision_pad|>")
  tokenizer_out.set_pad_token(tmp_path, id_, text)
  settings = json.loads(path.read_text())
  assert settings["pad_token"] == text
  assert settings["added_tokens_decoder"]["3"]["special"] is True
  mapped = json.loads((tmp_path / "special_tokens_map.json").read_text())
  assert mapped == {"pad_token": text, "eos_token": "<|im_end|>"}
  backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  assert backend.padding["pad_id"] == id_
  assert backend.padding["pad_token"] == text
  assert reads(tmp_path) == (id_, text)


def test_a_token_of_the_vocabulary_becomes_a_special_one(tmp_path):
  """As the way out of the error below has it."""
  ours = written(tmp_path, ONLY_END)
  with pytest.raises(ValueError, match="Set pad_token in its tokenizer_config"):
    tokenizer_out.pad_token(ours, reward=True)
  assert tokenizer_out.pad_token(ours, reward=False) == ours.stop
  path = tmp_path / "tokenizer_config.json"
  settings = json.loads(path.read_text()) | {"pad_token": "ÿ"}
  path.write_text(json.dumps(settings))
  ours = tokenization_lib.load_tokenizer(tmp_path)
  id_, text = tokenizer_out.pad_token(ours, reward=True)
  tokenizer_out.set_pad_token(tmp_path, id_, text)
  assert text == "ÿ" and reads(tmp_path) == (id_, text)
  added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
  assert {"id": id_, "special": True}.items() <= added[-1].items()


def test_a_template_takes_the_place_of_the_one_that_was_there(tmp_path):
  written(tmp_path, FAMILIES["qwen2"])
  tokenizer_out.set_template(tmp_path, CHATML)
  found = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert found.chat_template == CHATML
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert "chat_template" not in settings


@pytest.mark.parametrize(
  ("family", "model_type"),
  [
    (FAMILIES["mistral2"], "mistral"),
    (FAMILIES["llama2"], "llama"),
    (FAMILIES["llama3"], "llama"),
    (FAMILIES["qwen2.5"], "qwen2"),
    (FAMILIES["gemma3"], "gemma3_text"),
    (REASONING["r1"], "qwen2"),
    (REASONING["r1"], "llama"),
  ],
)
def test_without_a_config_it_is_read_as_with_one(family, model_type, tmp_path):
  """As adapters are saved: the class depends on what lies beside."""
  first = families.write(family, tmp_path / "first")
  (first / "config.json").write_text(json.dumps({"model_type": model_type}))
  second = families.write(family, tmp_path / "second")
  theirs = transformers.AutoTokenizer.from_pretrained(first)
  tokenizer_out.keep_class(second, theirs)
  read = transformers.AutoTokenizer.from_pretrained(second)
  talk = [*TALK, {"role": "assistant", "content": "12 mochas, and 3"}]
  assert read.apply_chat_template(talk) == theirs.apply_chat_template(talk)
  if model_type == "mistral":
    assert type(read) is type(theirs)
    settings = json.loads((second / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_tokenizer_of_a_gguf_file_of_qwen_is_read_as_one(tmp_path):
  """Its class says "" where a tokenizer that is built has no suffix."""
  models.write(
    tmp_path / "q.gguf", "qwen2_tiny", fields={"tokenizer.ggml.pre": "qwen2"}
  )
  out = tmp_path / "out"
  gguf_tokenizer.write_tokenizer(tmp_path / "q.gguf", out)
  ours = transformers.AutoTokenizer.from_pretrained(out)
  (out / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
  tokenizer_out.keep_class(out, ours)
  read = transformers.AutoTokenizer.from_pretrained(out)
  text = "12 mochas, and\u0065\u0301 3  teas!\n\n In"
  assert read(text)["input_ids"] == ours(text)["input_ids"]

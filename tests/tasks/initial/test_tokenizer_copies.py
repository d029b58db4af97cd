"""Tokenizers are copied into workdirs and exports whole, or refused."""

import base64
import dataclasses
import json
import shutil

import pytest
import transformers

from perl_jax import checksums
from perl_jax import roles as roles_lib
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import manifest, roles, sealed
from perl_jax.tasks.initial.model import Start
from tests import toys
from tests.data.text import families
from tests.data.text.chat_templates import CHATML
from tests.data.text.families import FAMILIES

FIRST = "{% for m"
TOOLS = "{% if tools %}TOOLS {{ tools|tojson }}{% endif %}"
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object"}}
ASKED = {
  "role": "user",
  "content": "hi",
  "tools": [{"type": "function", "function": TOOL}],
}
TALK = [{"role": "user", "content": "hello"}]
SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>")
INST = (
  "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
  "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)


def start(directory, template=None):
  config = toys.config("tiny", vocab_size=400)
  role = roles_lib.Role(roles_lib.Backbone(config, LoraSpec()), {}, {})
  source = {"kind": "huggingface", "path": str(directory), "dtype": "float32"}
  return Start(role, source, "", directory, template)


def write_model(directory, workdir):
  workdir.mkdir()
  manifest.write_model(
    workdir, start(directory), lora=LoraSpec(), tuning="lora",
    trained=("policy",), init={"init": "", "checkpoint": ""},
  )  # fmt: skip
  return workdir / manifest.TOKENIZER


def prompt(directory, messages, **options):
  found = tokenization_lib.load_tokenizer(directory, **options)
  return found.tokenizer.decode(found.encode_prompt(messages)[0])


@pytest.fixture
def named(tmp_path):
  """A tokenizer with a template for tools, as transformers saves both."""
  directory = families.write(FAMILIES["qwen2"], tmp_path / "named")
  found = transformers.AutoTokenizer.from_pretrained(directory)
  tool = CHATML.replace(FIRST, TOOLS + FIRST, 1)
  assert tool != CHATML
  plain = CHATML.replace(FIRST, TOOLS.lower() + FIRST, 1)
  found.chat_template = {"default": plain, "tool_use": tool}
  found.save_pretrained(directory)
  return directory


def test_a_tokenizer_beside_an_adapter_is_read_as_beside_its_base(tmp_path):
  """By the base's config.json, and so in each stage that follows."""
  base = families.write(FAMILIES["llama2"], tmp_path / "base")
  path = base / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"legacy": False}))
  beside = shutil.copytree(base, tmp_path / "adapter")
  (base / "config.json").write_text('{"model_type": "mistral"}')
  expected = start(base).load_tokenizer().encode_prompt(TALK)
  alone = start(beside).load_tokenizer().encode_prompt(TALK)
  assert alone != expected  # the files alone do not say it
  found = dataclasses.replace(start(beside), model_files=base)
  assert found.load_tokenizer().encode_prompt(TALK) == expected
  manifest.write_tokenizer(found, tmp_path / "copy")
  copied = tokenization_lib.load_tokenizer(tmp_path / "copy")
  assert copied.encode_prompt(TALK) == expected


def test_templates_by_name_are_copied(named, tmp_path):
  assert "TOOLS" in prompt(named, [ASKED])
  copied = write_model(named, tmp_path / "run")
  assert prompt(copied, [ASKED]) == prompt(named, [ASKED])
  assert prompt(copied, TALK) == prompt(named, TALK)
  sealed.write(tmp_path / "run")
  sealed.require(tmp_path / "run", manifest.TOKENIZER)
  (copied / "additional_chat_templates/tool_use.jinja").write_text("{{ 1 }}")
  with pytest.raises(ValueError, match=r"tool_use\.jinja is not as it was"):
    sealed.require(tmp_path / "run", manifest.TOKENIZER)
  assert checksums.fault(tmp_path / "run") is not None


def test_a_template_of_an_adapter_is_the_only_one(named, tmp_path):
  template = tmp_path / "chat_template.jinja"
  template.write_text(CHATML)
  manifest.write_tokenizer(start(named, template), tmp_path / "copy")
  copied = prompt(tmp_path / "copy", TALK)
  assert copied == prompt(named, TALK, template=template)
  assert not (tmp_path / "copy/additional_chat_templates").exists()


def test_a_template_by_name_makes_another_tokenizer(
  named, tmp_path, monkeypatch
):
  manifest.copy_tokenizer(named, tmp_path / "copy")
  with monkeypatch.context() as patch:
    patch.setattr(roles.tokenizer_files, "read", None)
    roles.require_same_tokenizer(start(named), start(tmp_path / "copy"))
  (tmp_path / "copy/additional_chat_templates/tool_use.jinja").unlink()
  read = []
  monkeypatch.setattr(
    roles.tokenizer_files, "read",
    lambda *a, old=roles.tokenizer_files.read: read.append(a) or old(*a),
  )  # fmt: skip
  roles.require_same_tokenizer(start(named), start(tmp_path / "copy"))
  assert len(read) == 2


@pytest.fixture
def tekken(tmp_path):
  """A directory of Mistral with tekken.json and no tokenizer.json."""
  directory = tmp_path / "tekken"
  directory.mkdir()
  pieces = [*(bytes([i]) for i in range(256)), b"he"]
  vocabulary = [
    {"rank": i, "token_bytes": base64.b64encode(piece).decode()}
    | {"token_str": None}
    for i, piece in enumerate(pieces)
  ]
  special = [
    {"rank": i, "token_str": text, "is_control": True}
    for i, text in enumerate(SPECIAL)
  ]
  config = {
    "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
    "num_vocab_tokens": len(pieces),
    "default_vocab_size": len(pieces) + len(special),
    "default_num_special_tokens": len(special),
    "version": "v7",
  }
  content = {"config": config, "vocab": vocabulary, "special_tokens": special}
  (directory / "tekken.json").write_text(json.dumps(content))
  (directory / "config.json").write_text('{"model_type": "mistral"}')
  (directory / "chat_template.jinja").write_text(INST)
  return directory


def test_a_vocabulary_of_mistral_is_copied(tekken, tmp_path):
  copied = write_model(tekken, tmp_path / "run")
  assert prompt(copied, TALK) == prompt(tekken, TALK) == "[INST]hello[/INST]"
  theirs = transformers.AutoTokenizer.from_pretrained(tekken)
  ours = tokenization_lib.load_tokenizer(copied).encode_prompt(TALK)[0]
  assert ours == theirs.apply_chat_template(TALK)["input_ids"]


def test_a_tokenizer_that_would_be_lost_is_refused(tmp_path, monkeypatch):
  """Before anything is trained: no later stage could read the copy."""
  directory = families.write(FAMILIES["qwen2"], tmp_path / "base")
  monkeypatch.setattr(manifest, "_TOKENIZER_FILES", ("tokenizer_config.json",))
  with pytest.raises(ValueError, match=r"cannot be copied.*save_pretrained"):
    write_model(directory, tmp_path / "run")


def test_the_template_of_a_processor(tmp_path):
  """A processor of older transformers wrote it beside a tokenizer without."""
  directory = families.write(FAMILIES["gemma3"], tmp_path / "base")
  expected = prompt(directory, TALK)
  settings = directory / "tokenizer_config.json"
  fields = json.loads(settings.read_text())
  template = fields.pop("chat_template")
  settings.write_text(json.dumps(fields))
  path = directory / "chat_template.json"
  path.write_text(json.dumps({"chat_template": template}))
  assert prompt(directory, TALK) == expected
  copied = write_model(directory, tmp_path / "run")
  assert prompt(copied, TALK) == expected
  theirs = transformers.AutoTokenizer.from_pretrained(copied)
  assert theirs.chat_template == template
  # A template of the tokenizer goes before it, as in transformers.
  (directory / "chat_template.jinja").write_text(CHATML)
  assert prompt(directory, TALK) != expected

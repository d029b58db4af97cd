"""Tokenizers that cannot be read: each error's way out is followed once."""

import codecs
import importlib.util
import json
import shlex
import struct
import subprocess
import sys

import pytest
import transformers

from perl_jax.data.text import hugging_face, unreadable
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import tokenizer_out
from tests.data.text import families
from tests.data.text.families import FAMILIES
from tests.data.text.messages import TALK, user


@pytest.fixture
def directory(tmp_path):
  return families.write(FAMILIES["qwen2"], tmp_path / "tokenizer")


@pytest.fixture
def expected(tmp_path):
  """The prompt of the tokenizer as it should be."""
  whole = families.write(FAMILIES["qwen2"], tmp_path / "whole")
  return tokenization_lib.load_tokenizer(whole).encode_prompt(TALK)


def refused(directory, match):
  with pytest.raises(
    ValueError, match=f"no tokenizer that transformers can read: {match}"
  ):
    tokenization_lib.load_tokenizer(directory)


def prompt(directory):
  return tokenization_lib.load_tokenizer(directory).encode_prompt(TALK)


def edit(path, **changes):
  """Changes fields of a JSON file; None removes one."""
  content = json.loads(path.read_text()) | changes
  kept = {k: v for k, v in content.items() if v is not None}
  path.write_text(json.dumps(kept))


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_of_byte_pairs(directory, expected, missing):
  """Without the file that holds both; transformers reads the pair."""
  whole = directory / "tokenizer.json"
  content = json.loads(whole.read_text())
  whole.unlink()
  merges = [" ".join(pair) for pair in content["model"]["merges"]]
  files = {
    "vocab.json": json.dumps(content["model"]["vocab"]),
    "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
  }
  added = {str(t["id"]): t for t in content["added_tokens"]}
  for token in added.values():
    del token["id"]
  edit(directory / "tokenizer_config.json", added_tokens_decoder=added)
  there = min(files.keys() - {missing})
  (directory / there).write_text(files[there])
  refused(directory, rf"it has {there} and no {missing}.* Copy {missing}")
  (directory / missing).write_text(files[missing])
  assert prompt(directory) == expected


def test_no_files(tmp_path, directory, expected):
  empty = tmp_path / "model"
  empty.mkdir()
  (empty / "config.json").write_text('{"model_type": "qwen2"}')
  refused(empty, r"it has none of tokenizer\.json.*Copy.*chat_template\.jinja")
  for path in directory.iterdir():
    (empty / path.name).write_bytes(path.read_bytes())
  assert prompt(empty) == expected


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
  ("content", "why"),
  [
    ("{", "is no JSON"),
    ("version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git"),
  ],
)
def test_broken_files_are_named(directory, expected, name, content, why):
  kept = (directory / name).read_text()
  (directory / name).write_text(content)
  refused(directory, f"{name} {why}.* [Cc]opy")
  (directory / name).write_text(kept)
  assert prompt(directory) == expected


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_byte_order_mark(directory, expected, name):
  """As some editors save a file."""
  kept = (directory / name).read_bytes()
  (directory / name).write_bytes(codecs.BOM_UTF8 + kept)
  refused(directory, f"{name} begins with a byte order mark.* without one")
  (directory / name).write_bytes(kept)
  assert prompt(directory) == expected


@pytest.mark.parametrize(
  "eos", ["</s>", "2", [[2]], {"a": 1}, True, [2, "3"], 2.0]
)
def test_an_eos_token_that_is_no_id(directory, eos):
  path = directory / "generation_config.json"
  path.write_text(json.dumps({"eos_token_id": eos}))
  with pytest.raises(ValueError) as caught:
    tokenization_lib.load_tokenizer(directory)
  assert f"{path}: eos_token_id={eos!r}" in str(caught.value)


@pytest.mark.parametrize(
  ("name", "fields"),
  [
    ("generation_config.json", {"eos_token_id": [3, -1]}),
    ("config.json", {"text_config": {"eos_token_id": 3}}),
  ],
)
def test_where_a_model_stops(directory, name, fields):
  (directory / "generation_config.json").unlink()
  fields |= {"model_type": "qwen2"} if name == "config.json" else {}
  (directory / name).write_text(json.dumps(fields))
  assert hugging_face.eos_ids(directory) == [3]
  assert tokenization_lib.load_tokenizer(directory).stop_ids[-1] == 3


@pytest.mark.parametrize("fields", [("eos_token",), ("eos_token", "unk_token")])
def test_a_special_token_that_is_empty(directory, expected, fields):
  """As in early conversions of LLaMA, where a response would end in <unk>."""
  path = directory / "tokenizer_config.json"
  kept = path.read_text()
  edit(path, **dict.fromkeys(fields, ""))
  refused(directory, r'tokenizer_config\.json: eos_token is ""\. Name the tok')
  path.write_text(kept)
  (directory / "special_tokens_map.json").write_text('{"pad_token": ""}')
  refused(directory, r'special_tokens_map\.json: pad_token is ""')
  (directory / "special_tokens_map.json").write_text("{}")
  assert prompt(directory) == expected


@pytest.mark.parametrize(
  "name", ["tokenizer_config.json", "special_tokens_map.json"]
)
def test_a_key_that_stands_twice(directory, expected, name):
  """transformers takes the last, and an export would refuse the file."""
  (directory / name).write_text(
    (directory / name).read_text() if (directory / name).exists() else "{}"
  )
  kept = (directory / name).read_text()
  twice = '"eos_token": "<|im_end|>",\n"eos_token": "<|im_end|>"'
  rest = kept.removeprefix("{").replace('"eos_token"', '"unk_token"')
  comma = "," if rest.strip() != "}" else ""
  (directory / name).write_text("{" + twice + comma + rest)
  with pytest.raises(ValueError, match=f"{directory / name}:2:.*'eos_token'"):
    tokenization_lib.load_tokenizer(directory)
  (directory / name).write_text(kept)
  assert prompt(directory) == expected


def test_a_damaged_tekken_file(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
  (tmp_path / "tekken.json").write_text('{"config": {}}')
  refused(tmp_path, r"tekken\.json is damaged.*Copy that file again")


def test_code_is_not_run(directory):
  settings = directory / "tokenizer_config.json"
  edit(settings, tokenizer_class=None)
  expected = prompt(directory)
  ours = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["m.M", ""]}}
  edit(settings, **ours)
  (directory / "m.py").write_text("raise SystemExit('was run')")
  refused(directory, r".*not run\. It has a tokenizer\.json.*remove auto_map")
  edit(settings, auto_map=None)
  assert prompt(directory) == expected
  edit(settings, **ours)
  (directory / "tokenizer.json").unlink()
  (directory / "vocab.json").write_text("{}")
  (directory / "merges.txt").write_text("")
  refused(directory, r".*not run, and there is no tokenizer\.json")


def test_a_template_with_a_syntax_error(directory, expected):
  template = FAMILIES["qwen2"].template
  path = directory / "chat_template.jinja"
  path.write_text(template.replace("{% endfor %}", "\n{% endif %}"))
  with pytest.raises(
    ValueError, match=r"syntax error in line \d: .*endif.*chat_template\.jinja"
  ):
    prompt(directory)
  path.write_text(template)
  assert prompt(directory) == expected
  path.unlink()
  settings = directory / "tokenizer_config.json"
  edit(settings, chat_template=template + "{% if %}")
  with pytest.raises(
    ValueError, match=r"syntax error.* tokenizer_config\.json"
  ):
    prompt(directory)
  edit(settings, chat_template=template)
  assert prompt(directory) == expected


def test_named_templates_without_a_default(directory, expected):
  template = FAMILIES["qwen2"].template
  named = [
    {"name": "rag", "template": template},
    {"name": "tool_use", "template": "{{ 1 / 0 }}"},
  ]
  edit(directory / "tokenizer_config.json", chat_template=named)
  with pytest.raises(
    ValueError, match=r"\['rag', 'tool_use'\].*'default'.*chat_template\.jinja"
  ):
    prompt(directory)
  (directory / "chat_template.jinja").write_text(template)
  assert prompt(directory) == expected
  (directory / "chat_template.jinja").unlink()
  named.append({"name": "default", "template": template})
  edit(directory / "tokenizer_config.json", chat_template=named)
  assert prompt(directory) == expected


def test_no_end_of_response(directory):
  """tokenizer.json alone, as `tokenizers` saves it."""
  for name in ("tokenizer_config.json", "generation_config.json"):
    (directory / name).unlink()
  with pytest.raises(ValueError, match=r"Set eos_token in its tokenizer_conf"):
    tokenization_lib.load_tokenizer(directory)
  settings = directory / "tokenizer_config.json"
  settings.write_text('{"eos_token": "<|im_end|>"}')
  loaded = tokenization_lib.load_tokenizer(directory)
  assert loaded.stop_ids == (2,)
  with pytest.raises(ValueError, match=r"no chat template.* Add a chat_temp"):
    loaded.encode_prompt(TALK)
  (directory / "chat_template.jinja").write_text(FAMILIES["qwen2"].template)
  assert tokenization_lib.load_tokenizer(directory).encode_prompt(TALK)


# SentencePiece.


def _field(number, value):
  """A field of a message of Protocol Buffers: bytes, an int or a float."""
  if isinstance(value, bytes):
    return bytes([number << 3 | 2, len(value)]) + value
  if isinstance(value, float):
    return bytes([number << 3 | 5]) + struct.pack("<f", value)
  return bytes([number << 3, value])


@pytest.fixture
def pieces(tmp_path):
  """A directory with a SentencePiece model alone, like old Llama 2's."""
  kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
  words = ["▁h", "▁a", "el", "lo", "ello", "▁hello", *"▁abcdefghilorst"]
  content = b""
  for i, piece in enumerate([*kinds, *words]):
    found = _field(1, piece.encode()) + _field(2, -float(i))
    content += _field(1, found + _field(3, kinds.get(piece, 1)))
  content += _field(2, _field(3, 2))  # Byte pairs.
  (tmp_path / "tokenizer.model").write_bytes(content)
  (tmp_path / "tokenizer_config.json").write_text(
    json.dumps(
      {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}
      | {"eos_token": "</s>", "unk_token": "<unk>"}
    )
  )
  return tmp_path


def test_sentencepiece_is_named_and_no_other_library(pieces):
  error = ImportError("`tiktoken` is required to read a `tiktoken` file.")
  found = unreadable.reason(pieces, error)
  assert "`pip install sentencepiece`" in found and "tiktoken" not in found
  if importlib.util.find_spec("sentencepiece") is None:
    refused(pieces, r"tokenizer\.model is a SentencePiece model.*sentencepiece")
  (pieces / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
  found = unreadable.reason(pieces, error)
  assert "`pip install tiktoken`" in found
  (pieces / "tokenizer.model").rename(pieces / "tokenizer.model.v3")
  refused(pieces, r"it has tokenizer\.model\.v3\. Rename that to tokenizer")


@pytest.mark.parametrize("family", ["llama", "mistral", "no family"])
@pytest.mark.parametrize("named", ["LlamaTokenizer", None])
def test_a_sentencepiece_model_cuts_as_sentencepiece_does(
  pieces, family, named
):
  """Whatever class transformers finds for it."""
  library = pytest.importorskip("sentencepiece")
  with (pieces / "tokenizer.model").open("wb") as out:
    library.SentencePieceTrainer.train(
      sentence_iterator=iter([*families.TEXTS, "a  b", "lodge\nshore"] * 20),
      model_writer=out, vocab_size=310, model_type="bpe", byte_fallback=True,
      normalization_rule_name="identity", remove_extra_whitespaces=False,
      hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
  edit(pieces / "tokenizer_config.json", tokenizer_class=named)
  if family != "no family":
    (pieces / "config.json").write_text(json.dumps({"model_type": family}))
  model = library.SentencePieceProcessor(
    model_file=str(pieces / "tokenizer.model")
  )
  loaded = tokenization_lib.load_tokenizer(pieces)
  for text in ("hello", "a  b", "hello a", "lodge\nshore"):
    found = loaded.tokenizer.encode(text, add_special_tokens=False)
    assert found == model.encode(text)
  # And so it is for who takes the export.
  tokenizer_out.keep_class(pieces, loaded.tokenizer)
  theirs = transformers.AutoTokenizer.from_pretrained(pieces)
  for text in ("hello", "a  b", "hello a"):
    assert theirs.encode(text, add_special_tokens=False) == model.encode(text)


@pytest.mark.slow  # It starts Python, and imports transformers there.
def test_a_sentencepiece_model_can_be_converted(pieces):
  pytest.importorskip("sentencepiece", reason="reads a SentencePiece model")
  before = tokenization_lib.load_tokenizer(pieces).encode_prompt(
    [user("hello a")]
  )
  command = unreadable.reason(pieces, ImportError()).partition("once: ")[2]
  python, *arguments = shlex.split(command)
  assert python == "python"
  subprocess.run([sys.executable, *arguments], check=True)
  (pieces / "tokenizer.model").unlink(missing_ok=True)
  loaded = tokenization_lib.load_tokenizer(pieces)
  assert loaded.encode_prompt([user("hello a")]) == before
  assert loaded.decode(loaded.encode_response((), "hello a")) == "hello a"

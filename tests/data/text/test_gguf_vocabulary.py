"""What a file says of its tokens, and files that contradict themselves."""

import pytest

pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax.data.text.gguf_tokenizer import build_tokenizer
from perl_jax.data.text.gguf_vocabulary import Vocabulary
from tests.data.text import gguf_files
from tests.data.text.gguf_files import TEMPLATE

GOOD = {"pre": "gpt-2", "merges": ["a b"]}


@pytest.mark.parametrize(
  ("key", "fields", "message"),
  [
    ("model", {"model": None}, "is missing"),
    ("model", {"model": "bert"}, "'bert', which is none of gpt2, llama"),
    ("model", {"model": "t5"}, "'t5', which is none of gpt2, llama"),
    ("model", {"model": "rwkv"}, "'rwkv', which is none of"),
    ("model", {"model": 3}, "should be a str, but is '3'"),
    ("pre", {"pre": None}, "is missing"),
    ("pre", {"pre": "gpt-5"}, "'gpt-5', which is none of .*llama-bpe"),
    ("tokens", {"tokens": None}, "is missing"),
    ("tokens", {"tokens": [1, 2]}, "has 1 as token 0, which is no text"),
    ("tokens", {"tokens": ["a", "b", "a"]}, "'a' twice, as token 0 and .* 2"),
    ("token_type", {"kinds": [1, 1]}, "has 2 entries for 3 tokens"),
    ("merges", {"merges": None}, "is missing"),
    ("merges", {"merges": ["ab"]}, "'ab' as merge 0, which is no pair"),
    ("merges", {"merges": ["a b", "a c"]}, "merge 1, but 'c' is no token"),
    ("merges", {"merges": ["b a"]}, "merge 0, but 'ba' is no token"),
    ("eos_token_id", {"eos_token_id": 3}, "is 3, but there are 3 tokens"),
    ("eot_token_id", {"eot_token_id": 9}, "is 9, but there are 3 tokens"),
    ("scores", {"model": "llama"}, "is missing"),
    ("scores", {"model": "llama", "scores": [0.0]}, "has 1 entries for 3"),
    ("add_bos_token", {"add_bos_token": True}, "true, but .* no bos_token_id"),
    ("add_eos_token", {"add_eos_token": True}, "true, but .* no eos_token_id"),
    ("add_bos_token", {"add_bos_token": 1}, "should be a bool, but is '1'"),
  ],
)  # fmt: skip
def test_errors_name_the_file_the_key_and_the_way_out(
  key, fields, message, tmp_path
):
  fields = GOOD | fields
  if fields.get("model") == "llama":
    fields = {k: v for k, v in fields.items() if k != "merges"}
  path = gguf_files.write(tmp_path / "m.gguf", **fields)
  with pytest.raises(
    ValueError, match=rf"m\.gguf: tokenizer\.ggml\.{key} .*{message}"
  ) as error:
    build_tokenizer(path)
  assert "tokenizer.json" in str(error.value)


def test_a_token_without_text_has_a_name(tmp_path):
  path = gguf_files.write(tmp_path / "m.gguf", ("a", "", "b", "ab"), **GOOD)
  vocabulary = Vocabulary(path)
  assert vocabulary.tokens == ["a", "[EMPTY_1]", "b", "ab"]
  assert build_tokenizer(path)[0]("bab").input_ids == [2, 3]


@pytest.mark.parametrize(
  ("ids", "ends"),
  [
    ({}, []),
    ({"eos": 2}, [2]),
    ({"eos": 2, "eot": 1, "eom": 0}, [2, 1, 0]),
    ({"eos": 1, "eot": 1, "eom": 0}, [1, 0]),
    ({"eos": 1, "eot": 0xFFFFFFFF}, [1]),
  ],
)
def test_tokens_that_end_a_response(ids, ends, tmp_path):
  fields = {f"{name}_token_id": id_ for name, id_ in ids.items()}
  path = gguf_files.write(tmp_path / "m.gguf", **GOOD, **fields)
  assert Vocabulary(path).end_ids() == ends


@pytest.mark.parametrize(
  ("templates", "found"),
  [
    ({}, None),
    ({"": TEMPLATE}, TEMPLATE),
    ({"": TEMPLATE, ".tool_use": "{{ 1 }}"}, TEMPLATE),
    ({".default": TEMPLATE, ".tool_use": "{{ 1 }}"}, TEMPLATE),
    ({".tool_use": TEMPLATE}, None),
  ],
)
def test_the_default_template_is_used(templates, found, tmp_path):
  fields = {f"tokenizer.chat_template{n}": t for n, t in templates.items()}
  path = gguf_files.write(tmp_path / "m.gguf", **GOOD, keys=fields)
  assert Vocabulary(path).chat_template() == found
  assert build_tokenizer(path)[0].chat_template == found

"""The token that tools recognise padding by: none that ends a conversation."""

import pytest

from perl_jax.data.text import tokenization as tokenization_lib
from tests.data.text import families
from tests.data.text.chat_templates import CHATML
from tests.data.text.families import FAMILIES, Family

QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def pads(directory, template=CHATML, special=QWEN, eos=None, **config):
  """Texts of the tokens to pad with, the best first."""
  config = {
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "add_bos_token": False,
  } | config
  family = Family(template, "bytes", special, config, eos, ())
  written = families.write(family, directory)
  return [t for _, t in tokenization_lib.load_tokenizer(written).pads]


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("llama2", "<unk>"),
    ("mistral2", "<unk>"),
    ("llama3", "<|eom_id|>"),  # it ends nothing there
    ("llama3.2", "<|begin_of_text|>"),
    ("gemma2", "<pad>"),
  ],
)
def test_a_pad_token_ends_no_response(name, expected, tmp_path):
  written = families.write(FAMILIES[name], tmp_path)
  found = tokenization_lib.load_tokenizer(written)
  id_, text = found.pads[0]
  assert text == expected and id_ not in found.stop_ids


def test_its_own_pad_token_comes_first_unless_it_ends_a_response(tmp_path):
  """Qwen2.5 pads with <|endoftext|>, which its policies may stop at."""
  eos = ("<|im_end|>", "<|endoftext|>")
  more = (*QWEN, "<|object_ref_start|>", "<|vision_pad|>", "<|box_end|>")
  own = {"pad_token": "<|endoftext|>"}
  found = pads(tmp_path / "a", special=more, eos=eos, **own)
  assert found[:2] == ["<|vision_pad|>", "<|object_ref_start|>"]
  # The line break ends a conversation, and no token of these.
  assert sorted(found[-2:]) == ["<|endoftext|>", "<|im_end|>"]
  found = pads(tmp_path / "b", special=more, eos="<|im_end|>", **own)
  assert found[0] == "<|endoftext|>"


@pytest.mark.parametrize("name", ["<|reserved_special_token_7|>", "<unused3>"])
def test_reserved_tokens_come_before_those_in_use(name, tmp_path):
  special = (*QWEN, "<s>", "<tool>", name)
  found = pads(tmp_path, special=special, bos_token="<s>")
  assert found[:2] == [name, "<|endoftext|>"]
  assert found.index("<tool>") < found.index("<s>") < len(found) - 1


def test_what_ends_a_conversation_is_never_a_pad_token(tmp_path):
  template = CHATML.replace("<|im_end|>\n", "<|im_end|>")
  only = ("<|im_start|>", "<|im_end|>")
  assert pads(tmp_path / "a", special=only) == ["<|im_start|>", "<|im_end|>"]
  assert pads(tmp_path / "b", template, only) == ["<|im_start|>"]
  assert pads(tmp_path / "c", None, ("<|im_end|>",)) == []

"""Whether a backbone is pretrained, told from a chain of workdirs."""

import json

import pytest

from perl_jax.interop import pretrained
from perl_jax.tasks.initial import manifest, origin
from tests.tasks import tiny

SOMEBODYS = {"kind": pretrained.HUGGING_FACE, "path": "there"}


def write(directory, base, tuning="lora", dtype="float32"):
  directory.mkdir()
  saved = {"base": base | {"dtype": dtype}, "tuning": tuning}
  (directory / manifest.MODEL_FILE).write_text(json.dumps(saved))
  return str(directory)


def of(init="", base="", role="policy"):
  task = {"policy": "rl", "reward": "reward"}[role]
  config = tiny.config(task, base=base)
  config[role].init = init
  return origin.backbone(config)


def test_without_anything_it_begins_at_random():
  assert of() == origin.defaults.Backbone(False, None)


def test_a_base_is_pretrained():
  assert of(base="model.gguf").pretrained


@pytest.mark.parametrize("role", ["policy", "reward"])
@pytest.mark.parametrize("theirs", [True, False])
def test_a_chain_of_stages_is_what_it_began_as(tmp_path, role, theirs):
  base = SOMEBODYS if theirs else {"kind": "random", "seed": 0}
  write(tmp_path / "sft", base, "full")
  above = {"kind": "workdir", "path": "../sft"}
  last = write(tmp_path / "next", above, dtype="int8")
  found = of(last, role=role)
  assert (found.pretrained, found.base_dtype) == (theirs, "int8")
  # What was trained whole is stored as the next stage likes.
  assert of(str(tmp_path / "sft"), role=role).base_dtype is None


def test_a_chain_that_goes_round_ends(tmp_path):
  write(tmp_path / "a", {"kind": "workdir", "path": "../b"})
  last = write(tmp_path / "b", {"kind": "workdir", "path": "../a"})
  assert not of(last).pretrained


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"base": 1}', "{}{"])
def test_what_cannot_be_read_is_left_to_the_command(tmp_path, text):
  (tmp_path / manifest.MODEL_FILE).write_text(text)
  assert not of(str(tmp_path)).pretrained
  assert not of(str(tmp_path / "missing")).pretrained


def test_a_directory_of_others_is_pretrained(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "llama"}')
  (tmp_path / "adapter").mkdir()
  (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
  assert of(str(tmp_path)).pretrained
  assert of(str(tmp_path / "adapter")).pretrained

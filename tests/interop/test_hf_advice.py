"""Errors about files, each with what it advises: doing that has to help."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from perl_jax.interop import hf_checkpoint, hf_files
from tests.interop.rewriting import shards, tensors_of
from tests.interop.tiny import load


def no_weights(directory):
  with pytest.raises(FileNotFoundError) as caught:
    load(directory)
  return str(caught.value)


def test_a_file_of_another_name_is_renamed(copy):
  directory = copy("llama2")
  other = (directory / hf_files.SINGLE).rename(
    directory / "model.fp16.safetensors"
  )
  message = no_weights(directory)
  assert f"{other.name}: rename that file to {hf_files.SINGLE}" in message
  other.rename(directory / hf_files.SINGLE)
  load(directory)


def test_an_index_of_a_variant_is_renamed(copy):
  directory = copy("llama2")
  shards(directory)
  index = directory / hf_files.INDEX
  other = index.rename(directory / "model.safetensors.index.fp16.json")
  message = no_weights(directory)
  assert f"{other.name}, a variant: rename that file to {index.name}" in message
  other.rename(index)
  load(directory)


def test_shards_need_their_index(copy):
  directory = copy("llama2")
  shards(directory)
  kept = (directory / hf_files.INDEX).rename(directory / "kept")
  message = no_weights(directory)
  assert "model-0.safetensors" in message
  assert f"Download or copy {hf_files.INDEX}" in message
  kept.rename(directory / hf_files.INDEX)
  load(directory)


def test_a_pointer_of_git_lfs_is_no_damaged_file(copy):
  directory = copy("llama2")
  (directory / hf_files.SINGLE).write_text(
    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
  )
  with pytest.raises(ValueError, match="git lfs pull"):
    load(directory)


@pytest.mark.parametrize("content", [b"", b"\x10"])
def test_an_empty_file_is_said_to_be_truncated(copy, content):
  directory = copy("llama2")
  (directory / hf_files.SINGLE).write_bytes(content)
  with pytest.raises(ValueError, match="truncated"):
    load(directory)


@pytest.mark.slow
def test_a_pickle_is_written_again_as_the_error_says(copy, tmp_path):
  torch = pytest.importorskip("torch", reason="makes a pickle")
  import transformers

  directory = copy("llama2")
  expected = load(directory)
  tensors = {
    n: torch.from_numpy(v.copy()) for n, v in tensors_of(directory).items()
  }
  torch.save(tensors, directory / "pytorch_model.bin")
  (directory / hf_files.SINGLE).unlink()
  message = no_weights(directory)
  assert "pickle" in message
  code = message[message.index("transformers.Auto") :].split(", and copy")[0]
  new = tmp_path / "new"
  exec(code, {"transformers": transformers, "NEW": str(new)})
  found = load(new)
  jax.tree.map(np.testing.assert_array_equal, found.frozen, expected.frozen)


def test_a_head_that_is_the_embedding_is_tied_as_the_error_says(copy):
  directory = copy("llama3")
  path = directory / "config.json"
  fields = json.loads(path.read_text())
  del fields["tie_word_embeddings"]  # the default of a Llama is false
  path.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match="set tie_word_embeddings to true"):
    load(directory)
  path.write_text(json.dumps(fields | {"tie_word_embeddings": True}))
  load(directory)


def test_a_folder_of_the_hubs_cache_names_its_snapshot(copy, tmp_path):
  directory = copy("llama2")
  cache = tmp_path / "models--org--name"
  shutil.copytree(directory, cache / "snapshots" / "0123abcd")
  message = no_weights(cache)
  given = message.rsplit(" Give ", 1)[1].removesuffix(".")
  assert given == str(cache / "snapshots" / "0123abcd")
  load(given)


def test_a_name_on_the_hub_is_to_be_downloaded():
  for given in ("org/name", pathlib.Path("org/name").absolute()):
    message = no_weights(given)
    assert "`hf download org/name --local-dir DIR`" in message


def test_the_gguf_file_beside_a_config_is_named(copy):
  directory = copy("llama2")
  (directory / hf_files.SINGLE).unlink()
  for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
    (directory / name).write_bytes(b"GGUF")
    assert f"give {directory / 'm-Q4_K_M.gguf'}" in no_weights(directory)
  assert "or another of its GGUF files" in no_weights(directory)


def test_the_checkpoints_of_a_trainer_are_named(copy, tmp_path):
  directory = copy("llama2")
  shutil.move(directory, tmp_path / "out" / "checkpoint-10")
  assert "below it: checkpoint-10." in no_weights(tmp_path / "out")
  load(tmp_path / "out" / "checkpoint-10")


@pytest.mark.parametrize("text", ["{", '{"a": 1, "a": 1, "model_type": "x"}'])
def test_a_broken_config_is_one_of_a_checkpoint(copy, text):
  """So that the error is about config.json, not about a workdir."""
  directory = copy("llama2")
  (directory / "config.json").write_text(text)
  assert hf_checkpoint.is_checkpoint(directory)
  with pytest.raises(ValueError, match=r"config\.json.*repair it"):
    load(directory)

"""Stages on a base that was read from files: found again by its content."""

import logging
import shutil
import types

import numpy as np
import pytest

from perl_jax import checkpoint, params, steps
from perl_jax.interop import peft
from perl_jax.tasks.initial import manifest, model, restore
from tests import toys
from tests.tasks.initial.test_adapter import (
  SPEC,
  edit,
  write_adapter,
  write_base,
)


def write_stage(workdir, start, init=""):
  """What an SFT or RL stage with LoRA leaves, without training."""
  workdir.mkdir()
  manifest.write_model(
    workdir,
    start,
    lora=SPEC,
    tuning="lora",
    trained=("policy",),
    init={"init": str(init), "checkpoint": "best"},
  )
  adapter, _ = params.partition(toys.random_params(start.config, SPEC), "lora")
  state = steps.TrainState({"policy": adapter}, (), np.int32(1))
  with checkpoint.Checkpointer(workdir, metric="m", mode="min") as saver:
    saver.save(1, state, {}, {"m": 0.0})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  root = tmp_path_factory.mktemp("moved")
  config = write_base(root / "base")
  start = model.checkpoint_start(root / "base", model.ReadOptions())
  write_stage(root / "stage", start)
  write_adapter(root / "adapter", config, "some/name-on-a-hub")
  start = restore.load(
    root / "adapter", "", "policy", "policy.init",
    options=model.ReadOptions(base=str(root / "base")),
  )  # fmt: skip
  write_stage(root / "continued", start, root / "adapter")
  return root


def load(workdir, base=""):
  options = model.ReadOptions(base=str(base))
  return restore.load(workdir, "best", "policy", "policy.init", options=options)


def anchor(workdir, policy, base=""):
  config = types.SimpleNamespace(
    policy=types.SimpleNamespace(init=str(workdir))
  )
  return restore.load_anchor(config, policy, model.ReadOptions(base=str(base)))


@pytest.fixture
def moved(written, tmp_path):
  """(stage, where its base is now); the base is not where it was."""
  (written / "base").rename(tmp_path / "elsewhere")
  yield written / "stage", tmp_path / "elsewhere"
  (tmp_path / "elsewhere").rename(written / "base")


def test_a_base_that_is_gone_is_given_by_config_base(moved, caplog):
  stage, base = moved
  with pytest.raises(ValueError, match=r"is gone.*--config\.base=PATH"):
    load(stage)
  with caplog.at_level(logging.INFO, logger="absl"):
    start = load(stage, base)
  assert start.source["path"] == str(base)
  assert f"its base is read from {base}" in caplog.text
  bare = anchor(stage, start, base)
  assert bare.role.frozen is start.role.frozen and bare.role.adapter is None
  assert bare.tokenizer == start.tokenizer == stage / "tokenizer"


def test_a_base_of_other_weights_is_refused(moved, tmp_path):
  stage, _ = moved
  write_base(tmp_path / "other", seed=1)
  with pytest.raises(ValueError, match="with fingerprint") as caught:
    load(stage, tmp_path / "other")
  assert f"{tmp_path / 'other'} now gives" in str(caught.value)


def test_another_config_base_does_not_hide_a_stage_s_own(written, tmp_path):
  """It may be there for the reward model."""
  write_base(tmp_path / "other", seed=1)
  start = load(written / "stage", tmp_path / "other")
  assert start.source["path"] == str(written / "base")


def test_a_copy_of_the_base_is_as_good(written, tmp_path):
  copy = shutil.copytree(written / "base", tmp_path / "copy")
  start = load(written / "stage", copy)
  assert start.source["path"] == str(copy)
  assert start.fingerprint == load(written / "stage").fingerprint


def test_the_anchor_of_a_stage_that_began_with_an_adapter(written):
  """Its config names no directory; the stage knows where the base was."""
  policy = load(written / "continued")
  found = anchor(written / "continued", policy)
  assert found.role.frozen is policy.role.frozen
  expected = peft.load_adapter(written / "adapter", policy.config)
  for path, leaf in params.flatten(found.role.adapter).items():
    np.testing.assert_array_equal(leaf, params.flatten(expected.adapter)[path])


def test_the_anchor_of_full_tuning_is_the_base_with_the_same_tokenizer(
  written, tmp_path
):
  """A policy whose whole tree was trained shares nothing with its anchor."""
  start = load(written / "stage")
  stage = shutil.copytree(written / "stage", tmp_path / "stage")
  tuned = model.Start(
    start.role,
    {"kind": "workdir", "path": str(stage), "dtype": "float32"},
    "another fingerprint",
    stage / "tokenizer",
  )
  edit(stage / manifest.MODEL_FILE, tuning="full")
  found = anchor(stage, tuned)
  assert found.fingerprint == start.fingerprint
  assert found.source["path"] == str(written / "base")
  assert found.tokenizer == stage / "tokenizer"
  assert found.role.adapter is None


def test_a_workdir_that_is_a_symbolic_link(tmp_path):
  """Written and read by its link, or where it really lies."""
  runs, disk = tmp_path / "runs", tmp_path / "large" / "disk"
  (runs / "sft").mkdir(parents=True)
  (disk / "rl").mkdir(parents=True)
  (runs / "rl").symlink_to(disk / "rl")
  by_link, by_place = "../sft", "../../../runs/sft"
  assert manifest.beside(runs / "rl", by_link) == runs / "sft"
  assert manifest.beside(runs / "rl", by_place) == runs / "sft"
  assert manifest.beside(disk / "rl", by_place) == runs / "sft"
  # Where nothing is, the error names what was meant.
  assert manifest.beside(runs / "rl", "../gone") == runs / "gone"
  assert manifest.beside(runs / "rl", str(runs / "sft")) == runs / "sft"


def test_the_anchor_of_a_workdir_that_is_a_symbolic_link(written, tmp_path):
  """The stage that it started from lies beside the link."""
  root = shutil.copytree(written, tmp_path / "root")
  (root / "large").mkdir()
  (root / "continued").rename(root / "large" / "continued")
  (root / "continued").symlink_to(root / "large" / "continued")
  policy = load(root / "continued", root / "base")
  found = anchor(root / "continued", policy, root / "base")
  assert found.role.trainable


def test_files_that_nobody_may_write(tmp_path):
  """As in a directory that is shared: their mode is not copied."""
  source, target = tmp_path / "base", tmp_path / "run" / "tokenizer"
  source.mkdir()
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (source / name).write_text("{}")
    (source / name).chmod(0o444)
  for text in ("{}", '{"a": 1}'):  # and once more, when the run goes on
    (source / "tokenizer.json").chmod(0o644)
    (source / "tokenizer.json").write_text(text)
    (source / "tokenizer.json").chmod(0o444)
    manifest.copy_tokenizer(source, target)
    assert (target / "tokenizer.json").read_text() == text
  for path in target.iterdir():
    assert path.stat().st_mode & 0o200, path

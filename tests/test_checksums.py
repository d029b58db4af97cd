"""Damaged files of a checkpoint: each is told, and none is read from."""

import shutil
import subprocess

import pytest

from perl_jax import checkpoint, checksums
from tests.checkpoint import test_saving as cases


def damage(path, how):
  """Cuts, empties or deletes a file, or flips one bit in its middle."""
  content = path.read_bytes()
  if how == "deleted":
    path.unlink()
    return
  middle = len(content) // 2
  flipped = content[middle] ^ 1 if content else 0
  path.write_bytes(
    {
      "cut": content[:middle],
      "emptied": b"",
      "flipped": content[:middle] + bytes([flipped]) + content[middle + 1 :],
    }[how]
  )


def files_of(directory):
  """Files of a checkpoint that have content, by their path in it."""
  # Orbax adds a time to the first, and knows a checkpoint without the second.
  last = ("_CHECKPOINT_METADATA", "commit_success.txt")
  return [
    path.relative_to(directory)
    for path in sorted(directory.rglob("*"))
    if path.is_file() and path.name not in last and path.stat().st_size
  ]


@pytest.mark.parametrize("how", ["cut", "emptied", "deleted", "flipped"])
def test_damage_is_told_and_the_one_before_is_used(tmp_path, how, caplog):
  """Each file of the newest checkpoint in turn; none goes unnoticed."""
  cases.write(tmp_path / "whole", {1: 0.5, 2: 0.4})
  names = files_of(tmp_path / "whole" / "checkpoints" / "2")
  assert {p.parts[0] for p in names} >= {"trainable", "optimizer", "meta"}
  # One file of each kind: arrays lie in many, under random names.
  names = list({(p.parts[0], p.parent.name): p for p in names}.values())
  for number, name in enumerate(names):
    if name.name == "sha256.txt" and how == "deleted":
      continue  # the next test
    workdir = tmp_path / str(number)
    shutil.copytree(tmp_path / "whole", workdir)
    damage(workdir / "checkpoints" / "2" / name, how)
    with pytest.raises(ValueError, match="checkpoints/2 is damaged") as caught:
      checkpoint.load_trainable(workdir, "last", cases.reward_role()[0])
    # A digit that flips in the list speaks of the file on that line.
    told = "" if name.name == "sha256.txt" else str(name)
    assert told in str(caught.value)
    assert "run the stage's command again" in str(caught.value)
    caplog.clear()
    with checkpoint.Checkpointer(workdir, metric="m", mode="max") as saver:
      resumed = saver.restore(cases.state(0))
    cases.same(resumed.state.trainable, cases.state(1).trainable)
    assert f"step 2 is damaged: {workdir}/checkpoints/2/{told}" in caplog.text
    assert cases.kept(workdir) == [1]
    assert (workdir / "damaged" / "2").is_dir()


def test_a_run_saves_again_what_was_damaged(tmp_path):
  cases.write(tmp_path, {1: 0.5, 2: 0.4})
  damage(tmp_path / "checkpoints" / "2" / "meta" / "metadata", "cut")
  cases.write(tmp_path, {2: 0.1})
  trainable, _ = cases.reward_role()
  cases.same(
    checkpoint.load_trainable(tmp_path, "last", trainable),
    cases.state(2).trainable,
  )


def test_a_checkpoint_without_checksums_is_said_to_have_none(tmp_path, caplog):
  cases.write(tmp_path, {1: 0.5})
  (tmp_path / "checkpoints" / "1" / "sha256.txt").unlink()
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    assert int(saver.restore(cases.state(0)).state.step) == 1
  assert "step 1 has no sha256.txt" in caplog.text


def test_nothing_whole_is_left(tmp_path):
  cases.write(tmp_path, {1: 0.5, 2: 0.4})
  for step in (1, 2):
    damage(tmp_path / "checkpoints" / str(step) / "metrics/metrics", "flipped")
  before = cases.kept(tmp_path)
  with pytest.raises(ValueError, match=r"All checkpoints .*1/metrics.*2/metri"):
    checkpoint.Checkpointer(tmp_path, metric="m", mode="max")
  assert cases.kept(tmp_path) == before


def test_the_only_one_that_is_kept(tmp_path):
  """As with save.keep=1 where the newest is the best: both ways out work."""
  fields = {"metric": "m", "mode": "max", "keep": 1}
  with checkpoint.Checkpointer(tmp_path, **fields) as saver:
    for step in (1, 2):
      saver.save(step, cases.state(step), {}, {"m": float(step)})
  assert cases.kept(tmp_path) == [2]
  path = tmp_path / "checkpoints" / "2" / "meta" / "metadata"
  whole = path.read_bytes()
  damage(path, "flipped")
  with pytest.raises(
    ValueError, match=r"All checkpoints .*2/meta/metadata is "
  ):
    checkpoint.Checkpointer(tmp_path, **fields)
  match = rf"2/meta/metadata is .* no other checkpoint .* remove {tmp_path} and"
  with pytest.raises(ValueError, match=match):
    checkpoint.load_trainable(tmp_path, "last", cases.reward_role()[0])
  path.write_bytes(whole)
  with checkpoint.Checkpointer(tmp_path, **fields) as saver:
    cases.same(saver.restore(cases.state(0)).state, cases.state(2))
  shutil.rmtree(tmp_path)
  with checkpoint.Checkpointer(tmp_path, **fields) as saver:
    assert saver.restore(cases.state(0)) is None


def test_names_in_any_script(tmp_path):
  (tmp_path / "tokenizer_\u8bf4\u660e.txt").write_text("x")
  checksums.write(tmp_path, lambda path: True)
  assert checksums.fault(tmp_path) is None
  (tmp_path / "tokenizer_\u8bf4\u660e.txt").write_text("y")
  assert "\u8bf4\u660e" in checksums.fault(tmp_path)


def test_the_list_is_what_sha256sum_checks(tmp_path):
  cases.write(tmp_path, {1: 0.5})
  directory = tmp_path / "checkpoints" / "1"
  done = subprocess.run(
    ["sha256sum", "--check", "--strict", "sha256.txt"],
    cwd=directory,
    capture_output=True,
    text=True,
    check=True,
  )
  listed = {line.split(": ")[0] for line in done.stdout.splitlines()}
  assert listed == {
    str(name) for name in files_of(directory) if name.name != "sha256.txt"
  }

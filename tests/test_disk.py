"""A disk that is full or read-only: one sentence, and nothing half-written."""

import contextlib
import errno
import logging
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import export
from perl_jax import checkpoint, disk, files, main, metrics, steps, tasks
from perl_jax.interop import peft
from perl_jax.reporting import events
from perl_jax.tasks import evaluate, report
from perl_jax.tasks.training import standing
from tests import small_disk, test_main
from tests.tasks import tiny
from tests.tasks.initial import test_adapter as cases

ENOSPC = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
# As TensorStore, and libraries in Rust such as safetensors, say it.
TEXTS = (
  'RESOURCE_EXHAUSTED: Error writing local file "/x/_sharding.__lock": Failed'
  " to write 91 bytes: No space left on device [os_error_code='28']",
  "Error while serializing: I/O error: No space left on device (os error 28)",
)


@pytest.mark.parametrize("error", [ENOSPC, *map(ValueError, TEXTS)])
def test_a_refusal_is_known_whoever_met_it(error):
  assert disk.refusal(error) == errno.ENOSPC
  try:
    raise RuntimeError("a thread has failed") from error
  except RuntimeError as outer:
    assert disk.refusal(outer) == errno.ENOSPC
    assert disk.explain(outer) is None
  assert disk.refusal(ValueError("28 rows are (os error 2) short")) is None
  assert disk.refusal(FileNotFoundError(errno.ENOENT, "gone")) is None


def test_what_where_and_how_much_is_missing(tmp_path, monkeypatch):
  usage = disk.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    disk.shutil, "disk_usage", lambda path: usage._replace(free=3 * 2**20)
  )
  path = tmp_path / "not" / "yet"
  with (
    pytest.raises(disk.CannotWrite) as caught,
    disk.writing("the export", path, 5 * 2**20),
  ):
    raise ENOSPC
  message = str(caught.value)
  assert message.startswith(
    f"the export cannot be written to {tmp_path}/not/yet: No space left on"
    " device (3.00 MiB are free there, 5.00 MiB are needed, and so 2.00 MiB are"
    " missing)."
  )
  disk.require_room("x", tmp_path, 3 * 2**20)
  with pytest.raises(
    disk.CannotWrite, match=r"x cannot .* 1.00 MiB are missing"
  ):
    disk.require_room("x", tmp_path, 4 * 2**20)
  with (
    pytest.raises(disk.CannotWrite) as caught,
    disk.writing("the export", tmp_path, 5),
  ):
    raise PermissionError(errno.EACCES, "no", str(tmp_path))
  assert str(caught.value) == (
    f"the export cannot be written to {tmp_path}: Permission denied. Give"
    " another path, or the permission to write there."
  )


def test_bugs_are_left_as_they_are(tmp_path):
  with pytest.raises(KeyError), disk.writing("x", tmp_path):
    raise KeyError("a bug")


def test_a_file_where_a_directory_should_be(tmp_path):
  (tmp_path / "file").write_text("mine")
  path = tmp_path / "file" / "summary.json"
  with pytest.raises(disk.CannotWrite, match=r"summary.json .*Not a directory"):
    files.write_json(path, {})
  assert (tmp_path / "file").read_text() == "mine"


def test_full_disk_leaves_files_as_they_were(tmp_path):
  """JSON files and lines: all of it or nothing; no temporary file remains."""
  with small_disk.mounted(tmp_path / "disk", "64k") as directory:
    files.write_json(directory / "a.json", {"a": 1})
    before = (directory / "a.json").read_bytes()
    with pytest.raises(
      disk.CannotWrite, match=r"a.json cannot .*MiB are missing"
    ):
      files.write_json(directory / "a.json", {"a": "x" * 100_000})
    assert (directory / "a.json").read_bytes() == before
    with metrics.Writer(directory, total_steps=2, console=None) as writer:
      writer.write(1, {"loss": 1.0})
      writer.samples(1, [{"response": "yes"}])
      lines = (directory / "samples.jsonl").read_bytes()
      with pytest.raises(disk.CannotWrite, match=r"samples.jsonl cannot"):
        writer.samples(2, [{"response": "x" * 100_000}])
      assert (directory / "samples.jsonl").read_bytes() == lines
    assert not list(directory.glob(".*"))


@contextlib.contextmanager
def nearly_full(directory, left):
  """A small file system with so many bytes left."""
  with small_disk.mounted(directory, "1m") as place:
    (place / "filler").write_bytes(b"x" * (disk.free_bytes(place) - left))
    yield place


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_full_disk_has_no_room_for_events(tmp_path):
  """Of which some may be half-written: TensorBoard reads up to there."""
  with nearly_full(tmp_path / "disk", 16_384) as directory:
    writer = events.Events(directory / "tensorboard", 0)
    with pytest.raises(
      disk.CannotWrite, match=r"^TensorBoard events cannot .*"
    ):
      for step in range(1000):
        writer.write(step, {"loss": 1.0})
    assert step > 10
    with pytest.raises(
      disk.CannotWrite, match=r"^TensorBoard events cannot .*"
    ):
      writer.close()
    (directory / "filler").write_bytes(b"")
    writer.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """What is exported, by format: models on disk, of transformers and PEFT."""
  root = tmp_path_factory.mktemp("exported")
  base, adapter = root / "base", root / "adapter"
  config = cases.write_base(base)
  cases.write_adapter(adapter, config, str(base))
  return {"adapter": adapter, "merged": base, "gguf": adapter}


def assert_no_part_of_an_export(tmp_path, fields, *rooms):
  """Exports with room for so many bytes: one line, and nothing remains."""
  wanted = tiny.override(export.get_config(), fields)
  for left in rooms:
    with nearly_full(tmp_path / f"disk{left}", left) as directory:
      with pytest.raises(disk.CannotWrite, match="cannot be written to") as e:
        tasks.run(wanted, directory / "out")
      assert "MiB are free there" in str(e.value) and "\n" not in str(e.value)
      assert names(directory) == ["filler"]


@pytest.mark.parametrize("format_", ["adapter", "merged", "gguf"])
def test_full_disk_leaves_no_part_of_an_export(tmp_path, exported, format_):
  """What there is room for at first is removed again."""
  if format_ == "gguf":
    pytest.importorskip("gguf", reason="needs the package gguf")
  fields = {"init": str(exported[format_]), "format": format_}
  assert_no_part_of_an_export(tmp_path, fields, 0, 8192)


@pytest.mark.parametrize("left", [0, 8192, 40_960, 160_000])
def test_full_disk_leaves_no_part_of_a_whole_gguf_model(tmp_path, left):
  """Neither of the model, nor of the adapter that is written before it."""
  pytest.importorskip("gguf", reason="needs the package gguf")
  from tests.interop.gguf import models, test_merged

  base, adapter = tmp_path / "base.gguf", tmp_path / "adapter"
  role = test_merged.policy("qwen3_tiny", models.write(base, "qwen3_tiny"))
  adapter.mkdir()
  peft.save_adapter(
    adapter, role.config, role.lora, role.adapter, base=str(base)
  )
  fields = {"init": str(adapter), "format": "gguf", "gguf_model": "f16"}
  assert_no_part_of_an_export(tmp_path, fields, left)


def test_full_disk_leaves_no_part_of_a_report(tmp_path):
  with nearly_full(tmp_path / "disk", 8192) as directory:
    files.write_json(directory / "summary.json", {"sft.gold": 0.5})
    with pytest.raises(disk.CannotWrite, match=r"^report.html cannot be"):
      report.write_report(directory)
    assert names(directory) == ["filler", "summary.json"]
    (directory / "filler").unlink()
    report.write_report(directory)
    assert names(directory) == ["report.html", "summary.json"]


@pytest.mark.parametrize("large", ["samples.jsonl", "scores.jsonl"])
def test_full_disk_leaves_no_part_of_an_evaluation(
  tmp_path, monkeypatch, large
):
  """Neither of a new one, nor of the one before that it would replace."""
  rows = [{"prompt": "x" * 1000, "id": str(i)} for i in range(100)]
  of = {name: rows if large == name else rows[:1] for name in SHOWN}
  read = evaluate.Read({}, {}, object(), object(), standing.Standing({}, {}))
  read.starts.update(policy=Start(), reward=Start())
  monkeypatch.setattr(evaluate, "read", lambda *_: read)
  monkeypatch.setattr(evaluate.initial_roles, "place", lambda *_: {"reward": 0})
  monkeypatch.setattr(
    evaluate, "evaluate_reward", lambda *_: ({"n": 1}, of["scores.jsonl"])
  )
  monkeypatch.setattr(
    evaluate, "evaluate_policy", lambda *_: ({"n": 1}, of["samples.jsonl"])
  )
  config = tiny.config("evaluate", policy__init="a", eval__samples=300)
  with nearly_full(tmp_path / "disk", 65_536) as directory:
    for _ in range(2):
      with pytest.raises(disk.CannotWrite, match=f"^{large} cannot be written"):
        tasks.run(config, directory / "run")
      assert names(directory) == ["filler"]
    (directory / "filler").unlink()
    tasks.run(config, directory / "run")
    assert {"summary.json", *SHOWN} <= set(names(directory / "run"))
    room = disk.free_bytes(directory) - 65_536
    (directory / "filler").write_bytes(b"x" * room)
    monkeypatch.setattr(evaluate.again, "summary_of", lambda *_: None)
    of[large] = 3 * rows
    with pytest.raises(disk.CannotWrite, match=f"^{large} cannot be written"):
      tasks.run(config, directory / "run")
    # It is not taken for the result of what is half-written beside it.
    assert "summary.json" not in names(directory / "run")


SHOWN = ("samples.jsonl", "scores.jsonl")


class Start:
  role = None

  def load_tokenizer(self):
    return None


def state(step):
  weights = jax.random.normal(jax.random.key(step), (100_000,))
  return steps.TrainState({"policy": {"w": weights}}, (), jnp.int32(step))


@pytest.mark.parametrize("measured", [True, False])
def test_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, measured):
  """Seen before Orbax writes, and by its own threads where it is not."""
  with small_disk.mounted(tmp_path / "disk", "1m") as directory:
    if not measured:
      monkeypatch.setattr(disk, "require_room", lambda *_: None)
    with (
      pytest.raises(disk.CannotWrite) as caught,
      checkpoint.Checkpointer(directory, metric="m", mode="min") as saver,
    ):
      for step in (1, 2, 3):
        saver.save(step, state(step), {}, {"m": 1.0})
    message = str(caught.value)
    assert message.startswith("the checkpoint of step 3 cannot be written to")
    assert "MiB are missing" in message and "\n" not in message
    kept = sorted(p.name for p in (directory / "checkpoints").iterdir())
    assert kept == ["1", "2"]
    with checkpoint.Checkpointer(directory, metric="m", mode="min") as saver:
      found = saver.restore(state(0))
    np.testing.assert_array_equal(
      found.state.trainable["policy"]["w"], state(2).trainable["policy"]["w"]
    )


def test_full_disk_is_seen_before_the_next_checkpoint(tmp_path, monkeypatch):
  """The loop asks at each step for what has failed in the background."""
  monkeypatch.setattr(disk, "require_room", lambda *_: None)
  with (
    small_disk.mounted(tmp_path / "disk", "256k") as directory,
    pytest.raises(disk.CannotWrite, match=r"^the checkpoint of step 1 cannot"),
    checkpoint.Checkpointer(directory, metric="m", mode="min") as saver,
  ):
    saver.save(1, state(1), {}, {"m": 1.0})
    for _ in range(600):
      saver.check()
      time.sleep(0.1)
    monkeypatch.setattr(saver, "close", lambda: None)  # which would raise it


def test_libraries_do_not_say_it_again():
  def record(text, error=None):
    exc_info = (type(error), error, None) if error else None
    return logging.LogRecord(
      "absl", logging.ERROR, "orbax.py", 1, text, None, exc_info
    )

  assert main.is_news(record("a checkpoint is gone"))
  assert main.is_news(record("failed", KeyError("a bug")))
  assert not main.is_news(record("a thread has failed", ENOSPC))
  assert not any(main.is_news(record(text)) for text in TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file/run", "/sys/perl_jax/run"])
def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path, place):
  if place.startswith("/sys") and sys.platform != "linux":
    pytest.skip("needs the sysfs of Linux")
  (tmp_path / "file").write_text("mine")
  found = test_main.start(
    "--config=configs/sft.py", f"--workdir={tmp_path / place}"
  )
  _, said = found.communicate(timeout=300)
  assert found.returncode == 1
  assert "Traceback" not in said
  (line,) = [x for x in said.splitlines() if x.startswith("error: ")]
  assert line.startswith(
    f"error: the run cannot be written to {tmp_path / place}"
  )


@pytest.mark.slow
def test_a_write_that_threads_of_orbax_are_refused_is_one_line(tmp_path):
  """By a limit for the size of a file, which nobody can see before."""
  resource = pytest.importorskip("resource", reason="needs limits of POSIX")
  if not hasattr(resource, "prlimit"):
    pytest.skip("needs to limit another process, as Linux can")
  fields = tiny.fields("sft") | {"eval.rows": 0}
  found = test_main.start(
    "--config=configs/sft.py",
    "--compilation_cache=off",
    f"--workdir={tmp_path / 'run'}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  )
  resource.prlimit(found.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
  _, said = found.communicate(timeout=500)
  assert found.returncode == 1
  assert "Traceback" not in said and said.count("File too large") == 1, said
  assert said.splitlines()[-1].startswith("error: the checkpoint of step ")
  assert not list((tmp_path / "run" / "checkpoints").iterdir())

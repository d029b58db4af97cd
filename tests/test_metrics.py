"""What the writer leaves on disk, also after a kill, and the headline."""

import io
import json
import math
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from perl_jax import files, metrics


def plain_console():
  return Console(file=io.StringIO(), width=60)


def run(workdir, steps, resume_step=0, **options):
  options.setdefault("console", plain_console())
  with metrics.Writer(
    workdir, total_steps=10, resume_step=resume_step, **options
  ) as writer:
    for step in steps:
      writer.write(step, {"train/loss": 1 / (step + 1), "train/accuracy": 0.5})
      if step % 3 == 0:
        writer.samples(step, [{"prompt": f"p{step}"}, {"prompt": "q"}])
  return workdir


def one_step(workdir):
  return metrics.Writer(workdir, total_steps=1, console=plain_console())


def events(workdir):
  """Every event below workdir in the order in which TensorBoard reads them."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def visible_scalars(workdir):
  """(tag, step, value) that TensorBoard shows: restarts hide what they redo."""
  shown = []
  for event in events(workdir):
    if event.session_log.status == event_pb2.SessionLog.START:
      shown = [scalar for scalar in shown if scalar[1] < event.step]
    for value in event.summary.value:
      shown.append((value.tag, event.step, value.simple_value))
  return shown


def test_lines_and_events(tmp_path):
  run(tmp_path, range(4))
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert lines[0] == '{"step": 0, "train/loss": 1.0, "train/accuracy": 0.5}'
  assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
  rows = files.read_jsonl(tmp_path / "samples.jsonl")
  assert rows[2] == {"step": 3, "prompt": "p3"}
  assert visible_scalars(tmp_path) == [
    (tag, step, pytest.approx(value))
    for step in range(4)
    for tag, value in [("train/loss", 1 / (step + 1)), ("train/accuracy", 0.5)]
  ]


def test_scalars_of_every_kind_and_non_finite_ones(tmp_path):
  import jax.numpy as jnp

  with one_step(tmp_path) as writer:
    writer.write(
      np.int64(0),
      {
        "float32": np.float32(0.5),
        "int": np.int32(3),
        "jax": jnp.float32(0.25),
        "bfloat16": jnp.bfloat16(1.5),
        "nan": float("nan"),
        "inf": jnp.inf,
        "minus": np.float32(-np.inf),
      },
    )
  text = (tmp_path / "metrics.jsonl").read_text()
  row = json.loads(text, parse_constant=pytest.fail)
  assert row == {
    "step": 0,
    "float32": 0.5,
    "int": 3,
    "jax": 0.25,
    "bfloat16": 1.5,
    "nan": "nan",
    "inf": "inf",
    "minus": "-inf",
  }
  assert float(row["minus"]) == -math.inf


def test_every_write_is_on_disk_at_once(tmp_path):
  """A kill -9 right after a write loses none of it."""
  code = (
    "import os, signal, sys\n"
    "from perl_jax import metrics\n"
    "writer = metrics.Writer(sys.argv[1], total_steps=9).__enter__()\n"
    "writer.write(0, {'loss': 1.0})\n"
    "writer.samples(0, [{'prompt': 'p'}])\n"
    "os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)],
    env=environment,
    capture_output=True,
    check=False,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert files.read_jsonl(tmp_path / "metrics.jsonl") == [
    {"step": 0, "loss": 1.0}
  ]
  assert len(files.read_jsonl(tmp_path / "samples.jsonl")) == 1
  assert visible_scalars(tmp_path) == [("loss", 0, 1.0)]


def test_a_resumed_run_writes_the_same_bytes(tmp_path):
  whole = run(tmp_path / "whole", range(8))
  killed = run(tmp_path / "killed", range(6))
  for name in ("metrics.jsonl", "samples.jsonl"):
    with (killed / name).open("a") as file:
      file.write('{"step": 6, "train/lo')
  run(killed, range(4, 8), resume_step=4)
  for name in ("metrics.jsonl", "samples.jsonl"):
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
  assert visible_scalars(killed) == visible_scalars(whole)
  assert len(events(killed)) > len(events(whole))  # nothing was overwritten


def test_a_complete_last_line_without_a_line_break_is_kept(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}')
  run(tmp_path, [2], resume_step=2)
  rows = files.read_jsonl(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1, 2]


def test_a_fresh_run_starts_from_empty_files(tmp_path):
  run(tmp_path, range(5))
  run(tmp_path, range(2))
  rows = files.read_jsonl(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1]
  assert {step for _, step, _ in visible_scalars(tmp_path)} == {0, 1}


def test_resume_refuses_damaged_files_and_leaves_them(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a JSON object"):
    run(tmp_path, [3], resume_step=3)
  path.write_text('{"loss": 0}\n')
  with pytest.raises(ValueError, match="a row has no step"):
    run(tmp_path, [3], resume_step=3)
  assert path.read_text() == '{"loss": 0}\n'


def test_other_processes_do_nothing(tmp_path):
  console = plain_console()
  run(tmp_path / "x", range(3), enabled=False, console=console)
  with metrics.Writer(
    tmp_path / "x", total_steps=1, enabled=False, console=console
  ) as writer:
    writer.summary({"a": 1})
    writer.tick(0)
  assert not (tmp_path / "x").exists()
  assert console.file.getvalue() == ""


def test_summary_is_replaced_whole(tmp_path):
  with one_step(tmp_path) as writer:
    writer.summary({"rl.kl_at_step_0": np.float32(0), "path": tmp_path})
    with pytest.raises(ValueError, match="cannot be written"):
      writer.summary({"rl.kl": object()})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"rl.kl_at_step_0": 0.0, "path": str(tmp_path)}
    writer.summary({"rl.kl": math.nan, "curve": np.arange(2)})
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary == {"rl.kl": "nan", "curve": [0, 1]}
  assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"loss": np.zeros(2)}, r"metric 'loss' must be a scalar.*\(2,\)"),
    ({"step": 1.0}, "not called 'step'"),
    ({"loss": "low"}, "'low', not a number"),
    ({"loss": None}, "None, not a number"),
  ],
)
def test_bad_metrics_are_named_and_not_written(tmp_path, row, message):
  with one_step(tmp_path) as writer, pytest.raises(ValueError, match=message):
    writer.write(0, row)
  assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_sample_of_another_step_is_refused(tmp_path):
  message = "step 2 says step 1"
  with one_step(tmp_path) as writer, pytest.raises(ValueError, match=message):
    writer.samples(2, [{"step": 1}])


def test_writing_outside_the_block_is_refused(tmp_path):
  writer = metrics.Writer(tmp_path, total_steps=1)
  with pytest.raises(ValueError, match="inside its `with` block"):
    writer.write(0, {})

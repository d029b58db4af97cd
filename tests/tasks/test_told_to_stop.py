"""SIGTERM to a command that trains nothing: one line, and nothing is left."""

import signal
import time

import pytest

from perl_jax import files
from tests import test_main
from tests.tasks import tiny

pytestmark = pytest.mark.slow

ROWS = [
  {"prompt": f"{i} mochas?", "chosen": "Yes.", "rejected": "A stone."}
  for i in range(16)
]
COMMANDS = {
  "evaluate": ("rl", "reward"),
  "judge": ("rl",),
  "generate": ("rl",),
  "score": ("reward",),
}


@pytest.mark.parametrize("seconds", [0.0, 2.0])
@pytest.mark.parametrize("task", COMMANDS)
def test_one_line_and_nothing_is_left(finished, tmp_path, task, seconds):
  """Told as soon as it has the workdir, and while it computes."""
  workdir, data = tmp_path / "run", tmp_path / "rows.jsonl"
  files.write_jsonl(data, ROWS)
  fields = tiny.fields(task)
  for name in COMMANDS[task]:
    role = "policy" if name == "rl" else name
    fields[f"{role}.init"] = finished / name
  config = f"configs/{task}.py"
  if task in ("generate", "score"):
    config, fields["data.path"] = f"{config}:jsonl", data
    fields = {k: v for k, v in fields.items() if "data.options" not in k}
  process = test_main.start(
    f"--config={config}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
    f"--workdir={workdir}",
    interrupted=True,
  )
  end = time.monotonic() + 300
  while not (workdir / "lock.json").exists() and time.monotonic() < end:
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  time.sleep(seconds)
  process.send_signal(signal.SIGTERM)
  _, said = process.communicate(timeout=300)
  assert process.returncode == 75, said
  assert "Traceback" not in said and "Exception ignored" not in said
  (line,) = [x for x in said.splitlines() if x.startswith("Stopped by")]
  assert line.startswith("Stopped by SIGTERM, nothing had to be saved. To go ")
  assert not workdir.exists()

"""The first page, followed on a machine with nothing."""

import subprocess
import sys

from tests import documents


def test_getting_started_word_by_word(tmp_path):
  log = tmp_path / "log"
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.from_nothing", f"--log={log}"],
    cwd=documents.ROOT,
    capture_output=True,
    text=True,
    timeout=7200,
  )
  assert done.returncode == 0, f"{log.read_text()}\n{done.stderr[-4000:]}"
  assert "$ make quickstart" in log.read_text()

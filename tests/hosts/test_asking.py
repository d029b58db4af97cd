"""What a judge says, or that it fails, is known to both of two processes."""

import json
import os
import subprocess
import sys

import pytest

from tests.hosts import group

pytestmark = pytest.mark.slow


def test_process_0_asks_and_both_know(tmp_path):
  port = group.free_port()
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": group.ONE_DEVICE,
  }
  started = [
    subprocess.Popen(
      [sys.executable, "-m", "tests.hosts.asking_side", str(port), str(i)],
      cwd=group.ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  found = []
  try:
    for process in started:
      out, _ = process.communicate(timeout=group.DEADLINE)
      assert process.returncode == 0
      found.append(json.loads(out.splitlines()[-1]))
  finally:
    for process in started:
      process.kill()
  for first, silent, equal, failed, after in found:
    assert first == [["1.0", ""], ["1.0", ""]]
    assert silent == [["1.0", ""], ["nan", "refused"]]
    assert equal == [["0.0", ""], ["0.0", ""]]
    assert "nobody is at home" in failed
    assert after == 1.0

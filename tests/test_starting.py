"""How a command ends: after everything that waits for its end, as it is."""

import subprocess
import sys

import pytest

COMMAND = """
import os, sys, threading, time
from perl_jax import starting
import atexit

class Late:
  def __del__(self):
    os.abort()  # as XLA does whose program stands on what is gone

sys.modules["late"] = Late()
atexit.register(print, "a goodbye")
threading.Thread(target=lambda: (time.sleep(0.1), print("a thread"))).start()
{last}
sys.exit({code!r})
"""


@pytest.mark.parametrize("code, status", [(75, 75), ("error: so", 1)])
def test_what_is_abandoned_does_not_change_the_status(code, status):
  def ends(last):
    return subprocess.run(
      [sys.executable, "-c", COMMAND.format(last=last, code=code)],
      capture_output=True,
      text=True,
      timeout=60,
    )

  ended = ends(f"starting.leave_last({status})")
  assert ended.returncode == status, ended.stderr
  assert ended.stdout.splitlines() == ["a thread", "a goodbye"]
  assert ended.stderr.strip() == (code if isinstance(code, str) else "")
  assert ends("").returncode not in (0, status)  # it would have

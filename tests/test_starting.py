"""How a command was started, and ends after everything that waits for it."""

import shlex
import signal
import subprocess
import sys

import pytest

from perl_jax import starting

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


BUSY = """
import os, signal, threading
from perl_jax import starting

starting.listen()
_, write = os.pipe()
os.set_blocking(write, False)
signal.set_wakeup_fd(write)
with starting.heard_while_busy():
  pass
assert signal.set_wakeup_fd(-1) == write
with starting.heard_while_busy():
  # It calls no handler, as C++ does not.
  signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{name}])
  print("begun", flush=True)
  never = threading.Lock()
  never.acquire()
  never.acquire()
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_heard_while_no_handler_is_called(name):
  with subprocess.Popen(
    [sys.executable, "-c", BUSY.format(name=name)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == "begun\n", process.stderr.read()
    process.send_signal(getattr(signal, name))
    try:
      _, said = process.communicate(timeout=60)
    finally:
      process.kill()
  assert process.returncode == starting.STATUS
  assert said.startswith(f"Stopped by {name} outside a run")


@pytest.mark.parametrize(
  ("program", "typed"),
  [
    ("/home/me/.local/bin/perl_jax", "perl_jax"),
    ("bin/perl_jax.exe", "perl_jax"),
    ("/home/me/perl_jax/perl_jax/main.py", "python -m perl_jax.main"),
    ("/home/me/perl_jax/perl_jax/__main__.py", "python -m perl_jax.main"),
    ("-c", "python -m perl_jax.main"),
  ],
)
def test_a_command_is_named_as_it_was_typed(monkeypatch, program, typed):
  """`pipx` and `uv tool` give the command alone, and no such module."""
  given = ["--config=a b.py", "--workdir=x"]
  monkeypatch.setattr("sys.argv", [program, *given])
  command = starting.command_line()
  assert command == f"{typed} '--config=a b.py' --workdir=x"
  assert shlex.split(command)[-2:] == given

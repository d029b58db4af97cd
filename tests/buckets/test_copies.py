"""What a stop leaves of the transfers that are under way."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from perl_jax import buckets
from perl_jax.buckets import copies
from tests.buckets import fixtures

PROGRAM = """
import os, signal, threading
from perl_jax.buckets import copies

class Stopped(BaseException):
  pass

def stop(*_):
  raise Stopped

def transfer(number):
  begun.append(number)
  if number == 7:
    os.kill(os.getpid(), signal.SIGTERM)
  threading.Event().wait()

begun = []
signal.signal(signal.SIGTERM, stop)
try:
  copies.each(transfer, range(40))
except Stopped:
  print("stopped", max(begun), flush=True)
"""


def test_a_stop_waits_for_no_transfer():
  """Nor does the process, as it ends."""
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.stdout == "stopped 7\n", done.stderr
  assert done.returncode == 0


def test_the_first_error_is_raised_and_nothing_begins_after_it():
  begun, failing, wrong = [], [], threading.Event()

  def transfer(number):
    begun.append(number)
    if number == 3:
      failing.append(threading.current_thread())
      wrong.set()
      raise ValueError("number 3")
    assert wrong.wait(60)
    failing[0].join()

  with pytest.raises(ValueError, match="number 3"):
    copies.each(transfer, range(1000))
  assert set(begun) <= {*range(8)}
  copies.each(transfer, [])


class Stopped(BaseException):
  pass


@pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True)
def test_a_copy_that_is_stopped_leaves_no_half_of_a_file(
  address, store, monkeypatch
):
  store.write("model", b"weights")
  over = threading.Event()

  def download(self, name, path):
    path.write_bytes(b"wei")
    os.kill(os.getpid(), signal.SIGTERM)
    assert over.wait(60)

  def stop(number, frame):
    raise Stopped

  monkeypatch.setattr(buckets.Store, "download", download)
  before = signal.signal(signal.SIGTERM, stop)
  try:
    with pytest.raises(Stopped):
      buckets.fetch(address)
  finally:
    signal.signal(signal.SIGTERM, before)
  path = buckets.path_of(address)
  assert not [*path.iterdir()]
  over.set()

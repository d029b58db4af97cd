"""Whose a workdir is: who is refused, and who takes it over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from perl_jax.hosts import signals
from perl_jax.tasks.training import lock
from tests.tasks import tiny


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
  for name in lock.JOBS:
    monkeypatch.delenv(name, raising=False)


@pytest.fixture
def leave(tmp_path):
  """Returns `leave(**changes)`: a lock as another process would leave it."""

  def leave(age=0.0, **changes):
    workdir = tmp_path / "run"
    workdir.mkdir(exist_ok=True)
    path = workdir / lock.LOCK_FILE
    path.write_text(json.dumps(lock.myself() | changes))
    then = time.time() - age
    os.utime(path, (then, then))
    return workdir

  return leave


@pytest.fixture
def other():
  """Another process of this host that lives."""
  process = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(60)"]
  )
  yield process
  process.kill()
  process.wait()


def taken(workdir):
  with lock.held(workdir):
    found = json.loads((workdir / lock.LOCK_FILE).read_text())
    assert found["pid"] == os.getpid() and found["host"]
  assert not (workdir / lock.LOCK_FILE).exists()
  return True


def refused(workdir):
  before = tiny.tree(workdir)
  with pytest.raises(ValueError, match="is in use by") as caught:
    taken(workdir)
  assert tiny.tree(workdir) == before
  return str(caught.value)


def test_a_lock_is_there_while_a_run_is(tmp_path):
  workdir = tmp_path / "deep" / "run"
  with pytest.raises(KeyboardInterrupt), lock.held(workdir):
    assert (workdir / lock.LOCK_FILE).is_file()
    raise KeyboardInterrupt
  assert not workdir.exists()  # nothing was written
  workdir.mkdir()
  (workdir / "notes").write_text("mine")
  assert taken(workdir) and (workdir / "notes").exists()


def test_a_signal_at_any_line_leaves_nothing(tmp_path):
  workdir, lines = tmp_path / "run", 0

  def told_at(number):
    """Whether a signal at this line of the module has stopped the block."""
    nonlocal lines
    lines = 0

    def trace(frame, event, _):
      nonlocal lines
      if frame.f_code.co_filename == lock.__file__ and event == "line":
        lines += 1
        if lines == number:
          sys.settrace(None)
          signal.raise_signal(signal.SIGTERM)
      return trace

    try:
      with signals.handled():
        sys.settrace(trace)
        with lock.held(workdir):
          pass
    except signals.Stopped as stopped:
      signals.end_blocks(stopped)
      return True
    finally:
      sys.settrace(None)
    return False

  assert not told_at(0) and lines > 30
  stopped = 0
  for number in range(1, lines + 1):
    stopped += told_at(number)
    assert not workdir.exists() and not lock._held, number
  assert stopped > 10


def test_a_process_of_this_host(leave, other, caplog):
  alive = {"pid": other.pid, "started": lock._started(other.pid)}
  message = refused(leave(age=10_000, **alive, since="noon"))
  assert f"process {other.pid} on " in message and "started noon" in message
  # Its number is that of another process by now.
  assert taken(leave(pid=other.pid, started="1"))
  other.kill()
  other.wait()
  caplog.set_level("INFO", logger="absl")
  assert taken(leave(**alive))
  assert "lock.json was left by a run that ended without a word" in caplog.text


def test_a_process_of_this_host_before_it_was_started_anew(leave, other):
  assert taken(leave(pid=other.pid, boot="another"))


def test_in_one_process_a_workdir_is_taken_once(tmp_path):
  with lock.held(tmp_path):
    refused(tmp_path)
    assert (tmp_path / lock.LOCK_FILE).exists()


@pytest.mark.parametrize(
  "where", [{"host": "far"}, {"processes": "a container's"}]
)
def test_another_host_is_believed_until_it_is_old(leave, where):
  message = refused(leave(age=100, job="SLURM_JOB_ID=7", **where))
  for said in ("job SLURM_JOB_ID=7", "100 s ago", "remove ", "300 s after"):
    assert said in message
  assert taken(leave(age=lock.OLD_SECONDS + 1, **where))


def test_the_way_out_works(leave):
  workdir = leave(host="far")
  message = refused(workdir)
  os.remove(message.partition("remove ")[2].partition(";")[0])
  assert taken(workdir)


@pytest.mark.parametrize("name", lock.JOBS)
def test_a_job_that_is_started_again_takes_over(leave, monkeypatch, name):
  monkeypatch.setenv(name, "7")
  refused(leave(host="far", job=f"{name}=8"))
  assert taken(leave(host="far", job=f"{name}=7"))


def test_two_commands_of_one_job_on_one_host_are_two(leave, monkeypatch, other):
  """As in a shell that `salloc` has opened."""
  monkeypatch.setenv("SLURM_JOB_ID", "7")
  refused(leave(pid=other.pid, started=lock._started(other.pid)))


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_a_damaged_lock(tmp_path, text):
  path = tmp_path / lock.LOCK_FILE
  path.write_text(text)
  assert "another run" in refused(tmp_path)
  then = time.time() - lock.OLD_SECONDS - 1
  os.utime(path, (then, then))
  assert taken(tmp_path)


def test_of_many_hosts_one_takes_over(leave):
  path = leave(host="far", age=10_000) / lock.LOCK_FILE
  barrier, won = threading.Barrier(8), []

  def take(number):
    mine = lock.myself() | {"host": f"host{number}"}
    barrier.wait()
    try:
      lock._take(path, mine)
      won.append(mine)
    except ValueError:
      pass

  threads = [threading.Thread(target=take, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  lock._held.discard(path)
  assert [lock._read(path)] == won
  assert list(path.parent.iterdir()) == [path]


def test_a_run_whose_workdir_was_taken_ends(tmp_path, monkeypatch):
  left, over = [], threading.Event()
  monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)

  def leave(message, status):
    left.append((message, status))
    over.set()

  monkeypatch.setattr(lock.hosts, "leave", leave)
  with lock.held(tmp_path):
    path = tmp_path / lock.LOCK_FILE
    os.utime(path, (0, 0))
    end = time.monotonic() + 20
    while path.stat().st_mtime == 0 and time.monotonic() < end:
      time.sleep(0.01)
    assert path.stat().st_mtime > 0  # it says that the run lives
    theirs = lock.myself() | {"host": "far"}
    spare = tmp_path / "spare"
    spare.write_text(json.dumps(theirs))
    spare.replace(path)
    assert over.wait(20)
  assert left[0][1] == 1 and "on far" in left[0][0]
  assert json.loads(path.read_text()) == theirs

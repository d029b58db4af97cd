"""Being told to stop: what the first signal does, and what the second."""

import contextlib
import faulthandler
import os
import signal
import threading
import time

import pytest

from perl_jax import starting
from perl_jax.hosts import signals


@pytest.fixture
def left(monkeypatch):
  """What the process would have written when it left, with its status."""
  found = []
  monkeypatch.setattr(
    signals.processes,
    "leave",
    lambda message, status, at_once=False: found.append((message, status)),
  )
  return found


@pytest.fixture(autouse=True)
def heard():
  """Tests that are started by `nohup`, or behind a `&`, ignore some signals."""
  before = {}
  for names, handler in (
    (starting.NAMES, signal.default_int_handler),
    (starting.ALSO, signal.SIG_DFL),
  ):
    for number in (getattr(signal, name) for name in names):
      before[number] = signal.signal(number, handler)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def send(name):
  os.kill(os.getpid(), getattr(signal, name))


def eventually(condition):
  end = time.monotonic() + 20
  while not condition() and time.monotonic() < end:
    time.sleep(0.005)
  assert condition()


@pytest.mark.parametrize("name", (*starting.NAMES, *starting.ALSO))
def test_a_signal_is_an_exception(name, left):
  before = signal.getsignal(getattr(signal, name))
  with pytest.raises(signals.Stopped, match=name) as caught, signals.handled():
    send(name)
    time.sleep(10)
  assert not caught.value.together and not left
  assert signal.getsignal(getattr(signal, name)) is before
  assert signals.told() == ""


def test_a_run_that_asks_is_not_interrupted(left):
  with signals.handled():
    with signals.deferred():
      assert signals.told() == ""
      send("SIGTERM")
      eventually(lambda: signals.told() == "SIGTERM")
      with pytest.raises(signals.Stopped), signals.interrupting():
        raise AssertionError("the block is not entered")
    assert not left


def test_what_nobody_asks_for_is_raised_after_the_block(left):
  reached = []
  with pytest.raises(signals.Stopped, match="SIGTERM"), signals.handled():
    with signals.deferred():
      with signals.deferred():
        send("SIGTERM")
      reached.append("the end of the block")
    reached.append("what comes after it")
  assert reached == ["the end of the block"] and not left


@pytest.mark.parametrize("error", [ValueError, signals.Stopped])
@pytest.mark.parametrize("inside", [False, True])
def test_an_error_is_raised_all_the_same(left, error, inside):
  """One of the block, or one because of which it was entered."""
  around = signals.deferred() if inside else contextlib.nullcontext()
  with pytest.raises(error, match="its own"), signals.handled(), around:
    try:
      raise error("its own")
    finally:
      with signals.deferred():
        send("SIGTERM")


def test_a_function_of_the_user_is_interrupted(left):
  with signals.handled(), signals.deferred():
    timer = threading.Timer(0.05, send, ["SIGTERM"])
    timer.start()
    with pytest.raises(signals.Stopped), signals.interrupting():
      time.sleep(20)
    timer.join()


def test_the_second_leaves_at_once(left):
  with signals.handled(), signals.deferred():
    send("SIGTERM")
    eventually(lambda: signals.told() == "SIGTERM")
    send("SIGINT")
    eventually(lambda: left)
  message, status = left[0]
  assert status == 128 + signal.SIGINT and "left at once" in message


@pytest.mark.parametrize("again", ["SIGTERM", "SIGHUP"])
def test_one_request_may_come_as_two_signals(left, monkeypatch, again):
  """As SIGTERM and SIGHUP of systemd, or one that a parent passes on."""
  with signals.handled(), signals.deferred():
    send("SIGTERM")
    eventually(lambda: signals.told() == "SIGTERM")
    send(again)
  assert not left
  monkeypatch.setattr(signals, "_SAME_SECONDS", 0)
  with signals.handled(), signals.deferred():
    send("SIGTERM")
    eventually(lambda: signals.told() == "SIGTERM")
    send(again)
  assert [status for _, status in left] == [128 + getattr(signal, again)]


@pytest.mark.parametrize("deferred", [False, True])
def test_who_does_not_answer_is_spoken_for(left, capfd, monkeypatch, deferred):
  """As while XLA compiles: Python calls no handler then."""
  monkeypatch.setattr(signals, "_PATIENCE", 0.01)
  told = signals._Told()
  told.first = "SIGTERM"
  monkeypatch.setattr(signals, "_deferred", int(deferred))
  signals._answer(told, signal.SIGTERM)
  if deferred:
    assert not left and "is finished and saved first" in capfd.readouterr().err
  else:
    assert left == [("Stopped by SIGTERM, nothing had to be saved.", 75)]


def test_what_is_ignored_stays_ignored(left):
  """A command that `nohup` starts does not end with its terminal."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with signals.handled():
      send("SIGHUP")
      assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
      assert signals.told() == ""
  finally:
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", starting.ALSO)
def test_a_signal_that_somebody_has_a_use_for_stays_theirs(left, name):
  number, got = getattr(signal, name), []

  def mine(number, frame):
    got.append(number)

  signal.signal(number, mine)
  with signals.handled():
    send(name)
    eventually(lambda: got)
    assert signals.told() == ""
  signal.signal(number, signal.SIG_DFL)
  with signals.handled():  # as by a reward function
    signal.signal(number, mine)
  assert signal.getsignal(number) is mine and not left


@pytest.mark.skipif(
  not os.path.exists("/proc/self/status"), reason="Linux alone says so"
)
def test_a_handler_of_faulthandler_stays(left, tmp_path):
  """Python does not know of it."""
  with open(tmp_path / "stacks", "w+") as file:
    faulthandler.register(signal.SIGUSR1, file=file)
    try:
      with signals.handled():
        send("SIGUSR1")
        assert signals.told() == ""
    finally:
      faulthandler.unregister(signal.SIGUSR1)
    file.seek(0)
    assert "most recent call first" in file.read()
  assert not left


def test_a_limit_of_computing_is_said_again_and_again(left, monkeypatch):
  """SIGXCPU comes each second, and is not a second request."""
  monkeypatch.setattr(signals, "_SAME_SECONDS", 0)
  with signals.handled(), signals.deferred():
    for _ in range(3):
      send("SIGXCPU")
      eventually(lambda: signals.told() == "SIGXCPU")
  assert not left


class Finalized:
  """Is told to stop as it is finalized; no exception comes out of that."""

  def __init__(self, *names):
    self.names = names

  def __del__(self):
    with contextlib.ExitStack() as stack:
      for name in self.names:
        stack.callback(send, name)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("names", [("SIGTERM",), ("SIGTERM", "SIGHUP")])
def test_a_signal_that_meets_a_finalizer_is_not_lost(left, monkeypatch, names):
  """As one that meets the callback of JAX for the garbage collector."""
  monkeypatch.setattr(signals, "_AGAIN", 0.05)
  with pytest.raises(signals.Stopped, match="SIG"), signals.handled():
    Finalized(*names)
    for _ in range(2000):
      time.sleep(0.01)
  assert not left


def test_a_signal_is_raised_once_to_who_handles_it(left, monkeypatch):
  """What is put in order because of it is not disturbed."""
  monkeypatch.setattr(signals, "_AGAIN", 0.001)
  order = []
  with pytest.raises(signals.Stopped), signals.handled():
    try:
      send("SIGTERM")
      time.sleep(10)
    finally:
      try:
        raise ValueError("of what is put in order")
      except ValueError:
        for _ in range(100):
          time.sleep(0.001)
      order.append("done")
  assert order == ["done"] and not left


@pytest.mark.parametrize(
  "block", [contextlib.nullcontext, signals.interrupting]
)
def test_an_error_that_came_of_a_signal_is_not_the_end(left, block):
  """As of a lock that was just being taken: it is not released twice."""

  def wait():
    try:
      send("SIGTERM")
      time.sleep(10)
    except signals.Stopped as stopped:
      stopped.answered = answered
      raise RuntimeError("release unlocked lock")  # noqa: B904

  answered = False
  with pytest.raises(signals.Stopped), signals.handled(), block():
    wait()
  answered = True
  with pytest.raises(RuntimeError), signals.handled(), block():
    wait()
  assert not left


@pytest.mark.filterwarnings("ignore:.*os.fork:RuntimeWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_what_a_forked_child_is_told_is_not_for_the_run(left):
  """As when a pool of `multiprocessing` ends its workers."""
  with signals.handled(), signals.deferred():
    child = os.fork()
    if not child:
      send("SIGTERM")
      time.sleep(10)
      os._exit(0)
    _, status = os.waitpid(child, 0)
    time.sleep(0.1)
    assert signals.told() == "" and not left
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM

"""Whose a workdir in a bucket is: who is refused, and who takes it over."""

import json
import re
import subprocess
import sys
import threading
import time

import pytest

from perl_jax import buckets
from perl_jax.hosts import signals
from perl_jax.tasks.training import bucket_lock, lock
from tests.buckets import servers

pytestmark = list(servers.WARNINGS)


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
  for name in lock.JOBS:
    monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dead():
  """A process of this host that has ended, and is not asked about."""
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  return {"pid": process.pid, "started": "1"}


def leave(store, name="lock.json", **changes):
  theirs = lock.myself() | changes
  store.write(name, json.dumps(theirs).encode())
  return theirs


def is_refused(address):
  with (
    pytest.raises(ValueError, match=r"is in use by") as caught,
    bucket_lock.held(address),
  ):
    raise AssertionError("it was taken")
  return str(caught.value)


def test_a_lock_is_there_while_a_run_is(address, store):
  with bucket_lock.held(address):
    assert list(store.listed()) == ["lock.json"]
    # Nor may another have what is in it; what is beside it is free.
    is_refused(address)
    is_refused(f"{address}/sft")
    with bucket_lock.held(f"{address}2"):
      pass
    assert list(store.listed()) == ["lock.json"]
  assert store.listed() == {}
  with bucket_lock.held(f"{address}/sft"):
    is_refused(address)
    assert list(store.listed()) == ["sft/lock.json"]


def test_what_a_run_has_taken_is_given_back_if_it_is_stopped_there(
  monkeypatch, address, store
):
  """Its own lock, also if the answer never arrived; never that of another."""
  create = buckets.Store.create

  def stopped(self, *args):
    create(self, *args)
    raise signals.Stopped("SIGTERM")

  monkeypatch.setattr(buckets.Store, "create", stopped)
  with pytest.raises(signals.Stopped), bucket_lock.held(address):
    raise AssertionError("it was taken")
  assert store.listed() == {}
  theirs = leave(store, host="far")
  with pytest.raises(signals.Stopped), bucket_lock.held(address):
    raise AssertionError("it was taken")
  assert json.loads(store.read("lock.json")) == theirs


def test_the_lock_of_a_process_that_is_dead_is_taken(
  address,
  store,
  dead,
):
  leave(store, **dead)
  leave(store, "sft/lock.json", **dead)
  with bucket_lock.held(address):
    assert json.loads(store.read("lock.json"))["token"]
  assert "lock.json" not in store.listed()


def test_another_host_is_believed_until_it_is_silent(
  monkeypatch,
  address,
  store,
):
  leave(store, host="far")
  assert re.search(r"is in use by process \d+ on far", is_refused(address))
  assert list(store.listed()) == ["lock.json"]
  monkeypatch.setattr(lock, "OLD_SECONDS", -1.0)
  with bucket_lock.held(address):
    pass
  assert store.listed() == {}


def test_of_several_one_takes_it_over(address, store, dead):
  leave(store, **dead)
  won, refused, done = [], [], threading.Barrier(4)

  def take():
    mine = lock.myself()
    try:
      bucket_lock._take(buckets.Store(address), mine)
      won.append(mine)
    except ValueError as error:
      refused.append(str(error))
    done.wait()

  threads = [threading.Thread(target=take) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  bucket_lock._held.clear()
  assert [json.loads(store.read("lock.json"))] == won
  assert len(refused) == 3
  assert list(store.listed()) == ["lock.json"]


def test_a_run_shows_that_it_lives(monkeypatch, address, store):
  """And ends once the lock is not its own any more."""
  left = []
  said = threading.Event()
  monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
  monkeypatch.setattr(
    "perl_jax.hosts.leave", lambda text, status: (left.append(text), said.set())
  )
  with bucket_lock.held(address):
    for _ in range(1000):
      if "lock.beat.json" in store.listed():
        break
      time.sleep(0.02)
    assert "lock.beat.json" in store.listed() and not left
    theirs = leave(store, host="far")
    assert said.wait(30)
  assert "not of this run any more" in left[0] and "on far" in left[0]
  assert json.loads(store.read("lock.json")) == theirs

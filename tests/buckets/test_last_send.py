"""A run that is told to stop while its last files are sent to its bucket."""

import os
import signal

import pytest

from perl_jax import buckets, tasks
from perl_jax.buckets import mirror
from perl_jax.hosts import signals
from tests.buckets import fixtures, servers
from tests.buckets.test_mirror import there, write, written

pytestmark = list(servers.WARNINGS)


@pytest.fixture
def told_as_it_sends(monkeypatch):
  """A list: the signals that a process gets as it sends its config.json."""
  monkeypatch.setattr(mirror, "LOOK_SECONDS", 1e6)
  upload, told = buckets.Store.upload, []

  def uploaded(self, path, name):
    if name == "config.json":
      told.append("SIGTERM")
      os.kill(os.getpid(), signal.SIGTERM)
    upload(self, path, name)

  monkeypatch.setattr(buckets.Store, "upload", uploaded)
  return told


@pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True)
@pytest.mark.parametrize("task", ["sft", "report"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_waits_for_the_last_send(
  address, store, told_as_it_sends, task, fails
):
  raised = buckets.Written if fails else signals.Stopped
  with (
    pytest.raises(raised),
    signals.handled(),
    tasks._kept_in_bucket(task, address) as path,
  ):
    write(path, 2, 4)
    (path / "summary.json").write_text("{}")
    if fails:
      raise buckets.Written("It could not be pushed to the hub.")
  assert len(told_as_it_sends) == 1 and there(store) == written(path)


@pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True)
def test_an_export_that_is_sent_whole_is_not_asked_for_again(
  address, store, told_as_it_sends
):
  with (
    pytest.raises(signals.Stopped, match="is written") as caught,
    signals.handled(),
    tasks._kept_in_bucket("export", address) as path,
  ):
    write(path, 2, 4)
  assert there(store) == written(path) and told_as_it_sends
  assert caught.value.then == "Nothing is left to do."


@pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True)
def test_an_export_that_is_not_sent_is_made_again(address, store):
  """As one that was told to stop while it was pushed to a hub."""
  with (
    pytest.raises(signals.Stopped, match="nothing had to be saved") as caught,
    tasks._kept_in_bucket("export", address) as path,
  ):
    write(path, 2, 4)
    raise signals.Stopped("SIGTERM", ", it is written")
  assert caught.value.then == ""
  assert not store.listed()
  with tasks._kept_in_bucket("export", address) as again:
    assert not again.exists()

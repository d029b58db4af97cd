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


@pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True)
@pytest.mark.parametrize("task", ["sft", "report"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_waits_for_the_last_send(
  address, store, monkeypatch, task, fails
):
  monkeypatch.setattr(mirror, "LOOK_SECONDS", 1e6)
  upload, told = buckets.Store.upload, []

  def uploaded(self, path, name):
    if name == "config.json":
      told.append(os.kill(os.getpid(), signal.SIGTERM))
    upload(self, path, name)

  monkeypatch.setattr(buckets.Store, "upload", uploaded)
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
  assert len(told) == 1 and there(store) == written(path)

"""What could not be sent is not lost: the same command sends it."""

import shutil

import pytest

from perl_jax import buckets
from perl_jax.hosts import signals
from tests.buckets import fixtures, servers
from tests.buckets.test_mirror import there, write, written

pytestmark = [
  *servers.WARNINGS,
  pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True),
]


class Expired:
  """A login that expires before the object of a name is sent."""

  def __init__(self, patch, name):
    for act in ("write", "remove"):
      patch.setattr(buckets.Store, act, self._refused(act))
    self._name, self._over = name, False

  def _refused(self, act):
    real = getattr(buckets.Store, act)

    def asked(store, name, *content):
      self._over = self._over or name == self._name
      if self._over:
        raise buckets.BucketError("The login has expired.")
      return real(store, name, *content)

    return asked


def alone(address):
  return buckets.mirrored(address, lambda: True)


def ended(path):
  """A run that has sent step 2 writes step 4 and ends."""
  write(path, 4, 8)
  (path / "tensorboard").mkdir()
  (path / "tensorboard" / "tfevents.1").write_text("events")
  shutil.rmtree(path / "checkpoints" / "2")
  (path / "summary.json").write_text("{}")
  return written(path)


@pytest.fixture
def refuse(address, monkeypatch):
  """A function: a run whose last sends fail from the one of a name on."""
  with alone(address) as path:
    write(path, 2, 4)

  def act(name):
    copy = buckets.addresses.here(path)
    with monkeypatch.context() as patch:
      Expired(patch, name)
      with (
        pytest.raises(
          buckets.BucketError, match=r"expired.*the same"
        ) as caught,
        alone(address) as path_again,
      ):
        kept = ended(path_again)
    assert copy in buckets.named(str(caught.value))
    return kept

  return act


@pytest.mark.parametrize(
  "name",
  ["metrics.jsonl", "checkpoints/4/.unfinished", "checkpoints/4/sha256.txt",
   "checkpoints/2/.unfinished", "summary.json"],
)  # fmt: skip
def test_the_same_command_sends_what_was_refused(address, store, refuse, name):
  kept = refuse(name)
  with alone(address) as path:
    assert written(path) == kept
  assert written(path) == kept
  assert there(store) == kept
  with alone(address) as path:
    assert written(path) == kept


def test_nothing_was_sent_at_all(address, store, monkeypatch):
  with monkeypatch.context() as patch:
    Expired(patch, "metrics.jsonl")
    with pytest.raises(buckets.BucketError), alone(address) as path:
      write(path, 2, 4)
  kept = written(path)
  with alone(address) as path:
    assert written(path) == kept
  assert there(store) == kept


def test_what_another_has_sent_since_wins(address, store, refuse):
  refuse("metrics.jsonl")
  store.write("metrics.jsonl", b"0\n1\n2\n3\nanother\n")
  theirs = there(store)
  with alone(address) as path:
    assert written(path) == theirs
  assert there(store) == theirs


def test_what_another_has_removed_since_is_gone(address, store, refuse):
  refuse("metrics.jsonl")
  for name in store.listed():
    store.remove(name)
  with alone(address) as path:
    assert not path.exists()


def test_what_is_lost_here_is_copied_again(address, store):
  """A cache of which someone has removed a file, and not the run."""
  with alone(address) as path:
    write(path, 2, 4)
  kept = written(path) | {"metrics.jsonl": b"0\n1\n2\n3\n4\n"}
  (path / "metrics.jsonl").write_text("0\n1\n2\n3\n4\n")
  (path / "checkpoints/2/sha256.txt").unlink()
  with alone(address) as path:
    assert written(path) == kept
  assert there(store) == kept


@pytest.mark.parametrize(
  "error", [signals.Stopped("SIGTERM"), ValueError("no such row")]
)
def test_what_ended_a_run_is_not_hidden_by_its_bucket(
  address, monkeypatch, caplog, error
):
  """Its message counts, and its exit status, which is 75 after a signal."""
  Expired(monkeypatch, "config.json")
  with pytest.raises(type(error)) as caught, alone(address) as path:
    write(path, 2, 4)
    raise error
  assert caught.value is error
  (said,) = [r.message for r in caplog.records if "expired" in r.message]
  assert f"not sent is in {buckets.addresses.here(path)}" in said


def test_a_hub_that_refuses_is_not_hidden_by_a_bucket(
  address, monkeypatch, caplog
):
  Expired(monkeypatch, "config.json")
  with (
    pytest.raises(buckets.Written, match="to the hub"),
    buckets.mirrored(address) as path,
  ):
    write(path, 2, 4)
    raise buckets.Written("It could not be pushed to the hub.")
  assert "The login has expired." in caplog.text

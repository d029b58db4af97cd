"""Objects of real servers: what is written, created once, and said."""

import enum
import threading

import pytest

from perl_jax import buckets
from tests.buckets import fixtures, servers

pytestmark = list(servers.WARNINGS)


def test_objects_are_written_read_and_removed(address, store, tmp_path):
  assert store.listed() == {}
  store.write("a", b"1")
  store.write("deep/b", b"22")
  buckets.Store(f"{address}2").write("", b"no part of it")
  first = store.listed()
  assert {name: found.size for name, found in first.items()} == {
    "a": 1,
    "deep/b": 2,
  }
  store.write("a", b"3")
  second = store.listed()
  assert second["a"].tag != first["a"].tag
  assert second["deep/b"] == first["deep/b"]
  assert store.read("a") == b"3" and store.read("none") is None
  store.download("deep/b", tmp_path / "b")
  assert (tmp_path / "b").read_bytes() == b"22"
  store.remove("a")
  store.remove("a")
  assert list(store.listed()) == ["deep/b"]
  assert list(buckets.Store(f"{address}2").listed()) == [""]


def test_files_are_sent_whole_and_in_parts(monkeypatch, store, tmp_path):
  path = tmp_path / "file"
  path.write_bytes(bytes(range(256)) * 4096)
  store.upload(path, "whole")
  monkeypatch.setattr("perl_jax.buckets.store._WHOLE_BYTES", 1)
  store.upload(path, "parts")
  for name in ("whole", "parts"):
    assert store.read(name) == path.read_bytes()


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b" ", b"\x1c", b""])
def test_every_byte_of_an_object_is_kept(store, end):
  for content in (end, b"a\r\rb\n" + end):
    store.write("object", content)
    assert store.read("object") == content


def test_of_several_one_creates_an_object(store):
  won = []

  def create(number):
    if store.create("lock.json", b"%d" % number):
      won.append(b"%d" % number)

  threads = [threading.Thread(target=create, args=(n,)) for n in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [store.read("lock.json")] == won


def test_ages_are_by_the_clock_of_the_store(store):
  store.write("lock.json", b"")
  old, none = store.ages(("lock.json", "none"), "lock.time.json")
  assert 0 <= old < 60 and none is None
  assert list(store.listed()) == ["lock.json"]


def test_a_bucket_that_is_not_there_is_said(address):
  other = buckets.Store(address.replace(servers.BUCKET, "nowhere"))
  for act in (
    other.listed,
    lambda: other.read("x"),
    lambda: other.write("x", b""),
  ):
    with pytest.raises(buckets.BucketError, match="no bucket 'nowhere'"):
      act()


@pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True)
def test_a_zonal_bucket_has_no_lock(store):
  """As gcsfs calls it, which ignores the condition there."""
  names = ("ZONAL_HIERARCHICAL", "HIERARCHICAL", "UNKNOWN")
  kind = enum.Enum("BucketType", {name: name for name in names})
  of = {"bucket": kind.ZONAL_HIERARCHICAL}
  store._files._sync_lookup_bucket_type = of.__getitem__
  with pytest.raises(buckets.BucketError, match="is in a zonal bucket"):
    store.create("lock.json", b"")
  assert store.listed() == {}
  for other in (kind.HIERARCHICAL, kind.UNKNOWN):
    of["bucket"] = other
    assert store.create(f"{other.name}.json", b"")


def test_gcsfs_has_the_names_that_are_asked_for():
  extended = pytest.importorskip("gcsfs.extended_gcsfs")
  assert hasattr(extended.ExtendedGcsFileSystem, "_sync_lookup_bucket_type")
  names = {kind.value for kind in extended.BucketType if "ZON" in kind.value}
  assert names == {"ZONAL_HIERARCHICAL"}

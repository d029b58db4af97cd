"""A store in memory, and a server for each scheme, one for all tests."""

import uuid

import fsspec
import pytest

from perl_jax import buckets
from perl_jax.buckets import copies
from tests.buckets import memory, servers

REAL = [pytest.param(name, marks=pytest.mark.slow) for name in ("gs", "s3")]
MEMORY = "memory"


@pytest.fixture(scope="session", params=[MEMORY, *REAL])
def bucket_server(request):
  """(scheme, environment variables) of a server with a bucket."""
  if request.param == MEMORY:
    yield MEMORY, {}
    return
  process, variables = servers.started(request.param)
  # fsspec keeps what it has connected, and an earlier server had another port.
  fsspec.get_filesystem_class(request.param).clear_instance_cache()
  with process:
    yield request.param, variables
    process.kill()


@pytest.fixture
def address(bucket_server, monkeypatch, tmp_path):
  """An address where nothing lies yet, reached from this process."""
  scheme, variables = bucket_server
  if scheme == MEMORY:
    files, scheme = memory.Files(servers.BUCKET), "gs"
    monkeypatch.setattr("fsspec.filesystem", lambda scheme, **_: files)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  fresh_machine(monkeypatch, tmp_path / "cache")
  yield f"{scheme}://{servers.BUCKET}/{uuid.uuid4().hex}"
  copies.copied.clear()


def fresh_machine(monkeypatch, cache):
  """As if the process had just been started, with an empty cache."""
  monkeypatch.setenv("PERL_JAX_CACHE", str(cache))
  copies.copied.clear()


@pytest.fixture
def store(address):
  return buckets.Store(address)

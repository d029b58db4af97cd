"""The cache of compiled programs: found again, never broken, easily moved."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from perl_jax import compilation_cache

ROOT = pathlib.Path(__file__).parents[1]
# A program, with what JAX says of its cache.
PROGRAM = """
import json, os, sys
import jax, jax.numpy as jnp
from perl_jax import compilation_cache
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
compilation_cache.LEAST_SECONDS = 0.0
path = compilation_cache.use(sys.argv[1], os.environ)
x = jnp.linspace(0.0, 1.0, 12345, dtype="float32")
found = jax.jit(lambda x: jnp.sum(jnp.sin(x) * jnp.cumsum(x)))(x)
print(json.dumps({
  "hits": events.count("/jax/compilation_cache/cache_hits"),
  "misses": events.count("/jax/compilation_cache/cache_misses"),
  "path": str(path), "found": float(found).hex(),
}))
"""


@pytest.fixture
def settings():
  """JAX's settings, put back afterwards."""
  names = (
    *("jax_compilation_cache_dir", "jax_compilation_cache_max_size"),
    *("jax_enable_compilation_cache",),
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def start(directory, **environment):
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", PROGRAM, directory],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0 and not done.stderr, done.stderr
  return json.loads(done.stdout)


def test_a_second_start_compiles_nothing(tmp_path):
  home = {"XDG_CACHE_HOME": str(tmp_path)}
  first, second = start("", **home), start("", **home)
  assert first["hits"] == 0 and first["misses"] > 0
  assert second["misses"] == 0 and second["hits"] == first["misses"]
  assert second["found"] == first["found"]
  where = pathlib.Path(first["path"])
  assert where.is_relative_to(tmp_path / "perl_jax" / "compiled")
  # A kill in the middle of a write, and one before an entry's time of use.
  entries = sorted(where.glob("*-cache"))
  for entry in entries:
    entry.write_bytes(entry.read_bytes()[:100])
    entry.with_name(entry.name.replace("-cache", "-atime")).unlink()
  third = start("", **home)
  assert third == first
  assert min(p.stat().st_size for p in where.glob("*-cache")) > 100


def test_switched_off(tmp_path):
  found = start("off", XDG_CACHE_HOME=str(tmp_path))
  assert found["path"] == "None" and found["hits"] == found["misses"] == 0
  assert not list(tmp_path.iterdir())


def test_settings_of_jax_win_over_the_default(tmp_path):
  own = str(tmp_path / "own")
  environment = {
    "JAX_COMPILATION_CACHE_DIR": own,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XDG_CACHE_HOME": str(tmp_path / "home"),
  }
  assert start("", **environment)["path"] == "None"
  assert list(pathlib.Path(own).glob("*-cache"))
  assert not (tmp_path / "home").exists()


def test_a_directory_that_cannot_be_written(tmp_path, settings):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=r"--compilation_cache=.*off"):
    compilation_cache.use(str(tmp_path / "file"), {})
  home = {"XDG_CACHE_HOME": str(tmp_path / "file")}
  assert compilation_cache.use("", home) is None  # it only saves time
  assert jax.config.jax_compilation_cache_dir is None


def test_an_address_is_refused(tmp_path, monkeypatch, settings):
  """Of which the file system would make a directory `gs:`."""
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="JAX_COMPILATION_CACHE_DIR"):
    compilation_cache.use("gs://bucket/programs", {})
  assert not list(tmp_path.iterdir())


def test_where_it_lies():
  directory = compilation_cache.default_directory
  assert str(directory({})) == "~/.cache/perl_jax/compiled"
  assert str(directory({"XDG_CACHE_HOME": "relative"})).startswith("~")
  assert str(directory({"XDG_CACHE_HOME": "/c"})) == "/c/perl_jax/compiled"

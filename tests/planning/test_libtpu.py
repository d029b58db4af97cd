"""What libtpu is told where there is no TPU."""

import subprocess
import sys

import jax
import pytest

from perl_jax.planning import libtpu


def test_libtpu_is_told_that_there_is_no_tpu():
  environment = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "worker-0",
  }
  libtpu.quiet(environment)
  assert environment == {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "worker-0",
  }


def test_a_tpu_is_left_to_say_what_it_is():
  environment = {}
  libtpu.quiet(environment)
  assert not environment


def test_flags_for_cpus_are_hidden():
  environment = {"XLA_FLAGS": "--xla_cpu_a=1 --xla_b=2  --xla_cpu_c"}
  libtpu.hide_cpu_flags(environment)
  assert environment == {"XLA_FLAGS": "--xla_b=2"}
  for environment in ({}, {"XLA_FLAGS": "--xla_b=2"}):
    before = dict(environment)
    libtpu.hide_cpu_flags(environment)
    assert environment == before


@pytest.mark.parametrize(
  "no_chip, chosen, plugins, expected",
  [
    ("1", None, False, "cpu"),
    ("1", "cuda,cpu", False, "cuda,cpu"),
    ("1", None, True, None),
    ("", None, False, None),
  ],
)
def test_libtpu_is_left_out(monkeypatch, no_chip, chosen, plugins, expected):
  """Where there is nothing but a CPU, and the user has not chosen."""
  monkeypatch.setattr(libtpu, "_has_plugins", lambda: plugins)
  before = jax.config.jax_platforms
  try:
    jax.config.update("jax_platforms", chosen)
    libtpu.leave_out({"TPU_SKIP_MDS_QUERY": no_chip})
    assert jax.config.jax_platforms == expected
  finally:
    jax.config.update("jax_platforms", before)


def test_a_package_for_a_gpu(tmp_path, monkeypatch):
  """JAX finds it as a module of the namespace, or by its entry point."""
  assert not libtpu._has_plugins()
  (tmp_path / "jax_plugins" / "xla_cuda13").mkdir(parents=True)
  monkeypatch.syspath_prepend(tmp_path)
  assert libtpu._has_plugins()


@pytest.mark.slow
@pytest.mark.parametrize("platforms, idle", [("cpu", "False"), ("", "True")])
def test_whether_libtpu_is_loaded(platforms, idle, monkeypatch):
  pytest.importorskip("libtpu", reason="requirements.txt")
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  code = (
    "import os, jax; from perl_jax.planning import libtpu;"
    " libtpu.quiet(os.environ); jax.devices(); print(libtpu.is_idle())"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == [idle]

"""Runs that cannot fit are refused before anything is read."""

import pathlib

import jax
import pytest

from perl_jax import sharding, tasks
from perl_jax.planning import chips
from perl_jax.tasks.dry_run import memory_check
from tests.tasks import tiny


def check(config):
  task = tasks.TASKS[config.task]
  memory_check.check(config, task.trains, task.module().programs)


def test_a_run_that_cannot_fit_is_refused(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(
    memory_check, "memory_limit", lambda mesh, device: 100_000
  )
  with pytest.raises(
    ValueError, match=r"needs at least 0\.00 GiB on each device"
  ):
    tasks.run(tiny.config("sft"), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  check(tiny.config("sft", fit="off"))
  with caplog.at_level("WARNING"):
    check(tiny.config("sft", fit="warn"))
  assert "configs/plan.py tries them" in caplog.text
  with pytest.raises(ValueError, match=r"config\.fit='never'"):
    check(tiny.config("sft", fit="never"))
  monkeypatch.setattr(memory_check, "memory_limit", lambda mesh, device: 2**40)
  check(tiny.config("sft"))


def test_the_limit_of_a_cpu_is_its_memory_shared():
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  whole = memory_check.memory_limit(mesh, None) * jax.local_device_count()
  lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
  kilobytes = next(
    int(line.split()[1]) for line in lines if line.startswith("MemTotal")
  )
  assert whole == pytest.approx(kilobytes * 1024, rel=0.01)
  published = memory_check.memory_limit(mesh, chips.CHIPS["v5e"])
  assert published == 16 * 2**30

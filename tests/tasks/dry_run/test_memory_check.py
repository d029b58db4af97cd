"""Runs that cannot fit are refused before anything is read."""

import json
import pathlib

import jax
import pytest

from perl_jax import sharding, tasks
from perl_jax.planning import chips
from perl_jax.tasks.dry_run import memory_check
from perl_jax.tasks.initial import restore
from tests.tasks import tiny
from tests.tasks.initial import test_adapter


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


@pytest.mark.parametrize(
  ("task", "role"), [("dpo", "policy"), ("reward", "reward")]
)
def test_the_model_of_an_adapter_is_that_of_its_base(tmp_path, task, role):
  """Trainers leave the config.json of a quantised base beside it."""
  base, directory = tmp_path / "base", tmp_path / "adapter"
  made = test_adapter.write_base(base)
  test_adapter.write_adapter(directory, made, str(base))
  fields = json.loads((base / "config.json").read_text())
  fields["quantization_config"] = {"quant_method": "bitsandbytes"}
  (directory / "config.json").write_text(json.dumps(fields))
  expected = restore.model_in(base, "base")
  for given in ("", str(base)):
    config = tiny.config(task, base=given, **{f"{role}__init": str(directory)})
    assert memory_check._model_of(config, role) == expected
  assert restore.model_in(directory, "model") == expected
  test_adapter.name_base(tmp_path, "gone/since")
  config = tiny.config(task, base="", **{f"{role}__init": str(directory)})
  assert memory_check._model_of(config, role) is None

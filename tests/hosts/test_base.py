"""A Hugging Face checkpoint that two processes read, each its own part."""

import numpy as np
import pytest
import safetensors.numpy

from perl_jax import tasks
from tests.hosts import group as group_lib
from tests.hosts.group import assert_same_lines
from tests.tasks import bases, tiny

pytestmark = pytest.mark.slow

SPLIT = {"mesh__data": 1, "mesh__fsdp": 2}
FIELDS = {
  "batch_size": 4,
  "steps": 2,
  "tuning": "lora",
  "optimizer__learning_rate": 1e-3,
  "optimizer__warmup_steps": 0,
  "data__max_len": 200,
  "data__prompt_len": 192,
  "data__response_len": 8,
}


@pytest.fixture
def base(tmp_path):
  directory = tmp_path / "base"
  directory.mkdir()
  bases.write_base(directory, "llama3.2")
  return directory


def test_it_trains_as_read_by_one(tmp_path, base, run_together):
  given = {"base": str(base), **SPLIT, **FIELDS}
  tasks.run(tiny.config("sft", **given), tmp_path / "alone")
  found = run_together("sft", 2, **given)
  expected = tiny.lines(tmp_path / "alone")
  assert_same_lines(tiny.lines(found), expected, rtol=1e-5, atol=1e-6)


def test_one_that_diverged_ends_both(tmp_path, base, cache):
  path, name = base / "model.safetensors", "model.norm.weight"
  tensors = safetensors.numpy.load_file(path)
  tensors[name] = np.full_like(tensors[name], np.nan)
  safetensors.numpy.save_file(tensors, path)
  given = {"base": str(base), **SPLIT, **FIELDS}
  command = group_lib.arguments("sft", tmp_path / "run", **given)
  with group_lib.Group(
    command, count=2, directory=tmp_path / "logs", environment=cache
  ) as group:
    assert group.wait() == [1, 1], "\n".join(group.logs)
  assert f"{path}: {name} has numbers that are not finite" in group.logs[0]
  assert "Traceback" not in "".join(group.logs)

"""A run that began on one mesh goes on on another, through the real tasks."""

import logging

import jax
import pytest

from perl_jax import checkpoint
from perl_jax.tasks.training import workdir as workdir_lib
from tests.marks import by_night
from tests.sharding.meshes import common
from tests.tasks import test_resume, tiny

STEPS = {"steps": 8, "eval_every": 4, "batch_size": 8}
STAGES = {
  # The whole model is trained: parameters and moments are cut by the rules.
  "sft": {"eval__rows": 0},
  "reward": {},
  # Masks of dropout are of the rows that pairs are packed into, and meshes with
  # as many parts of a batch have the same rows.
  "reward, dropout": {"lora__dropout": 0.1},
}
CLOSE = dict(rel=1e-3, abs=1e-5)


def mesh(name):
  sizes = dict(zip(("data", "fsdp", "tensor"), common.MESHES[name]))
  return {f"mesh__{axis}": size for axis, size in sizes.items()}


def task_of(stage):
  return stage.partition(",")[0]


def fields_of(stage, whole):
  """What a stage trains, and by how much; an adapter starts from the anchor."""
  is_reward = stage.startswith("reward")
  start = {"reward__init": str(whole("sft"))} if is_reward else {}
  return STAGES[stage] | STEPS | start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Runs that nobody disturbed, on the mesh where the others begin."""
  made = {}

  def make(stage):
    if stage not in made:
      made[stage] = tmp_path_factory.mktemp(task_of(stage)) / "run"
      fields = fields_of(stage, make)
      tiny.run(made[stage], task_of(stage), **fields, **mesh("data"))
    return made[stage]

  return make


@pytest.mark.slow
@pytest.mark.parametrize(
  ("stage", "name"),
  [
    ("sft", "all"),
    by_night("sft", "one"),
    ("reward, dropout", "all"),
    by_night("reward", "one"),
  ],
)
def test_goes_on_on_another_mesh(
  tmp_path, monkeypatch, caplog, whole, stage, name
):
  fields = fields_of(stage, whole)
  expected = whole(stage)
  with monkeypatch.context() as patches:
    test_resume.kill_before_batch(patches, 5)
    with pytest.raises(test_resume.Killed):
      tiny.run(tmp_path / "run", task_of(stage), **fields, **mesh("data"))
  assert tiny.kept(tmp_path / "run") == [4]

  restored = []
  real = checkpoint.Checkpointer.restore

  def restore(self, like):
    found = real(self, like)
    restored.append(int(found.state.step))
    common.require_rules(found.state, jax.sharding.get_mesh())
    return found

  monkeypatch.setattr(checkpoint.Checkpointer, "restore", restore)
  with caplog.at_level(logging.INFO, "absl"):
    tiny.run(tmp_path / "run", task_of(stage), **fields, **mesh(name))
  assert restored == [4]
  (line,) = (m for m in caplog.messages if "other settings" in m)
  assert f"config.mesh.data: 8 -> {common.MESHES[name][0]}" in line

  found, wanted = tiny.lines(tmp_path / "run"), tiny.lines(expected)
  assert [row["step"] for row in found] == [row["step"] for row in wanted]
  for mine, theirs in zip(found, wanted, strict=True):
    # Up to the checkpoint the same program, and then sums in another order.
    exact = mine["step"] <= 4
    assert mine == (theirs if exact else pytest.approx(theirs, **CLOSE))


def test_only_where_a_run_computes_may_change(tmp_path):
  """The other fields that differ are refused as ever, and alone named."""
  config = tiny.config("rl", mesh__data=8, rollouts__layout="train")
  with workdir_lib.preparing(config, tmp_path / "run"):
    pass
  moved = tiny.config("rl", mesh__fsdp=4, rollouts__layout="decode")
  with workdir_lib.preparing(moved, tmp_path / "run"):
    pass
  text = (tmp_path / "run" / "config.json").read_text()
  assert '"decode"' in text
  other = tiny.config("rl", mesh__tensor=2, seed=2)
  with pytest.raises(ValueError, match="another config") as error:
    workdir_lib.preparing(other, tmp_path / "run").__enter__()
  assert "config.seed: 0 -> 2" in str(error.value)
  assert "mesh" not in str(error.value)

"""What to change where a stage does not fit."""

from perl_jax import sharding
from perl_jax.models import presets
from perl_jax.reporting import plans
from perl_jax.tasks import plan
from perl_jax.tasks.dry_run import suggestions
from tests.tasks import tiny

MODEL = presets.preset("tiny", vocab_size=400, max_len=136)


def test_what_does_not_fit_is_changed_until_it_does():
  """Each change on top of those before it, the last one fits."""
  config = tiny.override(
    tiny.config("reward", base_dtype="bfloat16"), {"batch_size": 16}
  )
  mesh = sharding.make_mesh(data=2, fsdp=1, tensor=1)
  base = plan.make_stage(config, MODEL, mesh).held_bytes()["base"]
  tried = []

  def planner(config, model, mesh):
    """Bytes that are held, and what stands for the rows of a microbatch."""
    tried.append((config, model, mesh))
    made = plan.make_stage(config, model, mesh)
    peak = sum(made.held_bytes().values()) + 1000 * config.batch_size
    peak -= 500 * config.microbatches + 100 * (model.remat == "full")
    return {"peak_bytes": peak, "fits": peak < limit, "seconds": None}

  limit = 0
  whole = planner(config, MODEL, mesh)["peak_bytes"]
  limit = whole  # one byte less than it takes
  found = suggestions.try_changes(config, MODEL, mesh, planner)
  assert [row["fits"] for row in found] == [True]
  assert found[0]["change"] == "--config.microbatches=8"
  limit = 0
  found = suggestions.try_changes(config, MODEL, mesh, planner)
  assert [row["change"] for row in found] == [
    "--config.microbatches=8",
    "--config.model.remat=full",
    "--config.mesh.data=1 --config.mesh.fsdp=2",
    "--config.base_dtype=int8",
    "--config.batch_size=8 --config.microbatches=4",
    "--config.batch_size=4 --config.microbatches=2",
  ]
  last_config, last_model, last_mesh = tried[-1]
  assert last_config.base_dtype == "int8" and last_model.remat == "full"
  assert dict(last_mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1}
  peaks = [row["peak_bytes"] for row in found]
  assert peaks[-1] < whole - base / 2
  assert "None of them fits" in "\n".join(plans._changes({"changes": found}))

"""Writes a trained policy or reward model for the tools that serve it.

  python -m perl_jax.main --config=configs/export.py --workdir=exports/policy \
      --config.init=runs/rl --config.format=merged --config.dtype=bfloat16
  python -m perl_jax.main --config=configs/export.py --workdir=exports/reward \
      --config.init=runs/reward --config.role=reward

`format="adapter"` writes a PEFT directory, "merged" a checkpoint of
`transformers`. An ensemble of reward models is written as the average of its
weights, if `combine` is "average". Seconds for small models; for large ones,
the time it takes to read and write the weights.
"""

from configs import common


def get_config(arg=None):
  if arg:
    raise ValueError(f"configs/export.py takes no argument, got {arg!r}.")
  config = common.ConfigDict({"task": "export"})
  config.init = ""
  config.checkpoint = "best"
  config.role = "policy"
  config.combine = ""
  config.format = "adapter"
  config.dtype = "float32"
  config.drop_bias = False
  config.shard_bytes = 5_000_000_000
  config.base = ""
  config.base_dtype = "float32"
  config.model = common.model("coffee_bar")
  config.mesh = common.mesh()
  return config

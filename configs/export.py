"""Writes a trained policy or reward model for the tools that serve it.

  python -m perl_jax.main --config=configs/export.py --workdir=exports/policy \
      --config.init=runs/rl --config.format=merged --config.dtype=bfloat16
  python -m perl_jax.main --config=configs/export.py --workdir=exports/reward \
      --config.init=runs/reward --config.role=reward
  python -m perl_jax.main --config=configs/export.py --workdir=exports/gguf \
      --config.init=runs/rl --config.format=gguf --config.gguf_model=q8_0

`format="adapter"` writes a PEFT directory, "merged" a checkpoint of
`transformers`, "gguf" files for llama.cpp and Ollama: the adapter and, where
`gguf_model` is a type ("f32", "f16", "bf16", "q8_0") and the base came from a
GGUF file, the whole model. An ensemble of reward models is written as the
average of its weights, if `combine` is "average". `checkpoint` is "best",
"last" or "auto": the one that the stage's summary speaks of. `push` is a
repository of the Hugging Face hub, "OWNER/NAME" or "NAME", that the directory
is pushed to, private unless `push_private=False` makes a new one public;
`base_id` is the name of the base there (docs/your-model.md). Seconds for small
models; for large ones, the time it takes to read and write the weights.
"""

from configs import common


def get_config(arg=None):
  if arg:
    raise ValueError(f"configs/export.py takes no argument, got {arg!r}.")
  config = common.ConfigDict({"task": "export"})
  config.init = ""
  config.checkpoint = "auto"
  config.role = "policy"
  config.combine = ""
  config.format = "adapter"
  config.gguf_model = ""
  config.dtype = "float32"
  config.drop_bias = False
  config.shard_bytes = 5_000_000_000
  config.push = ""
  config.push_private = True
  config.base_id = ""
  config.base = ""
  config.base_dtype = "float32"
  config.model = common.model("coffee_bar")
  config.model.dtype = "float32"
  config.mesh = common.mesh()
  return config

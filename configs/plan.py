"""Plans memory and time of stages on a mesh: compiles them, runs nothing.

  python -m perl_jax.main --config=configs/plan.py --workdir=runs/plan \
      --config.model=gemma_2b --config.plan.topology=v5e:4x4
  python -m perl_jax.main --config=configs/plan.py --workdir=runs/plan \
      --config.model=checkpoints/my-llama --config.plan.stages=sft,rl \
      --config.rl.batch_size=32 --config.mesh.tensor=4

`model` is a preset (perl_jax/models/presets.py), the directory of a Hugging
Face checkpoint or of an earlier run, or a GGUF file; no weights are read.
`plan.topology` names TPUs that need not be attached ("v4:2x2x1", "v5e:4x4",
"v5p:2x2x2", "v6e:4x4", "tpu7x:2x2x1"; it needs the package libtpu); "" is this
machine's devices. The fields at the top are the same for all stages; each has a
sub-config with the fields of its own command. `plan.full` compiles everything
once more with full tuning, and `plan.suggest` tries changes where a stage does
not fit. Evaluation runs the same programs on `eval.batch_size` rows and is not
planned separately. About five minutes for 2 B parameters on 2 cores, most of it
spent in the compiler. More: docs/planning.md.
"""

from configs import common, dpo, reward, rl, sft

PROMPT, RESPONSE = 1024, 128


def get_config(arg=None):
  if arg:
    raise ValueError(f"configs/plan.py takes no argument, got {arg!r}.")
  config = common.ConfigDict({"task": "plan"})
  config.model = "gemma_2b"
  config.vocab_size = 0  # that of the model
  config.compute = {
    "dtype": "bfloat16",
    "remat": "full",
    "attention": "auto",
    "scan_unroll": 1,
  }
  config.tuning = "lora"
  config.base_dtype = "bfloat16"
  config.lora = common.lora()
  config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
  config.plan = {
    "topology": "",
    "stages": "reward,rl",
    "full": True,
    "suggest": True,
  }
  for file in (sft, reward, rl, dpo):
    stage = file.get_config("jsonl")
    for field in ("model", "lora", "mesh", "tuning", "base", "base_dtype"):
      del stage[field]
    stage.batch_size = 64
    stage.microbatches = 1
    stage.data.max_len = PROMPT
    stage.data.prompt_len = PROMPT
    stage.data.response_len = RESPONSE
    config[stage.task] = stage
  return config

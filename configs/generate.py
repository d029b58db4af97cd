"""Writes a policy's responses to the prompts of a file.

  python -m perl_jax.main --config=configs/generate.py --workdir=runs/generate \
      --config.policy.init=runs/rl --config.data.path=prompts.jsonl
  python -m perl_jax.main --config=configs/generate.py --workdir=runs/best \
      --config.policy.init=runs/rl --config.data.path=prompts.jsonl \
      --config.samples_per_prompt=8 --config.reward.init=runs/reward

The policy is the workdir of any stage, or a model without one: `base` alone, or
its directory or GGUF file as `policy.init`. With a reward model or function
every response has its reward: `best.jsonl` has the best response to each prompt
as demonstrations, and `pairs.jsonl` the best and the worst. Some seconds for a
hundred prompts and a small model. See docs/generate-and-score.md.
"""

from configs import common


def get_config(arg=None):
  name = common.dataset(arg or "jsonl")
  config = common.stage("generate", name)
  config.policy = {"init": "", "checkpoint": "auto"}
  config.reward = common.rewards()
  config.reward.checkpoint = "auto"
  config.samples_per_prompt = 1
  config.sampling = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "greedy": False,
  }
  config.unfinished = "drop"
  config.batch_size = 1
  config.eval = {"rows": 0, "batch_size": 16, "samples": 64}
  return config

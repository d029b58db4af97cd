"""Trains the policy with LoRA on preference pairs directly, without RL: DPO.

  python -m perl_jax.main --config=configs/dpo.py --workdir=runs/dpo \
      --config.policy.init=runs/sft
  python -m perl_jax.main --config=configs/dpo.py:hh_rlhf \
      --config.data.dir=PATH --config.policy.init=runs/hh/sft \
      --workdir=runs/hh/dpo

`loss` is "sigmoid" (DPO) or "ipo". `beta` scales the implicit reward, and
`label_smoothing` is the assumed share of pairs whose labels are swapped.
The policy is evaluated on the prompts of configs/rl.py, sampled with the same
keys; `show_samples` of them are printed at each evaluation, answered by anchor
and policy. Results: docs/stages.md.
"""

from configs import common


def get_config(arg=None):
  name = common.dataset(arg)
  config = common.stage("dpo", name)
  config.policy = {"init": "", "checkpoint": "best"}
  config.loss = "sigmoid"
  config.beta = 0.1
  config.label_smoothing = 0.0
  config.optimizer = common.optimizer(warmup_steps=20)
  config.steps = 400
  config.batch_size = 32
  config.eval_every = 100
  config.log_every = 10
  config.eval = common.evaluation(rows=256, batch_size=128)
  config.show_samples = 0
  if name == "coffee_bar":
    # With 0.1 the pairs are still ranked correctly, but the policy forgets what
    # the anchor could do.
    config.beta = 1.0
    config.label_smoothing = 0.1  # the share of its pairs that are noise
    config.steps = 200
    config.microbatches = 4  # a microbatch fits the cache of a CPU
    config.eval.rows = 512
    config.eval.temperature = 1.0
  if name.startswith("taskmaster"):
    config.eval = common.evaluation(rows=384, batch_size=64)
  return config

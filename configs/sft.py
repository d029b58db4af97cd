"""Trains the anchor on demonstrations.

  python -m perl_jax.main --config=configs/sft.py --workdir=runs/sft
  python -m perl_jax.main --config=configs/sft.py:taskmaster_coffee \
      --config.data.dir=PATH --workdir=runs/coffee/sft

Without `base` and `policy.init` the backbone starts from random weights
(`model.preset`) and is trained whole. A pretrained one (`base`) gets an
adapter; `tuning="full"` trains it whole.
Results: docs/stages.md, docs/paper-data.md.
"""

from configs import common


def get_config(arg=None):
  name = common.dataset(arg)
  config = common.stage("sft", name)
  config.policy = {"init": "", "checkpoint": "best"}
  config.optimizer = common.optimizer(warmup_steps=50)
  config.steps = 450
  config.batch_size = 32
  config.eval_every = 150
  config.log_every = 10
  config.eval = common.evaluation(rows=256, batch_size=128, temperature=1.0)
  if name.startswith("taskmaster"):
    config.batch_size = 20
    config.steps = 252
    config.eval_every = 63
    config.eval = common.evaluation(rows=128, batch_size=32)
  # Of held-out dialogues; responses are sampled to `eval.rows` of them.
  config.eval.loss_rows = 2048
  return config

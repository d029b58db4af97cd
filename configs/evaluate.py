"""Evaluates a policy, a reward model, or both, on held-out rows.

  python -m perl_jax.main --config=configs/evaluate.py --workdir=runs/evaluate \
      --config.policy.init=runs/rl --config.reward.init=runs/reward

The policy is compared with the anchor that it started from, prompt by prompt.
`checkpoint` is "best", "last" or "auto": the one that the stage's summary
speaks of, and the best where it is judged on other rows than it was chosen on.
"""

from configs import common


def get_config(arg=None):
  name = common.dataset(arg)
  config = common.stage("evaluate", name)
  config.policy = {"init": "", "checkpoint": "auto"}
  config.reward = common.rewards()
  config.reward.checkpoint = "auto"
  config.loss = "pointwise" if name.startswith("taskmaster") else "pairwise"
  config.batch_size = 1
  config.eval = common.evaluation(rows=512, batch_size=128)
  if name == "coffee_bar":
    config.eval.temperature = 1.0
  return config

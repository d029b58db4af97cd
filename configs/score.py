"""Scores the rows of a file with a reward model.

  python -m perl_jax.main --config=configs/score.py --workdir=runs/score \
      --config.reward.init=runs/reward --config.data.path=rows.jsonl

Rows are pairs, lists of chosen and rejected responses, single responses, or
conversations. `scores.jsonl` has every row with its score, in their order. Of
pairs the summary has the accuracy, by `subset` too; of files of RewardBench (1
and 2) and RM-Bench, what these benchmarks define. `field` is what the score is
called. Takes seconds for some hundred rows. See docs/generate-and-score.md.
"""

from configs import common


def get_config(arg=None):
  name = common.dataset(arg or "jsonl")
  config = common.stage("score", name)
  config.reward = common.rewards()
  config.reward.checkpoint = "auto"
  config.field = "score"
  config.batch_size = 1
  config.eval = {"rows": 0, "batch_size": 32}
  return config

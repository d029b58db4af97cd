"""Trains a reward model with LoRA, pairwise or pointwise.

  python -m perl_jax.main --config=configs/reward.py --workdir=runs/reward \
      --config.reward.init=runs/sft
  python -m perl_jax.main --config=configs/reward.py:taskmaster_coffee \
      --config.data.dir=PATH --config.reward.init=runs/coffee/sft \
      --config.data.fold=0 --workdir=runs/coffee/reward

`loss` is "pairwise" for chosen / rejected pairs and "pointwise" for labels.
`head` is "scalar", a linear map of the hidden state after the last token, or
"likelihood", which also sees how likely the response is. `score_at` says which
token is the last: "template" is the one that the chat template ends a
conversation with, as other tools read reward models; "turn" is the stop token
of the response, which may be a token earlier. A new head is fitted to what the
frozen model says of `probe_rows` training rows before the first step; with 0 it
begins at zeros. `ensemble` is the number of models to train at once, each on
`member_share` of the rows; with half of the rows, four models cost about as
much as two.
Results: docs/stages.md, docs/paper-data.md.
"""

from configs import common


def get_config(arg=None):
  name = common.dataset(arg)
  config = common.stage("reward", name)
  config.reward = {"init": "", "checkpoint": "best"}
  config.ensemble = 1
  config.member_share = 0.5
  config.head = "scalar"
  config.score_at = "template"
  config.probe_rows = 2048
  config.loss = "pointwise" if name.startswith("taskmaster") else "pairwise"
  config.optimizer = common.optimizer(warmup_steps=20)
  config.steps = 600
  config.batch_size = 32
  config.eval_every = 150
  config.log_every = 10
  config.eval = common.evaluation(rows=2048)
  config.report_checkpoint = "best"
  if name == "coffee_bar":
    config.microbatches = 4  # a microbatch fits the cache of a CPU
    # Its anchors know little of what is preferred: 67% right before 600 steps,
    # 91% after them, with a head of zeros as well.
    config.probe_rows = 0
  if name.startswith("taskmaster"):
    # Few labels: the likelihood of a turn carries what the anchor knows.
    config.head = "likelihood"
    config.lora.dropout = 0.1
    config.steps = 96
    config.eval_every = 32
    # Choosing a checkpoint by the rows that are reported would be optimistic.
    config.report_checkpoint = "last"
  if name == "taskmaster_coffee":
    config.data.buckets = (64, 96, 128, 192)
  return config

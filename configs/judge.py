"""Judges a policy against what it was trained from, or against another run.

  python -m perl_jax.main --config=configs/judge.py --workdir=runs/judge \
      --config.policy.init=runs/rl

Both answer the same held-out prompts, and judges say whose answer is better, in
both orders. `against.init` is "anchor", "reference" (the responses in the data)
or the workdir of another run. `judges` is one or several,
'("gold", "reward:runs/reward_other")': a check of the data set (gold),
`reward:WORKDIR`, a function (`package.module:function` or
`./FILE.py:function`), or `endpoint`, a language model behind a server with
OpenAI's interface, `endpoint:MODEL` where there are several. Its key is taken
from the environment variable that `endpoint.key_variable` names. Takes as long
as an evaluation and the judges together. docs/judging.md
"""

from configs import common


def get_config(arg=None):
  name = common.dataset(arg)
  config = common.stage("judge", name)
  config.policy = {"init": "", "checkpoint": "auto"}
  config.against = {"init": "anchor", "checkpoint": "auto"}
  config.judges = ""
  config.update(common.judging())
  config.bootstrap = {"draws": 1000, "seed": 0}
  config.batch_size = 1
  config.eval = common.evaluation(rows=512, batch_size=128)
  if name == "coffee_bar":
    config.judges = "gold"
    config.eval.temperature = 1.0
  if name.startswith("taskmaster"):
    config.judges = "exact_match"
  return config

"""sft -> reward -> rl -> evaluate -> report, in one run and one workdir.

  python -m perl_jax.main --config=configs/pipeline.py --workdir=runs/pipeline
  python -m perl_jax.main --config=configs/pipeline.py:taskmaster_coffee \
      --workdir=runs/coffee --config.data.dir=PATH

Each stage has a sub-config (`--config.rl.beta=0.1`) and a workdir of its own
below the run's. `base`, `seed`, `trackers` and the fields of `data` here reach
all stages. `conversations` is how many held-out prompts are printed at the end,
with the responses of anchor and policy. Without a sub-config `sft` the other
stages start from `base`: so it is with hh_rlhf and taskmaster_ticketing, which
have no demonstrations, and `del config.sft` does it in a config of your own.
There a sub-config `judge`, of configs/judge.py, has the policy judged at the
end; with `judge_reward` beside it, of configs/reward.py with a `train_folds` of
its own, by a second reward model too. configs/smollm2.py has both.
"""

from configs import common, evaluate, reward, rl, sft


def get_config(arg=None):
  name = common.dataset(arg)
  config = common.ConfigDict({"task": "pipeline", "seed": 0})
  config.base = ""
  config.conversations = 0
  config.trackers = ()
  config.tracking = common.tracking()
  config.data = {
    "dir": "",
    "path": "",
    "validation_path": "",
    "cache": "",
    "tokenizer": "",
    "ignore": (),
    "columns": "",
    "margin": 0.0,
    "threshold": "",
    "preview": 0,
  }
  if name not in ("hh_rlhf", "taskmaster_ticketing"):
    config.sft = sft.get_config(name)
  config.reward = reward.get_config(name)
  config.rl = rl.get_config(name)
  config.evaluate = evaluate.get_config(name)
  return config

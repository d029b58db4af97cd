"""Measures what was trained on held-out rows: a policy, a reward model, both.

The policy is compared with the anchor that it started from, on the same prompts
with the same keys. Works for the checkpoint of any stage.
"""

import dataclasses
import time
from pathlib import Path

import jax

from perl_jax import hosts, sharding
from perl_jax import metrics as metrics_lib
from perl_jax.data import sources
from perl_jax.tasks import (
  casting,
  inputs,
  judging,
  rewarding,
  setup,
  stage,
)
from perl_jax.tasks import reward as reward_task
from perl_jax.tasks import start as start_lib
from perl_jax.tasks.compiled import Compiled
from perl_jax.tasks.start import Outside, Start


def run(config: setup.Config, workdir: str | Path) -> dict[str, float]:
  """Writes summary, samples and scores; returns the summary."""
  started = time.perf_counter()
  if not config.policy.init and not config.reward.init:
    raise ValueError(
      "Nothing to evaluate: give config.policy.init, config.reward.init or"
      " both."
    )
  reward_task.require_loss(config.loss)
  rewarding.check(config)
  mesh = setup.make_mesh(config)
  outside = setup.outside(config, mesh)
  summary = {}
  with jax.set_mesh(mesh), setup.preparing(config, workdir) as workdir:
    policy = anchor = reward = reward_start = None
    if config.policy.init:
      policy = stage.load(
        config.policy.init,
        config.policy.checkpoint,
        "policy",
        "policy.init",
        outside=outside,
      )
      inputs.require_room(config, policy.config.max_len)
      anchor = load_anchor(config, policy, outside)
    if config.reward.init:
      reward_start = stage.load(
        config.reward.init,
        config.reward.checkpoint,
        "reward",
        "reward.init",
        known=policy,
        outside=outside,
      )
      reward_start = casting.as_combined(reward_start, config)
      reward = rewarding.place_model(
        mesh, casting.as_trained(reward_start, None), {}
      )
    with metrics_lib.Writer(
      workdir,
      total_steps=1,
      name="evaluate",
      enabled=hosts.is_primary(),
    ) as writer:
      if reward is not None:
        found, rows = judge_reward(config, mesh, reward_start, reward)
        summary |= {f"reward_model.{k}": v for k, v in found.items()}
        if hosts.is_primary():
          metrics_lib.write_jsonl(workdir / reward_task.SCORES, rows)
      if policy is not None:
        found, samples = judge_policy(
          config, mesh, policy, anchor, reward_start, reward
        )
        summary |= found
        writer.samples(0, samples[: config.eval.samples])
      summary["seconds"] = time.perf_counter() - started
      writer.summary(summary)
      writer.write(1, summary)
  return summary


def load_anchor(config, policy: Start, outside: Outside) -> Start:
  """What a policy went on from, or the policy itself if that is not known."""
  workdir = Path(config.policy.init)
  if not (workdir / stage.MODEL_FILE).exists():
    return policy  # made by others: nothing says what it went on from
  described = stage.read_model(workdir, "policy.init")
  init, base = described["init"], described["base"]
  outside = dataclasses.replace(outside, dtype=base["dtype"])
  if not init["init"] and base["kind"] == "huggingface":
    return start_lib.checkpoint_start(base["path"], outside, policy)
  if not init["init"]:
    return policy
  return stage.load(
    workdir / init["init"],
    init["checkpoint"],
    "policy",
    "policy.init",
    known=policy,
    outside=outside,
  )


def place(mesh, cast: casting.Cast):
  """(backbone, role on the mesh) of a role that is only run."""
  return cast.backbone, judging.Role(
    sharding.place(mesh, cast.trainable),
    sharding.place(mesh, cast.own_base, share=True),
  )


def judge_reward(config, mesh, start, reward):
  """Quality of the reward model on held-out rated rows."""
  tokenization = inputs.load_tokenizer(start)
  data = reward_task.read(config, tokenization, train=False)
  score = Compiled(
    reward_task.make_scorer(reward.backbone, data.max_targets, reward.members),
    name="reward scores",
  )
  rows = reward_task.score_rows(
    score,
    reward.trainable,
    reward.frozen,
    data,
    config.loss,
    mesh,
    combine=config.reward.combine,
    std_weight=config.reward.std_weight,
  )
  return reward_task.quality(rows), rows


def judge_policy(config, mesh, policy, anchor, reward_start, reward):
  """Policy and anchor on the same held-out prompts."""
  if reward_start is not None:
    casting.require_same_tokenizer(policy.tokenizer, reward_start.tokenizer)
  tokenization = inputs.load_tokenizer(policy)
  data = inputs.prompts(config, tokenization, train=False)
  policy_backbone, policy_role = place(mesh, casting.as_trained(policy, None))
  anchor_backbone, anchor_role = place(mesh, casting.as_trained(anchor, None))
  # One engine serves both: a tree without adapters runs at rank 0.
  backbone = policy_backbone if policy.lora else anchor_backbone
  engine = judging.Engine(
    backbone,
    casting.sampling_spec(
      config,
      tokenization,
      temperature=config.eval.temperature,
      greedy=config.eval.greedy,
    ),
    None if reward is None else reward.backbone,
    1 if reward is None else reward.members,
  )
  judge = judging.PolicyJudge(
    engine,
    mesh=mesh,
    batches=data.validation,
    rows=data.rows,
    tokenization=tokenization,
    checker=sources.checker(config.data.name),
    key=jax.random.fold_in(jax.random.key(config.seed), 6),
  )
  function = rewarding.function_of(config, data.rows)
  rewarder = None
  if reward is not None or function is not None:
    rewarder = rewarding.Rewarder(
      reward,
      engine.rewards,
      function,
      tokenization=tokenization,
      mesh=mesh,
      **rewarding.options(config),
    )
  before, before_rows = judge(anchor_role, anchor_role, rewarder)
  after, after_rows = judge(policy_role, anchor_role, rewarder)
  summary = {}
  for name, value in after.items():
    summary[f"policy.{name}"] = value
    if not name.startswith("kl"):
      summary[f"anchor.{name}"] = before[name]
  summary["n"] = len(after_rows)
  return summary, judging.side_by_side(before_rows, after_rows)

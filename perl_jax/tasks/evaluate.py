"""Measures what was trained on held-out rows: a policy, a reward model, both.

The policy is compared with the anchor that it started from, on the same prompts
with the same keys. Works for the checkpoint of any stage.
"""

import time
from pathlib import Path

import jax

from perl_jax import files, hosts, sharding
from perl_jax import metrics as metrics_lib
from perl_jax.data.sources import registry
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.evaluation import reward_model as reward_evaluation
from perl_jax.tasks.initial import model, restore
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.rollouts import rewards
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import begin, inputs
from perl_jax.tasks.training import workdir as workdir_lib
from perl_jax.tasks.training.compiled import Compiled


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Writes summary, samples and scores; returns the summary."""
  started = time.perf_counter()
  if not config.policy.init and not config.reward.init:
    raise ValueError(
      "Nothing to evaluate: give config.policy.init, config.reward.init or"
      " both."
    )
  inputs.require_loss(config.loss)
  rl_settings.check_reward(config)
  mesh = shared.make_mesh(config)
  outside = model.outside(config, mesh)
  summary = {}
  with jax.set_mesh(mesh), workdir_lib.preparing(config, workdir) as workdir:
    policy = anchor = reward = reward_start = None
    if config.policy.init:
      policy = restore.load(
        config.policy.init,
        config.policy.checkpoint,
        "policy",
        "policy.init",
        outside=outside,
      )
      inputs.require_room(config, policy.config.max_len)
      anchor = restore.load_anchor(config, policy, outside)
    if config.reward.init:
      reward_start = restore.load(
        config.reward.init,
        config.reward.checkpoint,
        "reward",
        "reward.init",
        known=policy,
        outside=outside,
      )
      reward_start = initial_roles.as_combined(reward_start, config)
      reward = rewards.place_model(
        mesh, initial_roles.as_trained(reward_start, None), {}
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
          files.write_jsonl(workdir / reward_evaluation.SCORES, rows)
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


def place(mesh, cast: initial_roles.Cast):
  """(backbone, role on the mesh) of a role that is only run."""
  return cast.backbone, engine_lib.Role(
    sharding.place(mesh, cast.trainable),
    sharding.place(mesh, cast.own_base, share=True),
  )


def judge_reward(config, mesh, start, reward):
  """Quality of the reward model on held-out rated rows."""
  tokenization = begin.load_tokenizer(start)
  data = inputs.read(config, tokenization, train=False)
  score = Compiled(
    reward_evaluation.make_scorer(
      reward.backbone, data.max_targets, reward.members
    ),
    name="reward scores",
  )
  rows = reward_evaluation.score_rows(
    score,
    reward.trainable,
    reward.frozen,
    data,
    config.loss,
    mesh,
    combine=config.reward.combine,
    std_weight=config.reward.std_weight,
  )
  return reward_evaluation.quality(rows), rows


def judge_policy(config, mesh, policy, anchor, reward_start, reward):
  """Policy and anchor on the same held-out prompts."""
  if reward_start is not None:
    initial_roles.require_same_tokenizer(
      policy.tokenizer, reward_start.tokenizer
    )
  tokenization = begin.load_tokenizer(policy)
  data = inputs.prompts(config, tokenization, train=False)
  policy_backbone, policy_role = place(
    mesh, initial_roles.as_trained(policy, None)
  )
  anchor_backbone, anchor_role = place(
    mesh, initial_roles.as_trained(anchor, None)
  )
  # One engine serves both: a tree without adapters runs at rank 0.
  backbone = policy_backbone if policy.lora else anchor_backbone
  engine = engine_lib.Engine(
    backbone,
    shared.sampling_spec(
      config,
      tokenization,
      temperature=config.eval.temperature,
      greedy=config.eval.greedy,
    ),
    None if reward is None else reward.backbone,
    1 if reward is None else reward.members,
  )
  judge = policy_evaluation.PolicyJudge(
    engine,
    mesh=mesh,
    batches=data.validation,
    rows=data.rows,
    tokenization=tokenization,
    checker=registry.checker(config.data.name),
    key=jax.random.fold_in(jax.random.key(config.seed), 6),
  )
  function = rewards.function_of(config, data.rows)
  rewarder = None
  if reward is not None or function is not None:
    rewarder = rewards.Rewarder(
      reward,
      engine.rewards,
      function,
      tokenization=tokenization,
      mesh=mesh,
      **rl_settings.reward_options(config),
    )
  before, before_rows = judge(anchor_role, anchor_role, rewarder)
  after, after_rows = judge(policy_role, anchor_role, rewarder)
  summary = {}
  for name, value in after.items():
    summary[f"policy.{name}"] = value
    if not name.startswith("kl"):
      summary[f"anchor.{name}"] = before[name]
  summary["n"] = len(after_rows)
  return summary, policy_evaluation.side_by_side(before_rows, after_rows)

"""Evaluates what was trained on held-out rows: a policy, a reward model, both.

The policy is compared with the anchor that it started from, on the same prompts
with the same keys. Works for the checkpoint of any stage.
"""

import time
from pathlib import Path
from typing import NamedTuple

import jax

from perl_jax import files, hosts
from perl_jax import metrics as metrics_lib
from perl_jax.tasks.evaluation import again, reward_model
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.evaluation.so_far import Part, SoFar
from perl_jax.tasks.initial import model, restore
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.rollouts import rewards
from perl_jax.tasks.rollouts.engine import Engine
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared, streams
from perl_jax.tasks.training import batching, inputs, reported, standing


class Read(NamedTuple):
  """What an evaluation reads, before anything is put on the devices.

  Attributes:
    starts: Models by role, "policy" with its "anchor", "reward", or all.
    steps: Entries of the summary: the steps of their checkpoints.
    scored: Rows that the reward model is measured on; None without one.
    prompts: Prompts for the policy; None without one.
    stands_on: What all of it is.
  """

  starts: dict[str, model.Start]
  steps: dict[str, int]
  scored: batching.Inputs | None
  prompts: batching.Inputs | None
  stands_on: standing.Standing


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Writes summary, samples and scores; returns the summary.

  Where they are there, made from the same models and rows, nothing is changed.
  """
  started = time.perf_counter()
  if not config.policy.init and not config.reward.init:
    raise ValueError(
      "Nothing to evaluate: give config.policy.init, config.reward.init or"
      " both."
    )
  reward_settings.loss_of(config)
  rl_settings.check_reward(config)
  mesh, workdir = shared.make_mesh(config), Path(workdir).absolute()
  with jax.set_mesh(mesh):
    return again.made_once(
      config,
      workdir,
      lambda: read(config, mesh),
      lambda found, so_far: _evaluate(
        config, mesh, workdir, found, so_far, started
      ),
    )


def _evaluate(
  config, mesh, workdir, found: Read, so_far: SoFar, started
) -> dict[str, float]:
  """Measures what was read; `started` is `time.perf_counter()` at the start."""
  placed = initial_roles.place(
    mesh, {name: start.role for name, start in found.starts.items()}
  )
  summary = {}
  with metrics_lib.Writer(
    workdir,
    total_steps=1,
    name="evaluate",
    enabled=hosts.is_primary(),
  ) as writer:
    if found.scored is not None:
      reward = found.starts["reward"]
      quality, rows = evaluate_reward(
        config,
        mesh,
        reward,
        placed["reward"],
        found.scored,
        so_far.part("scores"),
      )
      summary |= {f"reward_model.{k}": v for k, v in quality.items()}
      if hosts.is_primary():
        files.write_jsonl(workdir / reward_model.SCORES, rows)
    if found.prompts is not None:
      tokenization = found.starts["policy"].load_tokenizer()
      of_policy, samples = evaluate_policy(
        config, mesh, tokenization, placed, found.prompts, so_far
      )
      summary |= of_policy
      writer.samples(0, samples[: config.eval.samples])
    summary |= found.steps
    summary["seconds"] = time.perf_counter() - started
    writer.write(1, summary)
    again.note(workdir, found.stands_on)
    writer.summary(summary)
  return summary


def read(config: shared.Config, mesh: jax.sharding.Mesh) -> Read:
  """Reads the models and the rows of a config."""
  chosen = chosen_checkpoints(config)
  policy, anchor, reward = load(config, mesh, chosen)
  given = {"policy": policy, "anchor": anchor, "reward": reward}
  starts = {name: start for name, start in given.items() if start is not None}
  scored = prompts = None
  if reward is not None:
    kind = reward_settings.loss_of(config).data
    scored = inputs.read(
      config,
      reward.load_tokenizer(),
      kind,
      train=False,
      notes=True,
      closed=reward_model.is_closed(reward),
      packing=reward_model.packing_of(reward),
    )
  if policy is not None:
    tokenization = policy.load_tokenizer()
    prompts = inputs.read(
      config, tokenization, "prompts", train=False, notes=True
    )
  rows = [data for data in (scored, prompts) if data is not None]
  stands_on = standing.of_evaluation(config, starts, rows)
  steps = reported.steps_of(
    {
      "policy": (config.policy.init, chosen["policy"]),
      "reward_model": (config.reward.init, chosen["reward"]),
    }
  )
  return Read(starts, steps, scored, prompts, stands_on)


def chosen_checkpoints(config) -> dict[str, str]:
  """The checkpoint of the policy and of the reward model, "best" or "last"."""
  data = config.data.to_dict()
  return {
    name: reported.checkpoint_of(role.init, role.checkpoint, data)
    for name, role in (("policy", config.policy), ("reward", config.reward))
  }


def load(config, mesh, chosen):
  """(policy, its anchor, reward model) of a config; None for what it lacks."""
  options = model.read_options(config, mesh)
  policy = anchor = reward = None
  if config.policy.init:
    policy = restore.load(
      config.policy.init,
      chosen["policy"],
      "policy",
      "policy.init",
      options=options,
    )
    inputs.require_room(config, policy.config.max_len)
    anchor = restore.load_anchor(config, policy, options)
    standing.require_anchor(config.policy.init, policy, anchor)
  if config.reward.init:
    reward = initial_roles.read_reward(config, chosen["reward"], mesh, policy)
  return policy, anchor, reward


def evaluate_reward(config, mesh, reward, role, data, so_far: Part):
  """(metrics, scored rows) of a reward model on held-out rows.

  `role` is that of `reward` on the mesh.
  """
  rows = reward_model.score_rows(
    reward_model.compiled_scorer(reward, role, data.max_targets),
    role,
    data,
    mesh,
    combine=config.reward.combine,
    std_weight=config.reward.std_weight,
    so_far=so_far,
  )
  return reward_model.quality(rows), rows


def evaluate_policy(config, mesh, tokenization, placed, data, so_far: SoFar):
  """(metrics, samples side by side) of policy and anchor on held-out prompts.

  `placed` holds the roles on the mesh, by name.
  """
  policy, anchor = placed["policy"], placed["anchor"]
  reward = placed.get("reward")
  # One engine serves both: a tree without adapters runs at rank 0.
  backbone = policy.backbone if policy.adapter else anchor.backbone
  engine = Engine(
    backbone, shared.evaluation_spec(config, tokenization), reward
  )
  evaluate = policy_evaluation.evaluator(
    config,
    engine,
    mesh=mesh,
    data=data,
    tokenization=tokenization,
    key=streams.key_of(config.seed, streams.Stream.EVALUATE),
  )
  functions = rewards.functions_of(config, data.rows)
  rewarder = None
  if reward is not None or functions:
    rewarder = rewards.make_rewarder(
      config, mesh, tokenization, engine, reward, functions
    )
  before, before_rows = evaluate(
    anchor, anchor, rewarder, so_far.part("anchor")
  )
  after, after_rows = evaluate(policy, anchor, rewarder, so_far.part("policy"))
  summary = {}
  for name, value in after.items():
    summary[f"policy.{name}"] = value
    if not name.startswith("kl"):
      summary[f"anchor.{name}"] = before[name]
  summary["n"] = len(after_rows)
  return summary, policy_evaluation.side_by_side(before_rows, after_rows)

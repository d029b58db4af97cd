"""Writes a policy's responses to the prompts of a file, the best apart."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from perl_jax import files, hosts, roles, sampling
from perl_jax import metrics as metrics_lib
from perl_jax.data import records
from perl_jax.data.sources import registry
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks.evaluation import again, generation
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.evaluation.so_far import NOTHING, Part, SoFar
from perl_jax.tasks.initial import model, restore
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.rollouts import rewards
from perl_jax.tasks.rollouts.engine import Engine
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared, streams
from perl_jax.tasks.training import batching, inputs, reported, standing, whole

RESPONSES, BEST, PAIRS = "responses.jsonl", "best.jsonl", "pairs.jsonl"


class Read(NamedTuple):
  """What is read before anything is sampled.

  Attributes:
    policy: The policy.
    reward: The reward model; None without one.
    steps: Entries of the summary: the steps of their checkpoints.
    prompts: The prompts.
    unusable: Number of rows of the file that are not among them.
    stands_on: What all of it is.
  """

  policy: Start
  reward: Start | None
  steps: dict[str, int]
  prompts: batching.Inputs
  unusable: int
  stands_on: standing.Standing


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Writes responses.jsonl and summary.json; returns the summary.

  With rewards there are best.jsonl and pairs.jsonl too, where they have a row.
  Where they are there, made from the same models and rows, nothing is changed.
  """
  started = time.perf_counter()
  check(config)
  # Bad rows are refused before a model is read.
  splits = whole.load(config, "prompts")
  mesh, workdir = shared.make_mesh(config), Path(workdir).absolute()
  with jax.set_mesh(mesh):
    return again.made_once(
      config,
      workdir,
      lambda: read(config, mesh, splits),
      lambda found, so_far: _generate(
        config, mesh, workdir, found, so_far, started
      ),
    )


def _generate(
  config, mesh, workdir, found: Read, so_far: SoFar, started
) -> dict[str, float]:
  """Answers what was read; `started` is `time.perf_counter()` at the start."""
  summary, answered = generate(config, mesh, found, so_far.part("responses"))
  made = files_of(answered, config.unfinished)
  dropped = found.unusable + len(found.prompts.rows) - len(answered)
  summary |= counts_of(answered, made) | {"rows_dropped": dropped}
  summary |= found.steps
  summary["seconds"] = time.perf_counter() - started
  if hosts.is_primary():
    for name, rows in made.items():
      (workdir / name).unlink(missing_ok=True)  # of an earlier run
      if rows:
        files.write_jsonl(workdir / name, rows)
        logging.info("generate: %s: %d rows", workdir / name, len(rows))
  with metrics_lib.Writer(
    workdir, total_steps=1, name="generate", enabled=hosts.is_primary()
  ) as writer:
    shown = answered[: config.eval.samples]
    writer.samples(0, [generation.sample(each) for each in shown])
    writer.write(1, summary)
    again.note(workdir, found.stands_on)
    writer.summary(summary)
  return summary


def check(config: shared.Config) -> None:
  """Checks the fields of a config.

  Raises:
    ValueError: Names the field and the way out.
  """
  if not config.policy.init and not config.base:
    raise ValueError(
      "config.policy.init and config.base are empty: give the workdir of a"
      " stage, --config.policy.init=PATH, or a model, --config.base=PATH."
    )
  if config.unfinished not in generation.UNFINISHED:
    raise ValueError(
      f"config.unfinished={config.unfinished!r}: choose one of"
      f" {', '.join(generation.UNFINISHED)}."
    )
  count = config.samples_per_prompt
  if config.sampling.greedy and count > 1:
    raise ValueError(
      f"config.samples_per_prompt={count} with config.sampling.greedy=True:"
      " all responses to a prompt would be equal. Set one of them back."
    )
  rl_settings.check_reward(config)


def read(
  config: shared.Config, mesh: jax.sharding.Mesh, splits: records.Splits
) -> Read:
  """Reads the models of a config, and encodes the prompts for them."""
  chosen = {
    name: reported.checkpoint_of(
      config[name].init, config[name].checkpoint, config.data.to_dict()
    )
    for name in ("policy", "reward")
  }
  policy, reward = load(config, mesh, chosen)
  prompts = inputs.read(
    config, policy.load_tokenizer(), "prompts", train=False, splits=splits
  )
  inputs.log_counts(prompts.counts)
  starts = {"policy": policy} | ({"reward": reward} if reward else {})
  steps = reported.steps_of(
    {
      "policy": (config.policy.init, chosen["policy"]),
      "reward_model": (config.reward.init, chosen["reward"]),
    }
  )
  return Read(
    policy,
    reward,
    steps,
    prompts,
    splits.counts.get("unusable_dropped", 0),
    standing.of_evaluation(config, starts, [prompts]),
  )


def load(
  config: shared.Config,
  mesh: jax.sharding.Mesh,
  chosen: Mapping[str, str],
) -> tuple[Start, Start | None]:
  """(policy, reward model or None) of a config, the checkpoints of `chosen`.

  Raises:
    ValueError: One of them is none, they have different tokenizers, or a
      sequence is longer than they take.
  """
  options = model.read_options(config, mesh)
  if config.policy.init:
    policy = restore.load(
      config.policy.init,
      chosen["policy"],
      "policy",
      "policy.init",
      options=options,
    )
  else:
    policy = restore.load_base(config.base, "policy", options)
  _require_room(config, policy, "policy")
  if not config.reward.init:
    return policy, None
  reward = initial_roles.read_reward(config, chosen["reward"], mesh, policy)
  _require_room(config, reward, "reward model")
  return policy, reward


def _require_room(config: shared.Config, start: Start, what: str) -> None:
  data, most = config.data, start.config.max_len
  if data.prompt_len + data.response_len > most:
    response = min(data.response_len, most // 3)
    raise ValueError(
      f"config.data.prompt_len={data.prompt_len} and data.response_len="
      f"{data.response_len} make {data.prompt_len + data.response_len} tokens,"
      f" but the {what} takes {most}. Lower them, for example"
      f" --config.data.prompt_len={most - response}"
      f" --config.data.response_len={response}."
    )


def spec_of(
  config: shared.Config, tokenization: tokenization_lib.Tokenization
) -> sampling.SamplingSpec:
  """How responses are sampled."""
  return sampling.SamplingSpec(
    response_len=config.data.response_len,
    stop_ids=tokenization.stop_ids,
    pad_id=tokenization.pad_id,
    group=config.samples_per_prompt,
    **config.sampling.to_dict(),
  )


def generate(
  config: shared.Config,
  mesh: jax.sharding.Mesh,
  found: Read,
  so_far: Part = NOTHING,
) -> tuple[dict[str, float], list[generation.Responses]]:
  """(means over the responses, responses by prompt)."""
  tokenization, data = found.policy.load_tokenizer(), found.prompts
  given = {"policy": found.policy.role}
  if found.reward is not None:
    given["reward"] = found.reward.role
  placed: dict[str, roles.Role] = initial_roles.place(mesh, given)
  scorer = placed.get("reward")
  engine = Engine(
    placed["policy"].backbone, spec_of(config, tokenization), scorer
  )
  functions = rewards.functions_of(config, data.rows)
  rewarder = None
  if scorer is not None or functions:
    rewarder = rewards.make_rewarder(
      config, mesh, tokenization, engine, scorer, functions
    )
  evaluate = policy_evaluation.PolicyEvaluator(
    engine,
    mesh=mesh,
    batches=lambda: data.held_out("answering prompts"),
    rows=data.rows,
    tokenization=tokenization,
    checker=registry.checker(config.data.name),
    key=streams.key_of(config.seed, streams.Stream.GENERATE),
  )
  metrics, rows = evaluate(placed["policy"], None, rewarder, so_far)
  generation.require_finite(rows)
  metrics["logprob"] = float(np.mean([row["logprob"] for row in rows]))
  return metrics, generation.grouped(rows, data.rows)


def files_of(
  found: Sequence[generation.Responses], unfinished: str
) -> dict[str, list[dict[str, Any]]]:
  """Rows of each file, by its name; without rewards of responses.jsonl alone.

  The log says where a prompt has no response to learn from.
  """
  made = {
    RESPONSES: [row for each in found for row in generation.written(each)]
  }
  made |= {BEST: [], PAIRS: []}
  if not found[0].has_rewards:
    return made
  for name, row_of in (
    (BEST, generation.best_row),
    (PAIRS, generation.pair_row),
  ):
    rows = (row_of(each, unfinished) for each in found)
    made[name] = [row for row in rows if row is not None]
  if len(made[BEST]) < len(found):
    logging.warning(
      "generate: %d of %d prompts are not in %s: all their responses are empty"
      " or were cut at data.response_len. Raise it, or keep what was cut with"
      " --config.unfinished=keep.",
      len(found) - len(made[BEST]),
      len(found),
      BEST,
    )
  return made


def counts_of(
  found: Sequence[generation.Responses],
  made: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
  """Entries of the summary: how many there are, and the best of n."""
  counts = {"n": len(found), "responses": len(made[RESPONSES])}
  if not found[0].has_rewards:
    return counts
  best = [each.rows[each.best]["reward"] for each in found]
  return counts | {
    "best_reward": float(np.mean(best)),
    "best_rows": len(made[BEST]),
    "pair_rows": len(made[PAIRS]),
  }

"""Evaluates a policy on held-out prompts: reward, KL, length, correctness."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from perl_jax import files, hosts, roles, sharding
from perl_jax.data import records
from perl_jax.data.sources import registry
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.objectives import kl as kl_lib
from perl_jax.tasks.evaluation import so_far as so_far_lib
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.rollouts import metrics as rollout_metrics
from perl_jax.tasks.rollouts import rewards
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, together, watch


class PolicyEvaluator:
  """Samples a policy on fixed prompts and measures the responses.

  The same key is used at each call, so that two equal policies give the same
  responses and a difference is one of the policies.
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    *,
    mesh: jax.sharding.Mesh,
    batches: Callable[[], Any],
    rows: list[records.Prompt],
    tokenization: tokenization_lib.Tokenization,
    checker: Callable[[records.Prompt, str], dict[str, float]],
    key: jax.Array,
  ):
    """Binds what no call changes; `evaluator` does it from a config.

    Args:
      engine: Compiled functions.
      mesh: Mesh that batches are placed on.
      batches: Makes a pass over the prompts, in `PromptBatch`es.
      rows: Records that a batch's `index` points into.
      tokenization: Decodes responses.
      checker: The data set's own judgements of a response, by name, in [0, 1].
      key: Key of the random draws.
    """
    self._engine = engine
    self._mesh = mesh
    self._batches = batches
    self._rows = rows
    self._tokenization = tokenization
    self._checker = checker
    self._key = key

  def __call__(
    self,
    policy: roles.Role,
    anchor: roles.Role | None,
    reward: rewards.Rewarder | None,
    so_far: so_far_lib.Part = so_far_lib.NOTHING,
  ) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(metrics, one record per response in the order of the prompts).

    Metrics are means over the responses: `reward` and its parts
    (`rewards.part_names`); `kl`, sum_t (log pi - log pi_anchor) on the policy's
    samples in nats (k1), exactly 0 for equal policies; `kl_per_token` and
    `entropy` in nats; `length` in tokens; `stop_rate`; `repetition`, the share
    of 4-grams that occurred before in the response; and the judgements of the
    data set's checker.

    Args:
      policy: The policy, on the mesh.
      anchor: The anchor, on the mesh; None measures no KL and no entropy. The
        policy itself, the same object, is scored once, and its KL is 0.
      reward: Computes rewards, or None. The first call with it has to be of the
        anchor, if there is one: its responses centre the members of an
        ensemble.
      so_far: What an earlier start of this process has measured, and what takes
        more.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for batch in self._batches():
      prompts = sharding.place_batch(self._mesh, batch)
      index = hosts.to_host(prompts.index)
      found |= so_far.batch(
        index[index >= 0],
        lambda batch=batch, prompts=prompts: self._evaluate_batch(
          batch, prompts, policy, anchor, reward
        ),
        self._read,
      )
    rows = [row for index in sorted(found) for row in found[index]]
    if reward is not None:
      parts = reward.finalise([row.pop("measured") for row in rows])
      rows = [row | found for row, found in zip(rows, parts, strict=True)]
    return summarise(rows), rows

  def _evaluate_batch(self, batch, prompts, policy, anchor, reward):
    """What is measured of the responses to a batch, by the prompt's index.

    `prompts` is the batch on the mesh.
    """
    group = self._engine.spec.group
    samples = self._engine.sample(
      policy.trainable,
      policy.frozen,
      prompts.tokens,
      prompts.lengths,
      prompts.index,
      self._key,
    )
    watch.wait(samples)
    # Of one length for policy, anchor and reward.
    args = self._engine.score_args(prompts, samples)
    kl = entropy = None
    if anchor is not None:
      logprobs, entropy = self._engine.logprobs(
        policy.trainable, policy.frozen, *args
      )
      anchor_logprobs = logprobs
      if anchor is not policy:
        anchor_logprobs, _ = self._engine.logprobs(
          anchor.trainable, anchor.frozen, *args
        )
      kl = kl_lib.kl_k1(logprobs, anchor_logprobs)
    measured = None
    if reward is not None:
      with watch.interrupted():
        index = np.repeat(batch.index, group)
        measured = reward.measure(args, index, self._rows)
    watch.wait((kl, entropy, measured))
    # The rows of all processes, on each of them: all write the same down.
    batch, samples, kl, entropy, measured = hosts.to_host(
      (prompts, samples, kl, entropy, measured)
    )
    found: dict[int, list[dict[str, Any]]] = {}
    for row in np.flatnonzero(np.repeat(batch.valid, group)):
      index = int(batch.index[row // group])
      of = self._record(samples, row, index)
      found.setdefault(index, []).append(of)
      if kl is not None:
        length = samples.mask[row].sum()
        of["kl"] = float(kl[row].sum())
        of["entropy"] = float(entropy[row].sum() / length)
      if measured is not None:
        of["measured"] = measured.of(row)
    return found

  def _record(self, samples, row, index) -> dict[str, Any]:
    """What is known of one response without its reward."""
    mask = samples.mask[row]
    ids = samples.tokens[row][mask].tolist()
    response = self._tokenization.decode(ids, self._rows[index].prompt)
    return {
      "response": response,
      "logprob": float(samples.logprobs[row].sum()),
      "length": int(mask.sum()),
      "stopped": bool(samples.stopped[row]),
      "repetition": rollout_metrics.repetition(ids),
      "judgements": self._checker(self._rows[index], response),
    }

  def _read(self, index, measured) -> list[dict[str, Any]]:
    """The records of a prompt from what was measured, or read from a file."""
    row = self._rows[index]
    asked = {
      "row": index,
      "id": row.id,
      "prompt": prompt_text(row),
      "reference": row.reference,
    }
    found = []
    for of in measured:
      numbers = {k: v for k, v in of.items() if k != "response"}
      found.append(asked | of | files.numbers(numbers))
      if "measured" in of:
        found[-1]["measured"] = rewards.Measured.read(of["measured"])
    return found


def evaluator(
  config: shared.Config,
  engine: engine_lib.Engine,
  *,
  mesh: jax.sharding.Mesh,
  data: batching.Inputs,
  tokenization: tokenization_lib.Tokenization,
  key: jax.Array,
) -> PolicyEvaluator:
  """The evaluator on the held-out prompts of a config.

  Args:
    config: Config of the stage; `config.data.name` gives the checker.
    engine: Compiled functions.
    mesh: Mesh that batches are placed on.
    data: Prompts, from `inputs`.
    tokenization: Decodes responses.
    key: Key of the random draws.
  """
  return PolicyEvaluator(
    engine,
    mesh=mesh,
    batches=lambda: data.held_out("answering held-out prompts"),
    rows=data.rows,
    tokenization=tokenization,
    checker=registry.checker(config.data.name),
    key=key,
  )


def of_anchor(
  member: together.Member,
  seed: int,
  evaluate: Callable[..., Any],
  policy: roles.Role,
  anchor: roles.Role,
  rewarder: rewards.Rewarder | None,
  part: so_far_lib.Part = so_far_lib.NOTHING,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """(metrics, records) of the policy that a run starts from.

  Members of one seed have the same anchor, prompts and draws, so that the first
  one's are those of all, and what its ensemble is centred at. A fresh policy is
  evaluated as itself, so that the KL proves something.

  Args:
    member: The member of a run, or a run of its own.
    seed: Its seed.
    evaluate: From `evaluator`.
    policy: The policy, or its anchor in a run that goes on.
    anchor: The anchor.
    rewarder: Where rewards come from, if there are any.
    part: What is there of it, and what takes more.

  Raises:
    ValueError: The KL between the two is not exactly 0.
  """

  def first():
    found = evaluate(policy, anchor, rewarder, part)
    return *found, None if rewarder is None else rewarder.centres

  metrics, rows, centres = member.once(
    ("anchor's evaluation", seed, anchor.backbone), first
  )
  if rewarder is not None:
    rewarder.centres = centres
  require_zero_kl(metrics)
  return metrics, rows


def require_zero_kl(metrics: Mapping[str, float]) -> None:
  """Checks that the policy at step 0 is its own anchor.

  Raises:
    ValueError: The KL between them is not exactly 0.
  """
  if metrics["kl"] != 0.0:
    raise ValueError(
      f"KL of the policy to its own start is {metrics['kl']}, not 0."
    )


def prompt_text(row: records.Prompt) -> str:
  """The messages of a prompt, a line each, for people to read."""
  return "\n".join(f"{m['role']}: {m['content']}" for m in row.prompt)


def summarise(rows: list[Mapping[str, Any]]) -> dict[str, float]:
  """Means over the records of a `PolicyEvaluator`; see there.

  A judgement is averaged over the records that have it.
  """
  metrics = {}
  if "kl" in rows[0]:
    metrics = {
      "kl": _mean(row["kl"] for row in rows),
      "kl_per_token": sum(row["kl"] for row in rows)
      / sum(row["length"] for row in rows),
      "entropy": _mean(row["entropy"] for row in rows),
    }
  metrics |= {
    "length": _mean(row["length"] for row in rows),
    "stop_rate": _mean(row["stopped"] for row in rows),
    "repetition": _mean(row["repetition"] for row in rows),
  }
  for name in rewards.part_names(rows[0]):
    metrics[name] = _mean(row[name] for row in rows)
  names = sorted({name for row in rows for name in row["judgements"]})
  for name in names:
    metrics[name] = _mean(
      row["judgements"][name] for row in rows if name in row["judgements"]
    )
  return metrics


def _mean(values) -> float:
  return float(np.mean([float(v) for v in values]))


def compare(
  before: Mapping[str, float], evaluated: Mapping[str, float]
) -> dict[str, float]:
  """Metrics of summary.json: NAME_before and NAME_after, and the KL.

  Args:
    before: Metrics of the policy at step 0; what it lacks is left out.
    evaluated: Metrics of the trained policy, with or without "validation/".
  """
  after = {k.removeprefix("validation/"): v for k, v in evaluated.items()}
  summary = {
    "kl": after["kl"],
    "kl_per_token": after["kl_per_token"],
    "kl_at_step_0": before["kl"],
  }
  for name in after:
    if name not in summary and name in before:
      summary[f"{name}_before"] = before[name]
      summary[f"{name}_after"] = after[name]
  return summary


def side_by_side(
  anchor: list[Mapping[str, Any]], policy: list[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Rows of samples.jsonl: the anchor's response beside the policy's."""
  rows = []
  for before, after in zip(anchor, policy, strict=True):
    row = {
      "prompt": after["prompt"],
      "reference": after["reference"],
      "anchor": before["response"],
      "policy": after["response"],
      "policy_kl": after["kl"],
    }
    for name, side in (("anchor", before), ("policy", after)):
      row[f"{name}_stopped"] = side["stopped"]
      if "reward" in side:
        row[f"{name}_reward"] = side["reward"]
      row |= {f"{name}_{k}": v for k, v in side["judgements"].items()}
    rows.append(row)
  return rows

"""The two that are compared: what they are, and what they answer."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from perl_jax import roles
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.evaluation.so_far import SoFar
from perl_jax.tasks.initial import model, restore
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.judging.pairs import Pair
from perl_jax.tasks.rollouts.engine import Engine
from perl_jax.tasks.settings import judge as settings
from perl_jax.tasks.settings import shared, streams
from perl_jax.tasks.training import batching, inputs, reported, standing

OTHER = "other"  # another run, beside "anchor" and "reference"


class Sides(NamedTuple):
  """The models of a comparison.

  Attributes:
    name: What the policy is compared with: "anchor", "reference" or "other".
    policy: The policy.
    anchor: The model that the policy was trained from; the policy itself where
      that is not known.
    other: The other run's model, or None.
    checkpoints: By side, the workdir that was read and which checkpoint of it,
      "best" or "last".
  """

  name: str
  policy: Start
  anchor: Start
  other: Start | None
  checkpoints: Mapping[str, tuple[str, str]]


class Answered(NamedTuple):
  """Responses to the held-out prompts.

  Attributes:
    pairs: Both responses to each prompt that has both.
    metrics: What was measured of the sampled responses, "policy.length".
    missing: Number of prompts without a second response.
  """

  pairs: list[Pair]
  metrics: dict[str, float]
  missing: int


def load(config: shared.Config, mesh: jax.sharding.Mesh) -> Sides:
  """Reads both sides of a config.

  Raises:
    FileNotFoundError: A workdir is not one of a stage that has run.
    ValueError: One cannot be read, or the policy was trained from nothing that
      is known and is to be compared with that.
  """
  options = model.read_options(config, mesh)
  chosen = {}

  def read(side, section, field, shared_with=None):
    init, data = section.init, config.data.to_dict()
    which = reported.checkpoint_of(init, section.checkpoint, data)
    chosen[side] = init, which
    return restore.load(init, which, "policy", field, shared_with, options)

  policy = read("policy", config.policy, "policy.init")
  inputs.require_room(config, policy.config.max_len)
  anchor, other = restore.load_anchor(config, policy, options), None
  against = config.against.init
  if against == settings.ANCHOR and anchor is policy:
    raise ValueError(
      f"config.against.init='anchor', and what config.policy.init="
      f"{config.policy.init!r} was trained from is not known: it is somebody"
      " else's model, or began with random weights. Give another workdir or"
      " model as config.against.init, or 'reference'."
    )
  if against == settings.ANCHOR:
    standing.require_anchor(config.policy.init, policy, anchor)
  if against not in (settings.ANCHOR, settings.REFERENCE):
    other = read(OTHER, config.against, "against.init", policy)
    inputs.require_room(config, other.config.max_len)
  name = OTHER if other is not None else against
  return Sides(name, policy, anchor, other, chosen)


def answers(
  config: shared.Config,
  mesh: jax.sharding.Mesh,
  sides: Sides,
  placed: Mapping[str, roles.Role],
  data: batching.Inputs,
  so_far: SoFar,
) -> Answered:
  """Samples both sides on the held-out prompts, as an evaluation does.

  Args:
    config: Config of the task.
    mesh: Mesh that batches are placed on.
    sides: The models.
    data: The prompts, by the policy's tokenizer.
    placed: Their roles on the mesh, by "policy", "anchor" and "other".
    so_far: What an earlier start has sampled, and what takes more.
  """
  known = sides.anchor is not sides.policy  # or its KL is to itself
  policy = placed["policy"]
  anchor = placed["anchor"] if known else policy
  tokenization = sides.policy.load_tokenizer()
  # One engine serves both: a tree without adapters runs at rank 0.
  backbone = policy.backbone if policy.adapter else anchor.backbone
  evaluate = _evaluator(config, mesh, backbone, tokenization, data)
  measured, rows = evaluate(policy, anchor, None, so_far.part("policy"))
  metrics = {
    f"policy.{name}": value
    for name, value in measured.items()
    if known or not name.startswith("kl")
  }
  mine = {row["id"]: row["response"] for row in rows}
  if sides.name == settings.REFERENCE:
    theirs = {
      row.id: row.reference for row in data.rows if row.reference is not None
    }
  else:
    other = anchor
    if sides.other is not None:
      other, tokenization = placed[OTHER], sides.other.load_tokenizer()
      own = inputs.read(config, tokenization, "prompts", train=False)
      evaluate = _evaluator(config, mesh, other.backbone, tokenization, own)
    part = so_far.part(sides.name)
    measured, rows = evaluate(other, other, None, part)
    metrics |= {
      f"{sides.name}.{name}": value
      for name, value in measured.items()
      if not name.startswith("kl")
    }
    theirs = {row["id"]: row["response"] for row in rows}
  pairs = [
    Pair(row, mine[row.id], theirs[row.id])
    for row in data.rows
    if row.id in mine and row.id in theirs
  ]
  return Answered(pairs, metrics, len(data.rows) - len(pairs))


def _evaluator(
  config: shared.Config,
  mesh: jax.sharding.Mesh,
  backbone: roles.Backbone,
  tokenization: tokenization_lib.Tokenization,
  data: batching.Inputs,
) -> policy_evaluation.PolicyEvaluator:
  spec = shared.evaluation_spec(config, tokenization)
  return policy_evaluation.evaluator(
    config,
    Engine(backbone, spec),
    mesh=mesh,
    data=data,
    tokenization=tokenization,
    key=streams.key_of(config.seed, streams.Stream.EVALUATE),
  )


def require_references(config: shared.Config, data: batching.Inputs) -> None:
  """Checks that there is something to compare with in the data.

  Raises:
    ValueError: No prompt has a reference.
  """
  if any(row.reference is not None for row in data.rows):
    return
  raise ValueError(
    f"config.against.init='reference', and no held-out prompt of"
    f" {config.data.name} has a response in the data. Compare with 'anchor' or"
    " with another workdir."
  )


def characters(pairs: list[Pair], name: str) -> dict[str, float]:
  """Mean lengths of the responses of both sides, in characters."""
  count = max(len(pairs), 1)
  return {
    "policy.characters": sum(len(pair.policy) for pair in pairs) / count,
    f"{name}.characters": sum(len(pair.against) for pair in pairs) / count,
  }


def as_json(pair: Pair, name: str) -> dict[str, Any]:
  """The fields of a pair in verdicts.jsonl."""
  return {
    "id": pair.row.id,
    "prompt": policy_evaluation.prompt_text(pair.row),
    "reference": pair.row.reference,
    "policy": pair.policy,
    "against": pair.against,
    "against_is": name,
  }

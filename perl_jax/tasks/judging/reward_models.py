"""A judge that is a reward model: the response with the higher score wins."""

from collections.abc import Sequence

import jax

from perl_jax import roles, sharding
from perl_jax.data import batches, packed_loader, records, unusable
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks.evaluation import reward_model
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.judging import pairs as pairs_lib
from perl_jax.tasks.judging import statistics
from perl_jax.tasks.judging.pairs import Both, Opinion, Pair
from perl_jax.tasks.settings import judge as settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, inputs, reported
from perl_jax.tasks.training.compiled import Compiled

_KIND = "preferences"
_SMALLEST = 64  # tokens of the shortest batches; the others are twice as long
_LEFT_OUT = "too long for the reward model, or no text that it reads"


def load(
  named: settings.Judge,
  config: shared.Config,
  mesh: jax.sharding.Mesh,
  policy: Start | None,
) -> Start:
  """The reward model of a judge, on the policy's base or its own.

  Args:
    named: The judge.
    config: Config of the task.
    mesh: Mesh that the base is read to.
    policy: A model whose base is shared, if the judge was trained on it.

  Raises:
    FileNotFoundError: The workdir is not one of a stage that has run.
    ValueError: It is no reward model, or cannot be combined as asked.
  """
  section = settings.section_of(config)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.reward = {**section.fields.reward, "init": named.of}
  which = reported.checkpoint_of(
    named.of, config.reward.checkpoint, config.data.to_dict()
  )
  return initial_roles.read_reward(
    config,
    which,
    mesh,
    policy,
    of_tokens=False,
    field=section.field,
    section=f"{section.path}.reward",
  )


class RewardJudge:
  """A reward model that scores both responses, as texts."""

  everywhere = True

  def __init__(
    self,
    label: str,
    start: Start,
    role: roles.Role,
    config: shared.Config,
    mesh: jax.sharding.Mesh,
  ):
    """Binds the model.

    Args:
      label: What the metrics call it.
      start: The reward model, with its tokenizer.
      role: Its role on the mesh.
      config: Config of the task.
      mesh: Mesh that batches are placed on.
    """
    self.label = label
    self._start, self._role, self._mesh = start, role, mesh
    self._batch_size = config.eval.batch_size
    self._reward = settings.section_of(config).fields.reward
    self._scorers: dict[int, Compiled] = {}

  def __call__(self, pairs: Sequence[Pair]) -> list[Both]:
    """Opinions of pairs; none of what does not fit into the model.

    A long prompt is shortened as `data.long` "turns" does.
    """
    data = held_out(
      pairs,
      self._start.load_tokenizer(),
      longest=self._start.config.max_len,
      closed=reward_model.is_closed(self._start),
      packing=reward_model.packing_of(self._start),
      batch_size=self._batch_size,
      mesh=self._mesh,
    )
    if not data.rows:
      return list(map(_unread, pairs))
    rows = reward_model.score_rows(
      self._scorer(data.max_targets),
      self._role,
      data,
      self._mesh,
      combine=self._reward.combine,
      std_weight=self._reward.std_weight,
    )
    scores = {row["id"]: (row["chosen"], row["rejected"]) for row in rows}
    return [
      pairs_lib.by_scores(*scores[_id(i, pair)])
      if _id(i, pair) in scores
      else _unread(pair)
      for i, pair in enumerate(pairs)
    ]

  def _scorer(self, longest: int) -> Compiled:
    """The compiled scorer of responses up to a length, made once for each."""
    length = 1 << max(longest - 1, 0).bit_length()  # a power of 2
    if length not in self._scorers:
      self._scorers[length] = reward_model.compiled_scorer(
        self._start, self._role, length, f"scores of {self.label}"
      )
    return self._scorers[length]


def _id(place: int, pair: Pair) -> str:
  """The id of a pair, which its prompt alone is not."""
  return f"judged pair {place} ({pair.row.id})"


def _unread(pair: Pair) -> Both:
  """Opinions of a pair that has no rows of tokens."""
  if pair.policy.strip() == pair.against.strip():  # as a template trims them
    return pairs_lib.EQUAL, pairs_lib.EQUAL
  return (Opinion(statistics.NONE, _LEFT_OUT, pairs_lib.CUT),) * 2


def held_out(
  pairs: Sequence[Pair],
  tokenization: tokenization_lib.Tokenization,
  *,
  longest: int,
  closed: bool,
  packing: batching.Packing,
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> batching.Inputs:
  """Pairs as validation rows: the policy's response is the "chosen" one.

  Args:
    pairs: The pairs, which `_id` names.
    tokenization: Tokenizer of the reward model.
    longest: Most tokens of a row.
    closed: Whether the model reads whole conversations.
    packing: How pairs are packed into rows.
    batch_size: Pairs in a batch.
    mesh: Mesh that batches are placed on.
  """
  rows = [
    records.Preference(
      _id(i, pair), pair.row.group, pair.row.prompt, pair.policy, pair.against
    )
    for i, pair in enumerate(pairs)
  ]
  shape, bad = batches.KINDS[_KIND], unusable.Unusable()
  encoded, _ = shape.encode(rows, tokenization, longest, "turns", closed, bad)
  inputs.log_notes([f"judged pairs: {note}" for note in bad.notes()])
  lengths = [row.length for row in encoded]
  buckets = [longest]
  while buckets[-1] // 2 >= _SMALLEST:
    buckets.append(buckets[-1] // 2)
  layout = packing.layout(_KIND, tokenization.pad_id)
  batches_ = packed_loader.EvalBatches(
    layout, encoded, lengths, batch_size, buckets, *sharding.held_shards(mesh)
  )
  return batching.Inputs(
    None,
    batches_,
    rows if encoded else [],
    counts={},
    max_targets=max((row.response_length for row in encoded), default=0),
    validation_batches=len(batches_),
  )

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

_SMALLEST = 64  # tokens of the shortest batches; the others are twice as long
_LEFT_OUT = "too long for the reward model, or no text that it reads"
# A prompt, written out, and a response to it.
_Response = tuple[str, str]
# The score of a response, or those of the members of an ensemble.
_Scores = float | list[float]


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
    *,
    again: bool = False,
  ):
    """Binds the model.

    Args:
      label: What the metrics call it.
      start: The reward model, with its tokenizer.
      role: Its role on the mesh.
      config: Config of the task.
      mesh: Mesh that batches are placed on.
      again: Whether it will be asked again with the same responses to compare
        with, such as an anchor's. It then scores each response in a row of its
        own, and keeps the scores of these from one call to the next.
    """
    self.label = label
    self._start, self._role, self._mesh = start, role, mesh
    self._batch_size = config.eval.batch_size
    self._reward = settings.section_of(config).fields.reward
    self._scorers: dict[int, Compiled] = {}
    self._again = again
    self._kept: dict[_Response, _Scores] = {}

  def __call__(self, pairs: Sequence[Pair]) -> list[Both]:
    """Opinions of pairs; none of what does not fit into the model.

    A long prompt is shortened as `data.long` "turns" does.
    """
    found = self._by_response(pairs) if self._again else {}
    rest = [i for i in range(len(pairs)) if i not in found]
    found |= self._by_pair(pairs, rest)
    rows = [{"place": i, **found[i]} for i in sorted(found)]
    if rows:
      rows = reward_model.combine_rows(
        rows, self._reward.combine, self._reward.std_weight
      )
    scores = {row["place"]: (row["chosen"], row["rejected"]) for row in rows}
    return [
      pairs_lib.by_scores(*scores[i]) if i in scores else _unread(pair)
      for i, pair in enumerate(pairs)
    ]

  def _by_pair(
    self, pairs: Sequence[Pair], places: Sequence[int]
  ) -> dict[int, dict[str, _Scores]]:
    """Scores of these pairs by their place, "chosen" being the policy's."""
    rows = [
      records.Preference(
        _id(i, pairs[i]),
        pairs[i].row.group,
        pairs[i].row.prompt,
        pairs[i].policy,
        pairs[i].against,
      )
      for i in places
    ]
    found = self._scores(rows, "preferences", whole=False)
    return {places[k]: columns for k, columns in found.items()}

  def _by_response(
    self, pairs: Sequence[Pair]
  ) -> dict[int, dict[str, _Scores]]:
    """As `_by_pair`, of all pairs whose prompt fits whole with either response.

    Each response is scored once; those to compare with not even that, if they
    have been in an earlier call. Left out are pairs that may be equal to the
    model: their scores could differ by rounding.
    """
    wanted: dict[_Response, records.Labelled] = {}
    differ = {
      i: pair
      for i, pair in enumerate(pairs)
      if pair.policy.strip() != pair.against.strip()
    }
    for i, pair in differ.items():
      row = pair.row
      for key in _responses(pair):
        wanted[key] = records.Labelled(
          _id(i, pair), row.group, row.prompt, key[1], 0.0
        )
    new = [key for key in wanted if key not in self._kept]
    rows = [wanted[key] for key in new]
    scores = dict(self._kept)
    for k, columns in self._scores(rows, "labelled", whole=True).items():
      scores[new[k]] = columns["score"]
    found = {}
    for i, pair in differ.items():
      first, last = _responses(pair)
      if last in scores:
        self._kept[last] = scores[last]
        if first in scores:
          found[i] = {"chosen": scores[first], "rejected": scores[last]}
    return found

  def _scores(
    self, rows: Sequence[records.Record], kind: str, *, whole: bool
  ) -> dict[int, dict[str, _Scores]]:
    """Scores by the place of a row, of those that the model can read."""
    if not rows:
      return {}
    data = held_out(
      rows,
      kind,
      self._start.load_tokenizer(),
      longest=self._start.config.max_len,
      whole=whole,
      closed=reward_model.is_closed(self._start),
      packing=reward_model.packing_of(self._start),
      batch_size=self._batch_size,
      mesh=self._mesh,
    )
    if not data.rows:
      return {}
    found = reward_model.score_batches(
      self._scorer(data.max_targets), self._role, data, self._mesh
    )
    for k, columns in found.items():
      reward_model.require_finite(columns, rows[k].id)
    return found

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


def _responses(pair: Pair) -> tuple[_Response, _Response]:
  """The policy's response and the other one, each with the prompt."""
  prompt = repr(pair.row.prompt)
  return (prompt, pair.policy), (prompt, pair.against)


def _unread(pair: Pair) -> Both:
  """Opinions of a pair that has no rows of tokens."""
  if pair.policy.strip() == pair.against.strip():  # as a template trims them
    return pairs_lib.EQUAL, pairs_lib.EQUAL
  return (Opinion(statistics.NONE, _LEFT_OUT, pairs_lib.CUT),) * 2


def held_out(
  rows: Sequence[records.Record],
  kind: str,
  tokenization: tokenization_lib.Tokenization,
  *,
  longest: int,
  whole: bool,
  closed: bool,
  packing: batching.Packing,
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> batching.Inputs:
  """Rows as validation rows, which hold what can be encoded of them.

  Args:
    rows: Pairs or responses.
    kind: Their kind, "preferences" or "labelled".
    tokenization: Tokenizer of the reward model.
    longest: Most tokens of a row.
    whole: Whether rows are left out, unsaid, rather than their prompts
      shortened as `data.long` "turns" does.
    closed: Whether the model reads whole conversations.
    packing: How responses are packed into rows.
    batch_size: Rows in a batch.
    mesh: Mesh that batches are placed on.
  """
  shape, bad = batches.KINDS[kind], unusable.Unusable()
  encoded = []
  for i, row in enumerate(rows):
    found, counts = shape.encode(
      [row], tokenization, longest, "turns", closed, bad
    )
    if not (whole and counts["truncated_rows"]):
      encoded += [one._replace(index=i) for one in found]
  if not whole:
    inputs.log_notes([f"judged pairs: {note}" for note in bad.notes()])
  lengths = [row.length for row in encoded]
  buckets = [longest]
  while buckets[-1] // 2 >= _SMALLEST:
    buckets.append(buckets[-1] // 2)
  layout = packing.layout(kind, tokenization.pad_id)
  batches_ = packed_loader.EvalBatches(
    layout, encoded, lengths, batch_size, buckets, *sharding.held_shards(mesh)
  )
  return batching.Inputs(
    None,
    batches_,
    [*rows] if encoded else [],
    counts={},
    max_targets=max((row.response_length for row in encoded), default=0),
    validation_batches=len(batches_),
  )

"""The range of every number in a config, in one table.

`tasks.run` checks a config by it before anything is read, all stages of a
pipeline at once: what is out of range in the last stage should not be said
after the others have trained. What concerns two fields together is checked by
the modules beside this one.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from perl_jax.tasks.settings import leaves

_INF = math.inf
# Steps and rows are counted in int32 on the devices.
_MOST = 2**31 - 1
# A larger number is infinite in float32.
_LARGEST = 3.4e38


class Range(NamedTuple):
  """The values that a field may have.

  Attributes:
    low: Smallest value.
    high: Largest value.
    whole: Whether it has to be a whole number.
    open_low: Whether `low` itself is out of range.
    open_high: Whether `high` itself is out of range.
    also: A value outside that has a meaning of its own, or None.
    why: What is wrong with a value out of range, or what the limit means; ""
      where that goes without saying.
  """

  low: float
  high: float = _INF
  whole: bool = False
  open_low: bool = False
  open_high: bool = False
  also: float | None = None
  why: str = ""

  def holds(self, value: object) -> bool:
    """Whether a value is a number of this kind in this range."""
    number = type(value) is int or (type(value) is float and not self.whole)
    if not number:
      return False
    if value == self.also:
      return True
    if not self.whole and not abs(value) <= _LARGEST:
      return False  # NaN too
    above = value > self.low if self.open_low else value >= self.low
    below = value < self.high if self.open_high else value <= self.high
    return above and below

  def __str__(self) -> str:
    """The range in words, such as "a number in [0, 1)"."""
    kind = "a whole number" if self.whole else "a number"
    if self.high == _INF and self.low == -_INF:
      text = f"a finite {kind.removeprefix('a ')}"
    elif self.high == _INF or self.high == _MOST:
      text = f"{kind} {'above' if self.open_low else 'of at least'} {self.low}"
    else:
      first, last = "[("[self.open_low], "])"[self.open_high]
      text = f"{kind} in {first}{self.low}, {self.high}{last}"
    if self.also is not None:
      text += f", or {self.also}"
    return text


def _count(low: int = 1, why: str = "", **more: Any) -> Range:
  return Range(low, _MOST, whole=True, why=why, **more)


def _above(low: float, why: str = "") -> Range:
  return Range(low, open_low=True, why=why)


def _least(low: float, why: str = "") -> Range:
  return Range(low, why=why)


def _share(why: str = "", **more: Any) -> Range:
  return Range(0, 1, why=why, **more)


_DECAY = "it is the share of an average that is kept at an update"
_RATE = "a negative one climbs the loss; 0 trains nothing"
_LENGTH = "a number of tokens"
_DEVICES = "-1 takes the devices that the other two leave"

# How judges are read and asked, in the task `judge` and in a section of RL.
_JUDGING = {
  "reward.std_weight": _least(
    0, "what the members disagree on gets a lower reward, not a higher one"
  ),
  "timeout": _least(0, "in seconds; 0 is no limit"),
  "endpoint.max_tokens": _count(0, "0 leaves it to the server"),
  "endpoint.temperature": _least(0),
  "endpoint.parallel": _count(),
  "endpoint.request_seconds": _above(0),
}

# Ranges by the dotted name of the field in its stage. A field that means
# something else in one task has that task's name before it.
RANGES: Mapping[str, Range] = {
  "seed": Range(0, 2**32 - 1, whole=True),
  "members": _count(),
  "steps": _count(),
  "batch_size": _count(),
  "microbatches": _count(),
  "score_microbatches": _count(),
  "eval_every": _count(),
  "log_every": _count(),
  "vocab_size": _count(0, "0 is the model's own"),
  "conversations": _count(0),
  "shard_bytes": Range(1, 2**63 - 1, whole=True),
  "model.scan_unroll": _count(),
  "compute.scan_unroll": _count(),
  "lora.rank": _count(0, "0 adds no adapter"),
  "lora.alpha": _above(0, "it is the numerator of the adapter's scale"),
  "lora.dropout": _share(open_high=True),
  "data.vocab_size": _count(),
  "data.folds": _count(2, "one of them is held out"),
  "data.fold": _count(0, "folds are counted from 0"),
  "data.split_seed": _count(0, "it draws the folds"),
  "data.train_folds": _count(0, "folds are counted from 0"),
  "data.limit": _count(0, "0 keeps all rows"),
  "data.margin": _least(0, "0 makes no pairs of scores"),
  "data.preview": _count(0, "0 shows no rows"),
  "data.max_len": _count(why=_LENGTH),
  "data.prompt_len": _count(why=_LENGTH),
  "data.response_len": _count(why=_LENGTH),
  "data.buckets": _count(why=_LENGTH),
  "data.pad_to_multiple_of": _count(why=_LENGTH),
  "data.options.size": _count(),
  "data.options.validation_size": _count(0),
  "data.options.demo_quality": _share(),
  "data.options.label_noise": Range(0, 0.5),
  "mesh.data": _count(why=_DEVICES, also=-1),
  "mesh.fsdp": _count(why=_DEVICES, also=-1),
  "mesh.tensor": _count(why=_DEVICES, also=-1),
  "save.every_steps": _count(0, "0 makes none by steps"),
  "save.every_seconds": _least(0, "0 makes none by the clock"),
  "save.keep": _count(),
  "profile.steps": _count(why="steps are counted from 1"),
  "show_samples": _count(0, "0 shows none"),
  "nonfinite_limit": _count(),
  "optimizer.learning_rate": _least(0, _RATE),
  "optimizer.warmup_steps": _count(0),
  "optimizer.b1": _share(_DECAY, open_high=True),
  "optimizer.b2": _share(_DECAY, open_high=True),
  "optimizer.weight_decay": _least(0, "a negative one makes weights grow"),
  "optimizer.clip_norm": _least(
    0, "a negative one turns the gradient round; 0 does not clip"
  ),
  "eval.rows": _count(0, "0 is all rows, and none in SFT"),
  "eval.loss_rows": _count(0, "0 is all rows"),
  "eval.batch_size": _count(),
  "eval.samples": _count(0),
  "eval.temperature": _least(0, "it divides the logits"),
  "sampling.temperature": _above(
    0, "it divides the logits; greedy decoding is for evaluations"
  ),
  "generate.sampling.temperature": _above(
    0, "it divides the logits; for the most likely tokens set sampling.greedy"
  ),
  "sampling.top_k": _count(0, "0 keeps all tokens"),
  "sampling.top_p": _share("1 keeps all tokens", open_low=True),
  "ensemble": _count(),
  "probe_rows": _count(0, "0 leaves a new head at zeros"),
  "member_share": _share(
    "the share of the rows that each model of an ensemble trains on",
    open_low=True,
  ),
  "label_smoothing": Range(
    0,
    0.5,
    open_high=True,
    why="from 0.5 on the labels would say nothing, or the opposite",
  ),
  "dpo.beta": _above(0, "it is the cost of a nat of KL; 0.1 is usual"),
  "rl.beta": _share("the reward is weighted by 1 - beta"),
  "reward.fn_weight": Range(-_INF),
  "reward.timeout": _least(0, "in seconds; 0 is no limit"),
  **_JUDGING,
  **{f"rl.judge.{name}": range_ for name, range_ in _JUDGING.items()},
  "rl.judge.rows": _count(0, "0 is all of eval.rows"),
  "bootstrap.draws": _count(),
  "bootstrap.seed": Range(0, 2**32 - 1, whole=True),
  "unstopped_penalty": _least(0, "it is taken off the reward"),
  "samples_per_prompt": _count(),
  "value.learning_rate": _least(0, _RATE),
  "value.warmup_steps": _count(0),
  "value_coef": _least(0),
  "entropy_coef": _least(0),
  "rollouts.slots": _count(0, "0 decodes all samples at once"),
  "rollouts.buckets": _count(why=_LENGTH),
  "rollouts.refill": _count(0, "0 is a quarter of the slots"),
  "kl.target": _least(0, "in nats of KL, or 0 for a fixed beta"),
  "kl.horizon": _count(),
  "ppo.epochs": _count(),
  "ppo.minibatches": _count(),
  "ppo.clip_low": _share(),
  "ppo.clip_high": _least(0),
  "ppo.value_clip": _least(0, "0 does not clip"),
  "ppo.discount": _share(),
  "ppo.gae_lambda": _share(),
}


class Number(NamedTuple):
  """A number of a config.

  Attributes:
    path: Dotted name of the field in the whole config.
    value: The number, or one item of a tuple.
    range: Range of the field; None if the table has none.
  """

  path: str
  value: object
  range: Range | None


def check(config: ConfigDict) -> None:
  """Checks every number of a config, those of its stages too.

  Raises:
    ValueError: Some are out of range; names each field with its value, its
      range and the reason. A number without a range only has to be finite.
  """
  wrong = []
  for path, value, range_ in numbers(config):
    allowed = range_ or Range(-_INF)
    if not allowed.holds(value):
      why = f" ({allowed.why})" if allowed.why else ""
      wrong.append(f"config.{path}={value!r} must be {allowed}{why}")
  if wrong:
    raise ValueError(f"{'; '.join(wrong)}.")


def numbers(config: ConfigDict) -> Iterator[Number]:
  """All numbers of a config, and whatever else stands where one should."""
  for leaf in leaves.leaves(config):
    range_ = RANGES.get(f"{leaf.task}.{leaf.name}", RANGES.get(leaf.name))
    value = leaf.value
    for item in value if isinstance(value, list | tuple) else (value,):
      numeric = isinstance(item, int | float) and not isinstance(item, bool)
      if item is not None and (numeric or range_ is not None):
        yield Number(leaf.path, item, range_)

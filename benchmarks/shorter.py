"""Scoring and learning of RL as responses grow shorter: tokens and seconds.

  python -m benchmarks.shorter
  python -m benchmarks.shorter --prompt=256 --response=1024 --group=4

The iteration of `tasks/rl.py` with random weights, in which responses of drawn
lengths take the place of sampled ones. Lengths are log-normal and cut at
`--response`; their mean falls from nine tenths of that to one tenth. Three
arms are given the same responses:

  full        every response is padded to `--response`
  bucket      all of them to the bucket of the longest (`rollouts.buckets`)
  by length   each microbatch to its own, sorted (`rollouts.by_length`)

Computed are the columns of all rows, prompts included, whatever is padding in
them: what the passes of scoring and learning cost, but for attention, whose
scores grow with their product. Seconds are those of both, without compilation;
each arm has its iterations in turn with the others.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import stages
from configs import rl
from perl_jax import sampling, sharding
from perl_jax.models import presets
from perl_jax.tasks.settings import rl as rl_settings

ARMS = ("full", "bucket", "by length")
_SPREAD = 0.7  # standard deviation of the logarithm of a length


@dataclasses.dataclass(frozen=True)
class Settings:
  """Sizes; the fields are the flags.

  Attributes:
    prompts: Prompts of a batch.
    group: Responses to each.
    prompt: Tokens of a prompt.
    response: Most tokens of a response.
    microbatches: Microbatches of scoring and of learning.
    iterations: Iterations of each arm.
  """

  prompts: int = 32
  group: int = 1
  prompt: int = 64
  response: int = 128
  microbatches: int = 4
  iterations: int = 8


class Drawn:
  """In place of the sampler: responses of given lengths, random tokens.

  Attributes:
    lengths: Tokens of each response of the next call, `[B * G]`.
  """

  compile_seconds = 0.0

  def __init__(self, settings: Settings, vocab: int, mesh: jax.sharding.Mesh):
    self.lengths = np.zeros(0, np.int32)
    self._width, self._vocab, self._mesh = settings.response, vocab, mesh

  def __call__(self, *_: Any) -> sampling.Samples:
    """Responses, none of which has a stop token."""
    shape = len(self.lengths), self._width
    tokens = np.random.default_rng(0).integers(3, self._vocab, shape)
    mask = np.arange(self._width) < self.lengths[:, None]
    arrays = tokens.astype(np.int32), mask, np.zeros(shape[0], bool)
    placed = sharding.place_batch(
      self._mesh, (*arrays, np.zeros(shape, np.float32))
    )
    steps = sharding.place_whole(self._mesh, np.zeros(shape[0], np.int32))[0]
    return sampling.Samples(*placed, steps)


def lengths_of(settings: Settings, number: int) -> np.ndarray:
  """Tokens of the responses of an iteration, from 0, `[B, G]`, int32."""
  last = max(settings.iterations - 1, 1)
  mean = settings.response * (0.9 - 0.8 * number / last)
  drawn = np.random.default_rng(number).lognormal(
    np.log(mean) - _SPREAD**2 / 2,
    _SPREAD,
    (settings.prompts, settings.group),
  )
  return np.clip(np.rint(drawn), 1, settings.response).astype(np.int32)


def computed(
  lengths: np.ndarray, settings: Settings, buckets: Sequence[int]
) -> dict[str, int]:
  """Columns that an arm computes of a batch, by its name.

  Args:
    lengths: Tokens of each response, `[B, G]`.
    settings: Sizes.
    buckets: Lengths of responses, in ascending order.
  """

  def columns(longest):
    bucket = next(n for n in buckets if n >= longest)
    return settings.prompt + settings.group * bucket

  rows = np.sort(lengths.max(axis=1))[::-1]
  parts = rows.reshape(settings.microbatches, -1)
  return {
    "full": rows.size * columns(settings.response),
    "bucket": rows.size * columns(rows[0]),
    "by length": sum(part.size * columns(part[0]) for part in parts),
  }


def make_arm(settings: Settings, name: str, mesh: jax.sharding.Mesh) -> Any:
  """(the iteration of an arm, what draws its responses, a batch, buckets)."""
  fields = {"rollouts.by_length": name == "by length"}
  if name == "full":
    fields["rollouts.buckets"] = (settings.response,)
  if settings.group > 1:
    fields |= {"estimator": "rloo", "samples_per_prompt": settings.group}
  config = stages.configured(
    rl.get_config("coffee_bar"),
    prompt_len=settings.prompt,
    response_len=settings.response,
    batch_size=settings.prompts,
    microbatches=settings.microbatches,
    score_microbatches=settings.microbatches,
    **fields,
  )
  model = presets.preset(
    "tiny", vocab_size=512, max_len=config.data.max_len + 8
  )
  drawn = Drawn(settings, model.vocab_size, mesh)
  stage = stages.RLIteration(
    config, stages.random_start(model), mesh, sample=drawn
  )
  batch = stages.random_prompts(config, model.vocab_size)
  return stage, drawn, batch, rl_settings.read(config).buckets


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
  """What each iteration computed and took, of all arms."""
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    arms = {name: make_arm(settings, name, mesh) for name in ARMS}
    for number in range(settings.iterations):
      lengths = lengths_of(settings, number)
      found = {"mean": float(lengths.mean()), "longest": int(lengths.max())}
      found["computed"] = computed(lengths, settings, arms["bucket"][-1])
      found["seconds"] = {}
      for name, (stage, drawn, batch, _) in arms.items():
        drawn.lengths = lengths.reshape(-1)
        metrics = stage.run(batch, number + 1)
        found["seconds"][name] = (
          metrics["seconds/score"] + metrics["seconds/learn"]
        )
        found.setdefault("loss", {})[name] = metrics["train/loss"]
      yield found


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """A Markdown table, a line for each iteration."""
  yield (
    "| mean length | longest | computed, full | bucket | by length"
    " | s, full | bucket | by length |"
  )
  yield "|---|---|---|---|---|---|---|---|"
  for row in rows:
    full = row["computed"]["full"]
    shares = [
      f"{row['computed'][name]:,} ({row['computed'][name] / full:.0%})"
      for name in ARMS[1:]
    ]
    seconds = [f"{row['seconds'][name]:.3f}" for name in ARMS]
    cells = f"{row['mean']:.0f}", row["longest"], f"{full:,}", *shares, *seconds
    yield f"| {' | '.join(map(str, cells))} |"


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for field in dataclasses.fields(Settings):
    parser.add_argument(f"--{field.name}", type=int, default=field.default)
  rows = list(measure(Settings(**vars(parser.parse_args()))))
  print("\n".join(table(rows)))


if __name__ == "__main__":
  main()

"""Speed of rollouts with continuous batching, against batches in turn.

  python -m benchmarks.slot_refill --data_dir PATH

The same responses are sampled twice: in batches of `--slots` rows, each decoded
until its longest response has ended, and in one call with continuous batching,
in which a waiting prompt takes the row of a finished response. Weights are
random. Prompts are contexts of agent turns of Taskmaster Coffee, cut to
`--prompt_len`, with a tokenizer that is trained on the dialogs.

A random model does not end its responses where an agent does. So the sampler
runs unchanged, its random draws included, but `Policy.draw` is wrapped: the
token that it returns is replaced by the stop token at the end of the response,
and a stop token before that by another token. The end is sampled with the
response's own key from the lengths of all agent turns, stop token included and
at most `--response_len`. Both sides therefore return the same responses, and
the benchmark checks that they do.

The sides take turns, each first in every other round. Times are medians of
whole rounds, prefill included, after one in which everything compiles. Tokens
are those of the responses. One device.
"""

import argparse
import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import results
from perl_jax import roles, sampling
from perl_jax.data.sources import registry
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import train_tokenizer
from perl_jax.models import presets
from perl_jax.models.lora import LoraSpec
from perl_jax.sampling import draw as draw_lib

SHAPE = dict(
  num_layers=8,
  width=384,
  mlp_width=1024,
  num_heads=6,
  num_kv_heads=2,
  head_dim=64,
  scan_unroll=4,
)

# Folded into the key that samples a length; no step of a response has this
# number.
LENGTH = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Settings:
  """Sizes of the benchmark; the fields are the flags.

  Attributes:
    prompts: Number of prompts.
    group: Responses to each prompt.
    slots: Rows that are decoded at once.
    refill: `SamplingSpec.refill` of the side with continuous batching.
    prompt_len: Tokens of a padded prompt, `P`.
    response_len: Most tokens of a response, `T`.
    vocab_size: `V`.
    rounds: Measured rounds.
  """

  prompts: int = 128
  group: int = 1
  slots: int = 32
  refill: int = 0
  prompt_len: int = 96
  response_len: int = 64
  vocab_size: int = 4096
  rounds: int = 5


def read_turns(
  data_dir: str, settings: Settings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Reads prompts and lengths of responses.

  Args:
    data_dir: Folder of the released files.
    settings: Sizes.

  Returns:
    (left-padded prompts `[prompts, P]`, their lengths `[prompts]`, lengths of
    all agent turns in tokens, stop token included).
  """
  rows = registry.load(
    "taskmaster_coffee", "demonstrations", data_dir=data_dir
  ).train
  with tempfile.TemporaryDirectory() as directory:
    directory = train_tokenizer.train_tokenizer(
      train_tokenizer.record_texts(rows),
      settings.vocab_size,
      f"{directory}/tokenizer",
    )
    tokenization = tokenization_lib.load_tokenizer(directory)
  contexts, ends = [], []
  for row in rows:
    for count, turn in enumerate(row.turns):
      if turn["role"] == "assistant":
        messages = (*row.prompt, *row.turns[:count])
        response = tokenization.encode_response(messages, turn["content"])
        ends.append(len(response))
        contexts.append(messages)
  prompts = np.zeros((settings.prompts, settings.prompt_len), np.int32)
  lengths = []
  order = np.random.default_rng(0).permutation(len(contexts))
  for row, index in enumerate(order[: settings.prompts]):
    ids, _ = tokenization.encode_prompt(
      contexts[index], settings.prompt_len, "cut"
    )
    prompts[row, settings.prompt_len - len(ids) :] = ids
    lengths.append(len(ids))
  return prompts, np.array(lengths, np.int32), np.array(ends, np.int32)


@contextlib.contextmanager
def ending_as(ends: np.ndarray, stop_id: int) -> Iterator[None]:
  """In this context, traced samplers end responses at sampled lengths.

  Args:
    ends: Lengths to sample from.
    stop_id: The stop token.
  """
  plain, ends = draw_lib.Policy.draw, jnp.asarray(ends)

  def end_of(key):
    return jax.random.choice(jax.random.fold_in(key, LENGTH), ends)

  def draw(self, logits, keys, steps):
    tokens, logprobs = plain(self, logits, keys, steps)
    tokens = jnp.where(tokens == stop_id, stop_id + 1, tokens)
    over = steps + 1 == jax.vmap(end_of)(keys)
    return jnp.where(over, stop_id, tokens), logprobs

  draw_lib.Policy.draw = draw
  try:
    yield
  finally:
    draw_lib.Policy.draw = plain


def make_sides(
  settings: Settings, turns: tuple[np.ndarray, ...], **shape: Any
) -> dict[str, Callable[[], list[sampling.Samples]]]:
  """Compiles both sides.

  Args:
    settings: Sizes.
    turns: As `read_turns` returns them.
    **shape: Fields of the model that differ from `SHAPE`.

  Returns:
    "batches" and "slots", each a function that samples all responses.
  """
  prompts, lengths, ends = turns
  stop_id = settings.vocab_size - 2
  config = presets.preset(
    "small",
    vocab_size=settings.vocab_size,
    max_len=settings.prompt_len + settings.response_len,
    **SHAPE | shape,
  )
  backbone = roles.Backbone(config, LoraSpec())
  params = jax.jit(roles.init_base, static_argnums=1)(jax.random.key(0), config)
  rows, key = np.arange(settings.prompts, dtype=np.int32), jax.random.key(1)
  fields = dict(
    response_len=settings.response_len,
    stop_ids=(stop_id,),
    group=settings.group,
  )
  in_turn = dict(slots=settings.slots, refill=settings.refill)

  def side(size, fields):
    spec = sampling.SamplingSpec(**fields)
    sample = jax.jit(sampling.make_sampler(backbone, spec))
    parts = [slice(i, i + size) for i in range(0, settings.prompts, size)]
    batches = [(prompts[p], lengths[p], rows[p]) for p in parts]

    def run():
      found = [sample(params, *batch, key) for batch in batches]
      return jax.block_until_ready(found)

    with ending_as(ends, stop_id):
      run()
    return run

  return {
    "batches": side(settings.slots // settings.group, fields),
    "slots": side(settings.prompts, fields | in_turn),
  }


def measure(
  sides: dict[str, Callable[[], list[sampling.Samples]]], rounds: int
) -> dict[str, dict[str, Any]]:
  """Runs the sides in turns.

  Returns:
    By side, "steps" of decoding, "tokens", "seconds" (median), "all_seconds".

  Raises:
    ValueError: The sides returned different samples.
  """
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  samples: dict[str, Sequence[sampling.Samples]] = {}
  for number in range(rounds):
    for name in list(sides)[:: 1 if number % 2 else -1]:
      start = time.perf_counter()
      samples[name] = sides[name]()
      seconds[name].append(time.perf_counter() - start)
  tokens = {
    name: np.concatenate([part.tokens for part in parts])
    for name, parts in samples.items()
  }
  first, *others = tokens.values()
  for other in others:
    different = int(np.any(first != other, axis=1).sum())
    if different:
      raise ValueError(f"{different} of {len(first)} samples differ.")
  return {
    name: {
      "steps": sum(int(part.steps) for part in parts),
      "tokens": sum(int(np.sum(part.mask)) for part in parts),
      "seconds": statistics.median(seconds[name]),
      "all_seconds": seconds[name],
    }
    for name, parts in samples.items()
  }


def table(found: dict[str, dict[str, Any]]) -> str:
  """A Markdown table: a line for each side, and how much faster slots are."""
  lines = [
    "| | decode steps | seconds | tokens / s | ratio |",
    "| --- | --- | --- | --- | --- |",
  ]
  slowest = found["batches"]["seconds"]
  for name, side in found.items():
    lines.append(
      f"| {name} | {side['steps']}"
      f" | {results.spread(side['seconds'], side['all_seconds'])}"
      f" | {side['tokens'] / side['seconds']:.0f}"
      f" | {slowest / side['seconds']:.2f} |"
    )
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
  """Reads, measures, prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data_dir", default="")
  for field in dataclasses.fields(Settings):
    parser.add_argument(f"--{field.name}", type=int, default=field.default)
  given = vars(parser.parse_args(argv))
  data_dir = given.pop("data_dir")
  settings = Settings(**given)
  turns = read_turns(data_dir, settings)
  found = measure(make_sides(settings, turns), settings.rounds)
  for shown in (dataclasses.asdict(settings), results.machine()):
    print(results.in_line(shown))
  tokens = found["slots"]["tokens"]
  print(
    f"{tokens} tokens in {settings.prompts * settings.group} equal responses,"
    f" {len(turns[2])} agent turns of {turns[2].mean():.1f} tokens\n"
  )
  print(table(found))


if __name__ == "__main__":
  main()

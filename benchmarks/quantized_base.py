"""Memory and accuracy of a base stored in 8 or 4 bits.

  python -m benchmarks.quantized_base --workdir=runs/quantized

One anchor is trained on the embedded coffee orders. Then, for each dtype, a
reward model with LoRA is trained on the anchor's weights stored in that dtype,
with the settings of configs/reward.py. For each dtype it prints

- the bytes of the base, as `jax.Array`s and as arguments of a compiled program;
- the error of the anchor's logits against those in float32 on held-out orders:
  root mean square over tokens and vocabulary, relative to the standard
  deviation of the logits, and the largest;
- the accuracy of the reward model on held-out pairs, with its 95 % interval.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import results
from configs import reward as reward_config
from configs import sft as sft_config
from perl_jax import files, roles, sampling, tasks
from perl_jax import params as params_lib
from perl_jax.data.batches import common
from perl_jax.data.batches.packed_responses import unpack
from perl_jax.models import quantization
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import restore
from perl_jax.tasks.initial.model import ReadOptions, Start
from perl_jax.tasks.training import inputs

DTYPES = ("bfloat16", *quantization.QUANTIZED)


def anchor_run(workdir: Path, overrides: dict[str, Any]) -> ConfigDict:
  """Trains the anchor unless that is done; returns its config."""
  config = sft_config.get_config()
  config.update_from_flattened_dict(overrides)
  tasks.run(config, workdir)
  return config


def load(workdir: Path, dtype: str) -> Start:
  """Reads the anchor with its base in a storage dtype."""
  return restore.load(
    workdir, "best", "policy", "anchor", options=ReadOptions(dtype=dtype)
  )


def logits(start: Start, rows: Any) -> np.ndarray:
  """Logits of right-padded rows at all tokens but padding, `[tokens, V]`.

  They are computed in float32.

  Args:
    start: The model.
    rows: (tokens `[B, T]`, lengths `[B]`).
  """
  backbone = roles.Backbone(
    dataclasses.replace(start.config, dtype="float32"), LoraSpec()
  )

  @jax.jit
  def run(base, tokens, lengths):
    sequence = roles.right_padded(tokens, lengths)
    hidden = roles.hidden_states(backbone, base, sequence)
    return sampling.next_token_logits(backbone, base, hidden)

  found = np.asarray(run(start.role.frozen, *rows))
  real = np.arange(found.shape[1]) < np.asarray(rows[1])[:, None]
  return found[real]


def held_out_rows(config: ConfigDict, start: Start) -> tuple[Any, Any]:
  """Held-out prompts with their right answers: (tokens, lengths)."""
  tokenization = start.load_tokenizer()
  reward = reward_config.get_config()
  reward.data = config.data
  read = inputs.read(reward, tokenization, "preferences", train=False)
  (*pairs,) = unpack(next(read.validation())).values()
  chosen = [side for side, _ in pairs]
  width = max(map(len, chosen))
  tokens, lengths = common.pad(chosen, width, len(chosen), tokenization.pad_id)
  return jnp.asarray(tokens), jnp.asarray(lengths)


def logit_error(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
  """Errors of logits `[tokens, V]`, without the mean of each row.

  The softmax does not depend on that mean.

  Returns:
    "logit_error", the root mean square error over that of `exact` itself, and
    "largest_logit_error".
  """

  def centred(x):
    return x - x.mean(axis=1, keepdims=True)

  error = centred(found) - centred(exact)
  spread = np.sqrt(np.mean(centred(exact) ** 2))
  return {
    "logit_error": float(np.sqrt(np.mean(error**2)) / spread),
    "largest_logit_error": float(np.abs(error).max()),
  }


def measure(
  workdir: Path,
  anchor_overrides: dict[str, Any],
  reward_overrides: dict[str, Any],
) -> dict[str, dict[str, float]]:
  """Trains and measures.

  Args:
    workdir: Directory of all runs.
    anchor_overrides: Fields that differ from configs/sft.py.
    reward_overrides: Fields that differ from configs/reward.py.

  Returns:
    Bytes, errors and quality of the reward model, by dtype.
  """
  config = anchor_run(workdir / "anchor", anchor_overrides)
  exact = load(workdir / "anchor", "float32")
  rows = held_out_rows(config, exact)
  exact_logits = logits(exact, rows)
  found = {}
  for dtype in DTYPES:
    start = load(workdir / "anchor", dtype)
    reward = reward_config.get_config()
    reward.update_from_flattened_dict(reward_overrides)
    reward.base_dtype = dtype
    reward.reward.init = str(workdir / "anchor")
    summary = tasks.run(reward, workdir / f"reward_{dtype}")
    compiled = jax.jit(lambda base: base).lower(start.role.frozen).compile()
    found[dtype] = {
      "bytes": params_lib.nbytes(start.role.frozen),
      "compiler_bytes": compiled.memory_analysis().argument_size_in_bytes,
      **logit_error(logits(start, rows), exact_logits),
      **{k: v for k, v in summary.items() if k.startswith("accuracy")},
      "auroc": summary["auroc"],
    }
  return found


def table(found: dict[str, dict[str, float]]) -> str:
  """A Markdown table, a line for each dtype."""
  lines = [
    "| base | bytes | of bfloat16 | logit error | largest | reward model |",
    "|---|---|---|---|---|---|",
  ]
  whole = found["bfloat16"]["bytes"]
  for dtype, row in found.items():
    lines.append(
      f"| {dtype} | {row['bytes']:,} | {row['bytes'] / whole:.0%}"
      f" | {row['logit_error']:.2%} | {row['largest_logit_error']:.3f}"
      f" | {row['accuracy']:.1%} ({row['accuracy_low']:.1%} to"
      f" {row['accuracy_high']:.1%}) |"
    )
  return "\n".join(lines)


def main() -> None:
  """Measures, prints, writes quantized_base.json."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=Path, required=True)
  workdir = parser.parse_args().workdir
  found = measure(workdir, {}, {})
  machine = results.machine()
  print(results.in_line(machine))
  print(table(found))
  files.write_json(
    workdir / "quantized_base.json", {"machine": machine, "dtypes": found}
  )


if __name__ == "__main__":
  main()

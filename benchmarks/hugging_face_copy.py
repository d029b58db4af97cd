"""Writes a checkpoint of any kind as a directory that `transformers` loads.

  python -m benchmarks.hugging_face_copy FILE.gguf DIRECTORY

For libraries that cannot read it as it is; `rl_speed.py` uses it. Weights are
in float32; there is no tokenizer. Prints the directory to load: that of the
checkpoint itself, with nothing written, if it is of that kind already.
"""

import argparse
import json
from pathlib import Path

from perl_jax.interop import hf_checkpoint, hf_export
from perl_jax.tasks.initial import model as model_lib


def copy(checkpoint: str, directory: Path) -> None:
  """Writes config and weights into an existing directory.

  Args:
    checkpoint: Hugging Face checkpoint or GGUF file.
    directory: Where to write.
  """
  role = model_lib.read_base(checkpoint, model_lib.ReadOptions())
  hf_export.save_model(
    directory,
    role.backbone.config,
    role.frozen,
    # Where a response ends is for whoever samples to say.
    hf_export.Stops(stop_ids=(1,), bos_id=None, pad_id=2),
    dtype="float32",
    shard_bytes=5_000_000_000,
  )


def main() -> None:
  """Writes a copy where one is needed."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("checkpoint")
  parser.add_argument("directory", type=Path)
  given = parser.parse_args()
  directory = Path(given.checkpoint)
  if not hf_checkpoint.is_checkpoint(directory):
    directory = given.directory
    directory.mkdir(parents=True, exist_ok=True)
    copy(given.checkpoint, directory)
  print(json.dumps({"directory": str(directory.absolute())}))


if __name__ == "__main__":
  main()

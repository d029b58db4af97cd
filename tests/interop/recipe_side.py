"""Scores of conversations by the usual recipe, for reward models on disk.

    python -m tests.interop.recipe_side ROOT

For each directory of ROOT/exports, all conversations of ROOT/conversations.json
are rendered with the directory's own chat template, encoded, and scored with
`...ForSequenceClassification` at the last token: one by one, and in padded
batches of two. Writes `recipe.npy`, `[2, n]` float32, beside the model. Needs
torch and peft; runs in a process of its own, as they warn.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.interop.torch_side import load_exported


def scores(directory: Path, conversations) -> np.ndarray:
  """One by one, and in batches of two, `[2, n]`."""
  import torch
  import transformers

  form = "adapter" if (directory / "adapter_config.json").exists() else "merged"
  model = load_exported(directory, "reward", form).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  # As TRL does and model cards say. The base of an adapter may pad with the end
  # of a turn, and transformers would score before it.
  model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
  found = []
  for size in (1, 2):
    for start in range(0, len(conversations), size):
      batch = tokenizer.apply_chat_template(
        conversations[start : start + size],
        padding=size > 1,
        return_dict=True,
        return_tensors="pt",
      )
      with torch.no_grad():
        found += model(**batch).logits[:, 0].tolist()
  return np.array(found, np.float32).reshape(2, -1)


def main(root: Path) -> None:
  """Scores every export."""
  conversations = json.loads((root / "conversations.json").read_text())
  for directory in sorted((root / "exports").iterdir()):
    np.save(directory / "recipe.npy", scores(directory, conversations))


if __name__ == "__main__":
  main(Path(sys.argv[1]))

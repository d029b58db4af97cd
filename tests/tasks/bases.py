"""Checkpoints with the tokenizers of families, and pairs to train them on."""

import json

from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import hf_export
from perl_jax.models import presets
from perl_jax.tasks.initial import model
from tests.data.text import families
from tests.data.text.messages import assistant, user

# Family of the tokenizer -> model. With a date, and with a pad token that ends
# responses among them.
MODELS = {
  "qwen2.5": "qwen2_tiny", "gemma2": "gemma2_tiny", "llama3": "llama_tiny",
  "llama3.2": "llama_tiny", "llama2": "llama_tiny", "mistral2": "mistral_tiny",
  "smollm2": "llama_tiny", "r1": "qwen2_tiny",
}  # fmt: skip
# Without a chat template.
BARE = families.Family(
  None, "bytes", ("<|endoftext|>", "<pad>"),
  {"eos_token": "<|endoftext|>", "pad_token": "<pad>"}, None, (),
)  # fmt: skip
ANSWERS = ("hello there", "what can I get you?")
PAIRS = [([user(f"{i} milk and {12 * i}")], ANSWERS) for i in range(4)]


def write_base(directory, name):
  """A checkpoint with random weights and a family's tokenizer."""
  known = families.FAMILIES | families.REASONING | {"bare": BARE}
  family = known[name]
  families.write(family, directory)
  generation = directory / "generation_config.json"
  kept = generation.read_text() if generation.exists() else None
  found = tokenization_lib.load_tokenizer(directory)
  config = presets.preset(
    MODELS.get(name, "llama_tiny"), vocab_size=found.vocab_size, max_len=200
  )
  hf_export.save_model(
    directory,
    config,
    model.random_base(config, 0, "float32"),
    hf_export.Stops((found.stop_ids[0],), found.bos_id, found.pad_id),
    dtype="float32",
    shard_bytes=10**9,
  )
  if kept is not None:
    generation.write_text(kept)


def write_rows(path, count):
  lines = [
    {
      "prompt": [user(f"{i} milk and {12 * i}")],
      "chosen": [assistant(ANSWERS[0])],
      "rejected": [assistant(ANSWERS[1])],
    }
    for i in range(count)
  ]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def fields(root, name):
  return {
    "base": str(root / "bases" / name),
    "data__path": str(root / "train.jsonl"),
    "data__validation_path": str(root / "held_out.jsonl"),
    "data__max_len": 168,
    "data__prompt_len": 150,
    "batch_size": 4,
  }

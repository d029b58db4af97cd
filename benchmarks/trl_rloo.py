"""TRL's RLOOTrainer on given prompts: what an iteration takes.

  python -m benchmarks.trl_rloo MODEL PROMPTS.json

The other side of `rl_rows.py`, which writes both: a model as `transformers`
loads it, and prompts as tokens. It needs none of `perl_jax`, so that it
runs in an environment of its own:

  pip install torch==2.13.0 trl==1.16.0 peft==0.21.2 datasets==5.2.0 \
      accelerate==1.15.0

TRL takes prompts as text and gives text to the reward model. Its tokenizer here
has a character for each token, so that both keep their very tokens. Prints one
JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import peft_lora, process

_FIRST = 0x20000  # a plane of characters that no tokenizer changes


def text_of(ids: list[int]) -> str:
  """Tokens as text, a character each."""
  return "".join(chr(_FIRST + i) for i in ids)


def tokenizer(vocab: int, stop_id: int, pad_id: int) -> Any:
  """The tokenizer that reads `text_of` back."""
  import tokenizers
  import transformers

  ids = {text_of([i]): i for i in range(vocab)}
  model = tokenizers.models.WordLevel(ids, unk_token=text_of([pad_id]))
  inner = tokenizers.Tokenizer(model)
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
  inner.decoder = tokenizers.decoders.Fuse()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner,
    eos_token=text_of([stop_id]),
    pad_token=text_of([pad_id]),
    padding_side="left",
  )


def trainer(
  model: str, wanted: Mapping[str, Any], output: str, callback: Any
) -> Any:
  """A trainer that takes the prompts in their order, one update a batch."""
  import datasets
  import peft
  import torch
  import transformers
  import trl

  torch.manual_seed(0)
  reward = transformers.AutoModelForSequenceClassification.from_pretrained(
    model, num_labels=1, dtype=torch.float32
  )
  reward = peft.get_peft_model(
    reward, peft_lora.config("SEQ_CLS", wanted["rank"])
  )
  policy = transformers.AutoModelForCausalLM.from_pretrained(
    model, dtype=torch.float32
  )
  policy.generation_config.eos_token_id = wanted["stop_ids"]
  batches, group = wanted["prompts"], wanted["group"]
  config = trl.RLOOConfig(
    output_dir=output,
    max_steps=len(batches),
    per_device_train_batch_size=len(batches[0]) * group,
    gradient_accumulation_steps=1,
    num_generations=group,
    max_completion_length=wanted["response_len"],
    temperature=1.0,
    beta=wanted["beta"],
    learning_rate=wanted["rate"],
    lr_scheduler_type="constant",
    shuffle_dataset=False,
    bf16=False,
    gradient_checkpointing=False,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
  )
  tokens = [
    tokenizer(wanted["vocab"], wanted["stop_ids"][0], wanted["pad_id"])
    for _ in range(2)
  ]
  rows = [{"prompt": text_of(ids)} for batch in batches for ids in batch]
  return trl.RLOOTrainer(
    model=policy,
    reward_funcs=reward.eval().requires_grad_(False),
    args=config,
    train_dataset=datasets.Dataset.from_list(rows),
    processing_class=tokens[0],
    reward_processing_classes=tokens[1],
    peft_config=peft_lora.config("CAUSAL_LM", wanted["rank"]),
    callbacks=[callback],
  )


def run(model: str, prompts: Path, warmup: int) -> dict[str, Any]:
  """Trains a model on prompts.

  Args:
    model: Directory of the model.
    prompts: JSON of the prompts, in batches, and of the settings.
    warmup: First iterations, which are not counted.

  Returns:
    `iterations`, one for each counted: seconds by the clock ("wall") and of the
    processor ("cpu"), tokens of the prompts ("prompt") and of the responses
    ("response"), means over the batch; and `peak_bytes` of the process.
  """
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  readings: list[tuple[float, float]] = []
  lengths: list[dict[str, float]] = []

  def read():
    readings.append((time.perf_counter(), time.process_time()))

  class Clock(transformers.TrainerCallback):
    """Reads the clocks before the first iteration and after each."""

    def on_train_begin(self, *_, **__):
      read()

    def on_step_end(self, *_, **__):
      read()

  wanted = json.loads(prompts.read_text())
  with tempfile.TemporaryDirectory() as output:
    found = trainer(model, wanted, output, Clock())
    generate = found._generate_single_turn

    def generated(prompt_ids, *args, **kwargs):
      responses = generate(prompt_ids, *args, **kwargs)
      lengths.append(
        {
          "prompt": sum(map(len, prompt_ids)) / len(prompt_ids),
          "response": sum(map(len, responses)) / len(responses),
        }
      )
      expected = wanted["prompts"][len(lengths) - 1]
      if prompt_ids[:: wanted["group"]] != expected:
        raise ValueError("TRL has taken other prompts.")
      return responses

    found._generate_single_turn = generated
    found.train()
  iterations = [
    {"wall": after[0] - before[0], "cpu": after[1] - before[1]} | length
    for before, after, length in zip(
      readings[:-1], readings[1:], lengths, strict=True
    )
  ]
  return {
    "iterations": iterations[warmup:],
    "peak_bytes": process.status_bytes("VmHWM"),
  }


def main() -> None:
  """Measures TRL."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("model")
  parser.add_argument("prompts", type=Path)
  parser.add_argument("--warmup", type=int, default=2)
  given = parser.parse_args()
  print(json.dumps(run(given.model, given.prompts, given.warmup)))


if __name__ == "__main__":
  main()

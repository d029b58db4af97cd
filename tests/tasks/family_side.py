"""Tiny models of the families of docs/models.md, and what PyTorch says of them.

    python -m tests.tasks.family_side make DIRECTORY
    python -m tests.tasks.family_side judge DIRECTORY

`make` writes, for each family, a checkpoint with a tokenizer and chat template
of its kind, a PEFT adapter and a reward model, and what `transformers` and PEFT
say of a prompt and of two conversations. `judge` says the same of what was
exported from them. Needs torch and peft; runs in a process of its own, as they
warn of each other.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.archives import read_arrays
from tests.data.text import families
from tests.data.text.messages import assistant, user
from tests.interop import torch_side

_LLAMA3 = dict(
  rope_type="llama3", rope_theta=500_000.0, factor=32.0, low_freq_factor=1.0,
  high_freq_factor=4.0, original_max_position_embeddings=64,
)  # fmt: skip
_WINDOWS = dict(
  sliding_window=5, layer_types=["sliding_attention", "full_attention"]
)


def _theta(theta):
  return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


# Family -> (its tokenizer and chat template, config class, fields).
FAMILIES = {
  "Llama 2": ("llama2", "LlamaConfig", dict(num_key_value_heads=4)),
  "Llama 3": ("llama3", "LlamaConfig", _theta(500_000.0)),
  "Llama 3.2": (
    "llama3.2",
    "LlamaConfig",
    dict(rope_parameters=_LLAMA3, tie_word_embeddings=True),
  ),
  "SmolLM2": (
    "smollm2",
    "LlamaConfig",
    _theta(100_000.0) | dict(tie_word_embeddings=True),
  ),
  "Mistral": ("mistral2", "MistralConfig", dict(sliding_window=5)),
  "Qwen2.5": (
    "qwen2.5",
    "Qwen2Config",
    _theta(1e6) | dict(tie_word_embeddings=True),
  ),
  "Qwen3": (
    "qwen3",
    "Qwen3Config",
    _theta(1e6) | dict(tie_word_embeddings=True),
  ),
  "Gemma 1": ("gemma2", "GemmaConfig", {}),
  "Gemma 2": ("gemma2", "Gemma2Config", _WINDOWS),
  "Gemma 3": ("gemma3", "Gemma3TextConfig", _WINDOWS),
  "Gemma 3 with vision": ("gemma3", "Gemma3Config", _WINDOWS),
  "InternVL": ("qwen2.5", "InternVLConfig", dict(model_type="qwen2")),
  "LLaVA": ("llama2", "LlavaConfig", dict(model_type="llama")),
  "LLaVA-NeXT": ("mistral2", "LlavaNextConfig", {}),
  "LLaVA-OneVision": (
    "qwen2.5",
    "LlavaOnevisionConfig",
    dict(model_type="qwen2"),
  ),
  "Mistral Small 3.1": ("mistral2", "Mistral3Config", {}),
  "ViP-LLaVA": ("llama2", "VipLlavaConfig", dict(model_type="llama")),
  "R1 distillation (Qwen)": ("r1", "Qwen2Config", {}),
  "R1 distillation (Llama)": (
    "r1",
    "LlamaConfig",
    dict(rope_parameters=_LLAMA3),
  ),
}
PROMPT = [user("hello")]
CONVERSATIONS = [
  [user("milk"), assistant("hello there")],
  [user("12"), assistant("what can I get you?"), user("a"), assistant("b")],
]
DATE = "26 Jul 2024"  # the date that prompts of Llama 3.2 have here


def text_family(name: str) -> families.Family:
  """How a family turns text into tokens."""
  return (families.FAMILIES | families.REASONING)[FAMILIES[name][0]]


def _config(name: str, tokenizer):
  _, kind, fields = FAMILIES[name]
  # Beside a config.json of Qwen2 transformers takes a class that adds a token.
  added = name == "R1 distillation (Qwen)"
  fields = fields | dict(
    vocab_size=len(tokenizer) + added,
    num_hidden_layers=2,
    max_position_embeddings=256,
    pad_token_id=tokenizer.pad_token_id,
  )
  return torch_side.config_of(kind, fields)


def _ids(tokenizer, messages, generate=False):
  return tokenizer.apply_chat_template(
    messages,
    add_generation_prompt=generate,
    return_dict=False,
    date_string=DATE,
    enable_thinking=False,
  )


def _logits(model, ids):
  tokens = np.asarray(ids)[None]
  return torch_side.logits_of(model.eval(), tokens, np.array([len(ids)]))


def _scores(model, tokenizer) -> np.ndarray:
  """Scores of the conversations in one batch, by the usual recipe."""
  import torch

  batch = tokenizer.apply_chat_template(
    CONVERSATIONS,
    padding=True,
    return_dict=True,
    return_tensors="pt",
    date_string=DATE,
    enable_thinking=False,
  )
  with torch.no_grad():
    return model.eval()(**batch).logits[:, 0].numpy()


def _make(directory: Path, name: str, seed: int) -> None:
  import peft
  import torch
  import transformers

  torch.manual_seed(seed)
  base = families.write(text_family(name), directory / "base")
  generation = base / "generation_config.json"
  kept = generation.read_text() if generation.exists() else None
  tokenizer = transformers.AutoTokenizer.from_pretrained(base)
  config = _config(name, tokenizer)
  model = torch_side.causal_class(config).from_config(config)
  torch_side.randomise(model, seed)
  model.save_pretrained(base)
  if kept is None:
    generation.unlink(missing_ok=True)
  else:
    generation.write_text(kept)
  # The class of the tokenizer may depend on config.json, which is there now.
  tokenizer = transformers.AutoTokenizer.from_pretrained(base)
  prompt = _ids(tokenizer, PROMPT, generate=True)
  expected = {"prompt": prompt, "logits": _logits(model, prompt)}
  adapted = peft.get_peft_model(
    model, torch_side.lora("CAUSAL_LM", ["q_proj", "v_proj", "up_proj"])
  )
  adapted.peft_config["default"].base_model_name_or_path = str(base)
  adapted.save_pretrained(directory / "adapter")
  expected["adapter_logits"] = _logits(adapted, prompt)

  config = torch_side.scoring_config(_config(name, tokenizer))
  reward = transformers.AutoModelForSequenceClassification.from_config(config)
  torch_side.randomise(reward, seed + 1)
  reward.save_pretrained(directory / "reward")
  families.write(text_family(name), directory / "reward")
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory / "reward")
  rows = [_ids(tokenizer, messages) for messages in CONVERSATIONS]
  expected["scores"] = np.stack(
    [
      torch_side.scores_of(reward.eval(), [r], [len(r)])[0]
      for r in map(np.asarray, rows)
    ]
  )
  np.savez(directory / "expected.npz", **expected)
  (directory / "conversations.json").write_text(json.dumps(rows))


def _judge(directory: Path) -> None:
  """Writes judged-*.npy: what users of the exports see."""
  prompt = read_arrays(directory / "expected.npz")["prompt"]
  for role, form in (
    ("policy", "adapter"),
    ("policy", "merged"),
    ("reward", "merged"),
  ):
    export = directory / f"{role}-{form}"
    if not export.exists():
      continue
    model = torch_side.load_exported(export, role, form)
    if role == "policy":
      found = _logits(model, prompt)
    else:
      import transformers

      found = _scores(model, transformers.AutoTokenizer.from_pretrained(export))
    np.save(directory / f"judged-{role}-{form}.npy", found)


def main(argv: list[str]) -> None:
  """`make DIRECTORY`, or `judge DIRECTORY`."""
  import torch

  torch.set_num_threads(1)
  what, root = argv
  for number, name in enumerate(FAMILIES):
    if what == "judge":
      _judge(Path(root) / name)
      continue
    (Path(root) / name).mkdir(parents=True)
    _make(Path(root) / name, name, seed=100 + number)


if __name__ == "__main__":
  main(sys.argv[1:])

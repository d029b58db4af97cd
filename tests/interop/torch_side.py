"""Tiny random models of every family, and what PyTorch says of them.

    python -m tests.interop.torch_side tests/interop/references

writes, for each family, a checkpoint, a PEFT adapter and a reward adapter as
their libraries save them, and `expected.npz`. The files are checked in, so that
`make test` compares without PyTorch; where it is installed the tests also run
this with another seed, in a process of its own (those libraries warn of each
other), and compare live. Needs torch and peft.
"""

import sys
from pathlib import Path

import numpy as np

VOCAB, PROMPT, NEW = 96, 12, 64
SHAPE = dict(
  vocab_size=VOCAB,
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  max_position_embeddings=128,
  initializer_range=0.3,
  bos_token_id=None,
  eos_token_id=None,
  pad_token_id=0,
)
_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
_LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}
_GEMMA3 = dict(sliding_window=5, layer_types=_LAYERS, query_pre_attn_scalar=12)
# Family -> (config class, fields). Windows are shorter than the sequences.
FAMILIES = {
  "llama2": ("LlamaConfig", dict(num_key_value_heads=4)),
  "llama3": (
    "LlamaConfig",
    dict(rope_parameters=_LLAMA3, tie_word_embeddings=True),
  ),
  "mistral": ("MistralConfig", dict(sliding_window=5)),
  "qwen2": ("Qwen2Config", dict(tie_word_embeddings=True)),
  "qwen3": ("Qwen3Config", dict(tie_word_embeddings=False)),
  "gemma": ("GemmaConfig", {}),
  "gemma2": (
    "Gemma2Config",
    dict(
      sliding_window=5,
      layer_types=_LAYERS,
      query_pre_attn_scalar=12,
      attn_logit_softcapping=2.0,
      final_logit_softcapping=3.0,
    ),
  ),
  "gemma3": ("Gemma3TextConfig", _GEMMA3),
  # The text model of the same shape within one that sees images.
  "gemma3_vision": ("Gemma3Config", _GEMMA3),
  "mistral3": ("Mistral3Config", dict(sliding_window=5)),
  "llava": ("LlavaConfig", dict(model_type="qwen2")),
}
_TOWER = dict(
  hidden_size=16,
  intermediate_size=16,
  num_hidden_layers=1,
  num_attention_heads=2,
  image_size=28,
  patch_size=14,
)
_IMAGES = dict(vision_config=_TOWER, image_token_index=VOCAB - 1)
# Config class of a model that sees images too -> its fields beside the text
# model, which is named where the class takes any.
NESTED = {
  "Gemma3Config": _IMAGES
  | dict(
    mm_tokens_per_image=4,
    boi_token_index=VOCAB - 3,
    eoi_token_index=VOCAB - 2,
  ),
  "InternVLConfig": dict(
    vision_config=_TOWER | dict(image_size=[28, 28], patch_size=[14, 14]),
    image_token_id=VOCAB - 1,
  ),
  "LlavaConfig": _IMAGES,
  "LlavaNextConfig": _IMAGES,
  "LlavaOnevisionConfig": _IMAGES | dict(video_token_index=VOCAB - 2),
  "Mistral3Config": _IMAGES
  | dict(vision_config=_TOWER | dict(head_dim=8), tie_word_embeddings=False),
  "VipLlavaConfig": _IMAGES,
}


def make_config(family: str):
  """The config of a tiny model."""
  return config_of(*FAMILIES[family])


def config_of(name: str, fields: dict):
  """The config of a tiny model of a class, with some fields changed."""
  import transformers

  shape = dict(SHAPE)
  if "qwen2" in (name.removesuffix("Config").lower(), fields.get("model_type")):
    shape.pop("head_dim")
    shape["hidden_size"] = 32
  shape |= fields
  if name in NESTED:
    if name != "Gemma3Config":
      shape = {"model_type": "mistral"} | shape
    shape = NESTED[name] | {"text_config": shape}
  made = getattr(transformers, name)(**shape)
  made._attn_implementation = "eager"
  return made


def causal_class(config):
  """The class of `transformers` that makes tokens with a config.

  Gemma 3 with vision has two; of the others that see images it is this one.
  """
  import transformers

  if type(config).__name__ in NESTED:
    return transformers.AutoModelForImageTextToText
  return transformers.AutoModelForCausalLM


def load_causal(directory, **options):
  """A checkpoint as a model that makes tokens."""
  import transformers

  config = transformers.AutoConfig.from_pretrained(directory)
  return causal_class(config).from_pretrained(directory, **options)


def scoring_config(config):
  """The config with one label, of the text model if no class scores more."""
  name = type(config).__name__
  if name in NESTED and name != "Gemma3Config":
    config = config.text_config
    config._attn_implementation = "eager"
  config.num_labels = 1
  return config


def randomise(model, seed: int) -> None:
  """Random norms and biases too: at their start they would hide mistakes."""
  import torch

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      drawn = torch.randn(parameter.shape, generator=generator)
      if "norm" in name:
        gemma = "gemma" in type(model).__name__.lower()
        drawn = 0.3 * drawn + (0.0 if gemma else 1.0)
      elif name.endswith("bias"):
        drawn = 0.5 * drawn
      else:
        drawn = 0.3 * drawn
      parameter.copy_(drawn)


def batch(seed: int):
  """Right-padded tokens and lengths, `[3, 24]` and `[3]`."""
  rng = np.random.default_rng(seed)
  return rng.integers(1, VOCAB, (3, 24)), np.array([24, 17, 9])


def logits_of(model, tokens, lengths):
  """Logits, 0 where padded."""
  import torch

  mask = np.arange(tokens.shape[1]) < lengths[:, None]
  with torch.no_grad():
    found = model(
      input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()
    ).logits.numpy()
  return np.where(mask[..., None], found, 0.0).astype(np.float32)


def judge_logits(directory: Path, expected) -> np.ndarray:
  """What transformers says of a checkpoint on the tokens of a reference."""
  import pytest

  torch = pytest.importorskip("torch", reason="compares with PyTorch")

  model = load_causal(
    directory, dtype=torch.float32, attn_implementation="eager"
  )
  return logits_of(model.eval(), expected["tokens"], expected["lengths"])


def greedy(model, prompt) -> np.ndarray:
  """64 tokens by argmax, each from a full pass over what stands before it."""
  import torch

  tokens = torch.tensor(prompt)[None]
  with torch.no_grad():
    for _ in range(NEW):
      best = model(input_ids=tokens).logits[:, -1].argmax(-1)
      tokens = torch.cat([tokens, best[:, None]], dim=1)
  return tokens[0, len(prompt) :].numpy()


def scores_of(model, tokens, lengths):
  """Reward of each row."""
  import torch

  rows = [
    model(input_ids=torch.tensor(row[:length])[None]).logits[0, 0]
    for row, length in zip(tokens, lengths, strict=True)
  ]
  return torch.stack(rows).detach().numpy().astype(np.float32)


def lora(task: str, modules):
  """An adapter whose dropout is off and whose B is not 0."""
  import peft

  return peft.LoraConfig(
    task_type=task,
    r=2,
    lora_alpha=6,
    lora_dropout=0.0,
    target_modules=modules,
    modules_to_save=["score"] if task == "SEQ_CLS" else None,
    init_lora_weights=False,
  )


def write_family(directory: Path, family: str, seed: int) -> None:
  """Everything about one family, into a directory of its own."""
  import peft
  import torch
  import transformers

  torch.manual_seed(seed)
  config = make_config(family)
  tokens, lengths = batch(seed)
  model = causal_class(config).from_config(config).eval()
  randomise(model, seed)
  model.save_pretrained(directory / "checkpoint")
  expected = {
    "tokens": tokens,
    "lengths": lengths,
    "logits": logits_of(model, tokens, lengths),
    "greedy": greedy(model, tokens[0, :PROMPT]),
  }
  attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
  mlp = ["gate_proj", "up_proj", "down_proj"]
  adapted = peft.get_peft_model(model, lora("CAUSAL_LM", attention + mlp))
  adapted.eval().save_pretrained(directory / "adapter")
  expected["adapter_logits"] = logits_of(adapted, tokens, lengths)

  config = scoring_config(make_config(family))
  reward = transformers.AutoModelForSequenceClassification.from_config(config)
  reward.eval()
  randomise(reward, seed + 1)
  base = load_causal(directory / "checkpoint").model
  if hasattr(base, "language_model") and not hasattr(
    reward.model, "language_model"
  ):
    base = base.language_model
  reward.model.load_state_dict(base.state_dict())
  reward.save_pretrained(directory / "reward_checkpoint")
  expected["checkpoint_scores"] = scores_of(reward, tokens, lengths)
  rewarding = peft.get_peft_model(reward, lora("SEQ_CLS", attention))
  with torch.no_grad():
    rewarding.base_model.model.score.modules_to_save["default"].weight.normal_()
  rewarding.eval().save_pretrained(directory / "reward_adapter")
  expected["adapter_scores"] = scores_of(rewarding, tokens, lengths)
  np.savez_compressed(directory / "expected.npz", **expected)


def load_exported(directory: Path, role: str, form: str):
  """A model as its users load it."""
  import peft
  import transformers

  if (role, form) == ("policy", "merged"):
    return transformers.AutoModelForCausalLM.from_pretrained(directory)
  if (role, form) == ("policy", "adapter"):
    base = peft.PeftConfig.from_pretrained(directory).base_model_name_or_path
    if type(transformers.AutoConfig.from_pretrained(base)).__name__ in NESTED:
      return peft.PeftModel.from_pretrained(load_causal(base), directory)
    return peft.AutoPeftModelForCausalLM.from_pretrained(directory)
  if (role, form) == ("reward", "merged"):
    return transformers.AutoModelForSequenceClassification.from_pretrained(
      directory
    )
  return peft.AutoPeftModelForSequenceClassification.from_pretrained(
    directory, num_labels=1
  )


def judge(root: Path) -> None:
  """Writes judged.npy into each FAMILY-ROLE-FORM: logits or scores, seed 0."""
  for directory in sorted(root.iterdir()):
    _, role, form = directory.name.split("-")
    model = load_exported(directory, role, form).eval()
    measure = logits_of if role == "policy" else scores_of
    np.save(directory / "judged.npy", measure(model, *batch(0)))


def main(argv: list[str]) -> None:
  """`DIRECTORY [SEED]`, or `--judge DIRECTORY`."""
  if argv[0] == "--judge":
    judge(Path(argv[1]))
    return
  first = int(argv[1]) if len(argv) > 1 else 0
  for number, family in enumerate(FAMILIES):
    target = Path(argv[0]) / family
    target.mkdir(parents=True, exist_ok=True)
    write_family(target, family, seed=first + number)
    for name in ("README.md", "generation_config.json"):
      for path in target.rglob(name):
        path.unlink()


if __name__ == "__main__":
  main(sys.argv[1:])

"""Adapters of every kind that PEFT writes, and what PEFT makes of them.

    python -m tests.interop.peft_side DIRECTORY

writes the bases, and for each kind the adapter, `expected.npy` (the logits of
base + adapter as PEFT loads them), and the ways out that our errors name:
`merged` (merge_and_unload), `converted` (with the start subtracted), `started`
(the base after its start was taken off) and `safe` (a pickle converted). Needs
torch and peft; runs in a process of its own, as they warn.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.interop import torch_side

FEW = ["q_proj", "v_proj"]
# Adapters that load as PEFT loads them: kind -> fields of LoraConfig.
LOADED = {
  "plain": {},
  "gaussian": dict(init_lora_weights="gaussian"),
  "eva": dict(init_lora_weights="eva"),
  "orthogonal": dict(init_lora_weights="orthogonal"),
  "mica": dict(init_lora_weights="mica"),
  "rslora": dict(use_rslora=True),
  "patterns": dict(
    target_modules="all-linear",
    rank_pattern={"v_proj": 2, r"layers\.[01]\.mlp\.up_proj": 6},
    alpha_pattern={"self_attn.q_proj": 3, "^model.layers.2.mlp.up_proj": 5},
  ),
  "rslora patterns": dict(
    use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5}
  ),
  "some layers": dict(layers_to_transform=[0, 2]),
  "one layer": dict(layers_to_transform=1, layers_pattern="layers"),
  "excluded": dict(
    target_modules="all-linear",
    exclude_modules=["mlp.up_proj", "model.layers.1.self_attn.q_proj"],
  ),
  "excluded by expression": dict(exclude_modules=r".*\.0\..*q_proj"),
  "expression": dict(target_modules=r"model\.layers\.[12]\..*\.(o|k)_proj"),
  "whole names": dict(
    target_modules=["model.layers.0.mlp.down_proj", "2.self_attn.q_proj"]
  ),
  "default modules": dict(target_modules=None),
  "fan": dict(fan_in_fan_out=True),
  "half": dict(dtype="bfloat16"),
  "no head": dict(task_type="FEATURE_EXTRACTION"),
}
# Adapters that are refused, and that the way out "merge" makes a checkpoint.
MERGED = {
  "pissa": dict(init_lora_weights="pissa"),
  "olora": dict(init_lora_weights="olora"),
  "use_dora": dict(use_dora=True),
  "lora_bias": dict(lora_bias=True),
  "bias": dict(bias="all"),
  "modules_to_save": dict(modules_to_save=["embed_tokens", "lm_head"]),
  "embed_tokens.lora_embedding_A": dict(
    target_modules=["q_proj", "embed_tokens"]
  ),
  "lm_head.lora_A": dict(target_modules=["q_proj", "lm_head"]),
  "trainable_token_indices": dict(trainable_token_indices=[1, 2, 3]),
  "target_parameters": dict(
    target_modules=[], target_parameters=["mlp.gate_proj.weight"]
  ),
  "velora_config": dict(velora_config=dict(num_groups=4)),
  "kasa_config": dict(kasa_config={}),
  "monteclora_config": dict(monteclora_config={}),
  "use_bdlora": dict(
    use_bdlora=dict(
      target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2
    )
  ),
}
# Adapters whose start was taken off the base.
STARTED = {
  "pissa_niter_2": dict(init_lora_weights="pissa_niter_2"),
  "lora_ga": dict(init_lora_weights="lora_ga", lora_ga_config={}),
}


def family(kind: str) -> str:
  """The base of a kind; adapters with a bias need one in the base."""
  return "qwen2" if kind in ("bias", "lora_bias") else "llama2"


def base_of(root: Path, kind: str, headless: bool = False):
  """The model of a kind's base."""
  import transformers

  name = "AutoModel" if headless else "AutoModelForCausalLM"
  directory = root / "bases" / family(kind)
  return getattr(transformers, name).from_pretrained(directory).eval()


def logits(model) -> np.ndarray:
  """What is compared: logits of one batch."""
  return torch_side.logits_of(model.eval(), *torch_side.batch(0))


def train(model, seed: int) -> None:
  """What training would do: everything that is trainable moves."""
  import torch

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for _, parameter in sorted(model.named_parameters()):
      if parameter.requires_grad:
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.add_(0.1 * drawn.to(parameter.dtype))


def made(root: Path, kind: str, fields, seed: int):
  """A trained adapter of a kind, on its base."""
  import peft
  import torch

  fields = dict(r=4, lora_alpha=8, target_modules=FEW) | fields
  dtype = fields.pop("dtype", None)
  fields.setdefault("task_type", "CAUSAL_LM")
  config = peft.LoraConfig(**fields)
  torch.manual_seed(seed)
  base = base_of(root, kind, fields["task_type"] == "FEATURE_EXTRACTION")
  if fields.get("init_lora_weights") == "lora_ga":
    from peft.tuners.lora.loraga import preprocess_loraga

    tokens = torch.tensor(torch_side.batch(0)[0])
    preprocess_loraga(
      base, config, lambda: base(tokens, labels=tokens).loss.backward()
    )
  model = peft.get_peft_model(base, config)
  if kind in STARTED:
    model.save_pretrained(str(root / kind / "start"))
  train(model, seed)
  if dtype:
    for name, parameter in model.named_parameters():
      if "lora_" in name:
        parameter.data = parameter.data.to(getattr(torch, dtype))
  return model


def write(root: Path, kind: str, fields, seed: int) -> None:
  """The adapter of a kind, what PEFT says of it, and its way out."""
  import peft

  directory = root / kind
  model = made(root, kind, fields, seed)
  model.save_pretrained(directory)
  if kind in STARTED:
    np.save(directory / "expected.npy", logits(model))
    model.save_pretrained(
      directory / "converted",
      path_initial_model_for_weight_conversion=str(directory / "start"),
    )
    model.unload().save_pretrained(directory / "started")
    return
  if fields.get("task_type") == "FEATURE_EXTRACTION":
    # The same adapter under a head, by the name it then has.
    whole = base_of(root, kind)
    whole.model = peft.PeftModel.from_pretrained(whole.model, directory)
    np.save(directory / "expected.npy", logits(whole))
    return
  loaded = peft.PeftModel.from_pretrained(base_of(root, kind), directory)
  np.save(directory / "expected.npy", logits(loaded))
  if kind in MERGED:
    loaded.merge_and_unload().save_pretrained(directory / "merged")


def write_vision(root: Path, seed: int) -> None:
  """An adapter on all linear layers of a Gemma 3 with vision."""
  import peft
  import torch
  import transformers

  torch.manual_seed(seed)
  text = dict(torch_side.SHAPE, **torch_side.FAMILIES["gemma3"][1])
  config = transformers.Gemma3Config(
    text_config=text,
    vision_config=dict(
      hidden_size=16, intermediate_size=16, num_hidden_layers=1,
      num_attention_heads=2, image_size=28, patch_size=14,
    ),
    mm_tokens_per_image=1,
  )  # fmt: skip
  config._attn_implementation = "eager"
  model = transformers.Gemma3ForConditionalGeneration(config).eval()
  torch_side.randomise(model, seed)
  text = transformers.AutoModelForCausalLM.from_config(config.text_config)
  text.model.load_state_dict(model.model.language_model.state_dict())
  text.save_pretrained(root / "bases" / "gemma3")
  wanted = peft.LoraConfig(
    r=2, target_modules="all-linear", init_lora_weights=False
  )
  adapted = peft.get_peft_model(model, wanted)
  adapted.save_pretrained(root / "vision")
  np.save(root / "vision" / "expected.npy", logits(adapted))


def write_pickle(root: Path) -> None:
  """The plain adapter as a pickle, and converted as our error says."""
  import safetensors.torch
  import torch

  for name in ("pickle", "safe"):
    directory = root / name
    directory.mkdir()
    settings = (root / "plain" / "adapter_config.json").read_text()
    (directory / "adapter_config.json").write_text(settings)
  tensors = safetensors.torch.load_file(
    root / "plain" / "adapter_model.safetensors"
  )
  pickled = root / "pickle" / "adapter_model.bin"
  torch.save(tensors, pickled)
  safetensors.torch.save_file(
    torch.load(pickled, weights_only=True),
    root / "safe" / "adapter_model.safetensors",
  )


def write_fields(root: Path) -> None:
  """Names of the fields of LoraConfig, as `fields.json`."""
  import dataclasses

  import peft

  names = [field.name for field in dataclasses.fields(peft.LoraConfig)]
  (root / "fields.json").write_text(json.dumps(names))


def main(argv: list[str]) -> None:
  """`DIRECTORY`."""
  import torch
  import transformers

  root = Path(argv[0])
  for name in ("llama2", "qwen2"):
    torch.manual_seed(0)
    config = torch_side.make_config(name)
    model = transformers.AutoModelForCausalLM.from_config(config)
    torch_side.randomise(model, 0)
    model.save_pretrained(root / "bases" / name)
  kinds = LOADED | MERGED | STARTED
  for seed, (kind, fields) in enumerate(kinds.items()):
    write(root, kind, fields, seed)
  write_vision(root, len(kinds))
  write_pickle(root)
  write_fields(root)


if __name__ == "__main__":
  main(sys.argv[1:])

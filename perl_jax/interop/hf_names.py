"""Names of the Hugging Face tensors that make up each leaf of the base.

The formats differ twice: `torch.nn.Linear` keeps its matrix as [out, in], a
kernel here is [in, out]; and a checkpoint has a tensor for each layer, where
the base tree has one leaf with a leading layer axis.
"""

import re
from collections.abc import Mapping

from perl_jax.interop.leaves import Source
from perl_jax.models.config import ModelConfig

# Module of each projection, by its path in the base tree.
PROJECTIONS = {
  "attention/q": "self_attn.q_proj",
  "attention/k": "self_attn.k_proj",
  "attention/v": "self_attn.v_proj",
  "attention/o": "self_attn.o_proj",
  "mlp/gate": "mlp.gate_proj",
  "mlp/up": "mlp.up_proj",
  "mlp/down": "mlp.down_proj",
}
# Saved by old releases; every loader computes it again.
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")
# The parts of a larger model that see images.
VISION = re.compile(
  r"(model\.)?((vision_tower|multi_modal_projector)\..*|image_newline)"
)
# Beside a weight of GPTQ, AWQ, bitsandbytes, FP8, compressed-tensors, MXFP4,
# torchao or HQQ.
QUANTIZED = re.compile(
  r".*[.:_]("
  r"qweight|qzeros|scales|g_idx|SCB|weight_format|blocks"
  r"|(nested_)?(absmax|quant_map)|quant_state\..*"
  r"|(weight|input|output)_(scale|zero_point)(_inv|_2)?"
  r"|weight_(packed|shape|scales|g_idx)|qdata|W_q)"
)
EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
SCORE = (
  "score.weight"  # of a reward model, `AutoModelForSequenceClassification`
)


# Where the base model is in `...ForCausalLM`, and in a model that sees images.
ROOT = "model."
NESTED_ROOT = "model.language_model."
_BASE = r"(?=(layers|embed_tokens|norm)\.)"
_PLAIN_BASE = re.compile(rf"(model\.)?{_BASE}")
_NESTED_BASE = re.compile(rf"(model\.)?language_model\.(model\.)*{_BASE}")
_HEADS = re.compile(r"(model\.)?(?=(lm_head|score)\.)")
_NESTED_HEADS = re.compile(
  r"(model\.)?(?=(lm_head|score)\.)|language_model\.(?=lm_head\.)"
)


def canonical(name: str, nested: bool = False) -> str | None:
  """The name of a parameter in `...ForCausalLM`, from its name in a file.

  None if it belongs to neither the base model nor a head.

  The base model may have been saved by itself, without "model." in front, or a
  head with it: `transformers` reads both.

  Args:
    name: As the file has it.
    nested: Whether the language model is a part of a larger one, in which the
      names of its base begin with "language_model.model." (old files) or
      "model.language_model.".
  """
  base = (_NESTED_BASE if nested else _PLAIN_BASE).match(name)
  if base:
    return ROOT + name[base.end() :]
  head = (_NESTED_HEADS if nested else _HEADS).match(name)
  return name[head.end() :] if head else None


def sources(
  config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Source]:
  """A `Source` for each path of the base tree.

  Args:
    config: Shapes and switches of the model.
    shapes: Shape of each leaf of the base tree, by path.
  """
  return {path: _source(config, path) for path in shapes}


def _source(config: ModelConfig, path: str) -> Source:
  if path == "embedding":
    return Source((EMBEDDING,), stacked=False, transposed=False)
  if path == "lm_head":
    return Source((LM_HEAD,), stacked=False, transposed=True)
  if path == "final_norm/scale":
    return Source(("model.norm.weight",), stacked=False, transposed=False)
  inner = path.removeprefix("layers/")
  names = tuple(
    f"model.layers.{i}.{_in_layer(config, inner)}"
    for i in range(config.num_layers)
  )
  return Source(names, stacked=True, transposed=inner.endswith("/kernel"))


def _in_layer(config: ModelConfig, path: str) -> str:
  stem, leaf = path.rsplit("/", 1)
  if stem in PROJECTIONS:
    return PROJECTIONS[stem] + {"kernel": ".weight", "bias": ".bias"}[leaf]
  return {
    "attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    # Without post-norms, "post attention" is where the MLP begins.
    "mlp_norm": (
      "pre_feedforward_layernorm"
      if config.post_norms
      else "post_attention_layernorm"
    ),
    "post_mlp_norm": "post_feedforward_layernorm",
    "attention/q_norm": "self_attn.q_norm",
    "attention/k_norm": "self_attn.k_norm",
  }[stem] + ".weight"

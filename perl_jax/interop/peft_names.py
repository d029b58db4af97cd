"""Names of the tensors in an adapter of PEFT, and of those that are none.

PEFT leaves out what it does not know by name, and says so in a warning alone.
"""

import re
from collections.abc import Mapping

from perl_jax.interop import hf_names, peft_config
from perl_jax.models.config import ModelConfig

PREFIX = "base_model.model."
# The layers of the text model, as the classes of transformers nest them: a
# model with a head, one without, and the text model of a model with vision.
_ROOTS = (
  "model.", "", "model.language_model.", "language_model.model.",
  "language_model.",
)  # fmt: skip
# Root, layer, module and letter of a matrix.
LORA = re.compile(
  rf"(?:base_model\.model\.)?({'|'.join(map(re.escape, _ROOTS))})"
  r"layers\.(\d+)\.([\w.]+)\.lora_(A|B)(?:\.default)?\.weight"
)
SCORE = re.compile(
  r"(?:base_model\.model\.)?score(?:\.modules_to_save(?:\.default)?)?\.weight"
)
# The head before training, which old releases of PEFT saved as well.
UNTRAINED_SCORE = re.compile(
  r"(?:base_model\.model\.)?score\.original_module\.weight"
)
VALUE_HEAD = re.compile(r"(?:base_model\.model\.)?v_head\.")
VISION = re.compile(
  r"(?:base_model\.model\.)?(?:model\.)?"
  r"(?:vision_tower|vision_model|multi_modal_projector)\."
)
# What wrappers of a model put into the names of its tensors.
_WRAPPERS = re.compile(
  r"(?<![^.])(module|_fsdp_wrapped_module|_orig_mod"
  r"|_checkpoint_wrapped_module)\."
)
_OF_AN_ADAPTER = re.compile(r"(?<=\.lora_[AB])\.[^.]+(?=\.weight$)")
_EMBEDDINGS = re.compile(r".*\b(embed_tokens|lm_head)\.weight")


def way_out(unknown: Mapping[str, tuple[int, ...]], config: ModelConfig) -> str:
  """What to do with an adapter that has tensors of other names than these.

  Args:
    unknown: Their shapes, by name.
    config: The base.
  """
  for name in sorted(unknown):
    plain = _OF_AN_ADAPTER.sub("", _WRAPPERS.sub("", name))
    found = LORA.fullmatch(plain)
    if plain != name and found and found[3] in hf_names.PROJECTIONS.values():
      plain = PREFIX + plain.removeprefix(PREFIX)
      return (
        " PEFT leaves tensors of such names out, and merging would lose them."
        " Save the adapter with save_pretrained of PEFT, from the model without"
        f" a wrapper, or rename the tensors: {name!r} is {plain!r}."
      )
  rows = {
    shape[0] for name, shape in unknown.items()
    if _EMBEDDINGS.fullmatch(name) and len(shape) == 2
  }  # fmt: skip
  if len(rows) == 1 and (size := rows.pop()) != config.vocab_size:
    return (
      f" It was trained on {size} tokens, and the base has {config.vocab_size}:"
      f" call resize_token_embeddings({size}) of the base first."
      + peft_config.MERGE
    )
  return peft_config.MERGE

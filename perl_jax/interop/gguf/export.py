"""A directory of GGUF files for llama.cpp and Ollama."""

import dataclasses
from pathlib import Path

from perl_jax import roles
from perl_jax.interop import hf_config
from perl_jax.interop.gguf import adapter as adapter_lib
from perl_jax.interop.gguf import usage
from perl_jax.models.config import ModelConfig

# Families of `transformers` that llama.cpp names otherwise.
_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where the base of a model came from.

  Attributes:
    kind: "huggingface", or "random" for weights that were drawn here.
    path: The directory; "" for random weights.
    changed: Whether the base was trained in full since.
  """

  kind: str
  path: str
  changed: bool


def save(directory: Path, role: roles.Role, origin: Origin, field: str) -> str:
  """Writes the adapter of a policy.

  Args:
    directory: Existing directory for the files.
    role: The policy.
    origin: Where its base came from.
    field: Config field that named the policy, with its value.

  Returns:
    Markdown that says how the files are used.

  Raises:
    ValueError: There is no adapter, or nobody has the base under it.
  """
  if role.adapter is None or origin.changed or origin.kind == "random":
    what = (
      "was tuned in full and has no adapter"
      if role.adapter is None
      else "is an adapter on a base that was trained here, and llama.cpp needs"
      " a file of the base"
    )
    raise ValueError(
      f"{field} {what}. Export the whole model with config.format='merged', and"
      " make a GGUF file of that with llama.cpp's convert_hf_to_gguf.py."
    )
  adapter_lib.save_adapter(
    directory / usage.ADAPTER,
    role.config,
    role.lora,
    role.adapter,
    architecture=architecture(role.config),
    name=f"{Path(origin.path).name}, adapter of perl_jax",
  )
  return usage.commands(base=usage.CONVERTED, convert=origin.path)


def architecture(config: ModelConfig) -> str:
  """The architecture of a model, as llama.cpp names it.

  Raises:
    ValueError: None has this combination of switches.
  """
  family = hf_config.hf_config(config).model_type
  return _ARCHITECTURES.get(family, family)

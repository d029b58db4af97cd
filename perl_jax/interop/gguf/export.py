"""A directory of GGUF files for llama.cpp and Ollama."""

import dataclasses
from pathlib import Path

from perl_jax import files, roles
from perl_jax.data.text.gguf_metadata import read_metadata
from perl_jax.interop import hf_config_out
from perl_jax.interop.gguf import adapter as adapter_lib
from perl_jax.interop.gguf import checkpoint as gguf_checkpoint
from perl_jax.interop.gguf import merged, usage
from perl_jax.models.config import ModelConfig

# Families of `transformers` that llama.cpp names otherwise.
_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where the base of a model came from.

  Attributes:
    kind: "gguf", "huggingface", or "random" for weights that were drawn here.
    path: The file or directory; "" for random weights.
    changed: Whether the base was trained in full since, so that the base is in
      no file of others.
  """

  kind: str
  path: str
  changed: bool


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is written.

  Attributes:
    adapter: Whether the adapter is.
    model: One of `merged.TYPES` for the whole model, or "".
  """

  adapter: bool
  model: str


def plan(role: roles.Role, origin: Origin, model: str, field: str) -> Plan:
  """What can be written of a policy.

  Args:
    role: The policy.
    origin: Where its base came from.
    model: `config.gguf_model`.
    field: Config field that named the policy, with its value.

  Raises:
    ValueError: Nothing, or less than what was asked for; says what can.
  """
  kinds = ", ".join(merged.TYPES)
  if model not in ("", *merged.TYPES):
    raise ValueError(
      f"config.gguf_model={model!r}: choose one of {kinds} for the whole model,"
      " or '' for the adapter alone."
    )
  convert = (
    "Export the whole model with config.format='merged' and make a GGUF file of"
    " that with llama.cpp's convert_hf_to_gguf.py."
  )
  if model and origin.kind != "gguf":
    raise ValueError(
      f"config.gguf_model={model!r}, but the base of {field} came from no GGUF"
      " file whose metadata the whole model could have. " + convert
    )
  has_file = origin.kind in ("gguf", "huggingface") and not origin.changed
  adapter = role.adapter is not None and has_file
  if not adapter and not model:
    what = "has no adapter: it was tuned in full, or not at all."
    if role.adapter is not None:
      what = "is an adapter on a base that was trained here: no file has it."
    if origin.kind == "gguf":
      convert = f"Set config.gguf_model to one of {kinds}."
    raise ValueError(f"{field} {what} {convert}")
  return Plan(adapter, model)


def save(
  directory: Path,
  role: roles.Role,
  origin: Origin,
  what: Plan,
  chat_template: str | None = None,
  hub: str = "",
) -> str:
  """Writes the adapter of a policy, the whole model, or both.

  Args:
    directory: Existing directory for the files.
    role: The policy.
    origin: Where its base came from.
    what: From `plan`.
    chat_template: See `merged.save_model`.
    hub: Name of the base on the Hugging Face hub, or "".

  Returns:
    Markdown that says how the files are used.
  """
  model = usage.model_file(what.model) if what.model else ""
  base = convert = ""
  if what.adapter:
    found = gguf_checkpoint.file_of(origin.path) or Path(origin.path)
    base = found.absolute().name
  if what.adapter and origin.kind != "gguf":
    base, convert = usage.CONVERTED, base
  name = architecture(role.config, origin)
  windowed = name == "llama" and any(role.config.layer_is_windowed)
  if what.adapter:
    adapter_lib.save_adapter(
      directory / usage.ADAPTER,
      role.config,
      role.lora,
      role.adapter,
      architecture=name,
      name=f"{Path(origin.path).stem}, adapter of perl_jax",
    )
  if model:
    merged.save_model(
      directory / model,
      role,
      like=origin.path,
      kind=what.model,
      chat_template=chat_template,
    )
    files.write_text(directory / usage.MODELFILE, usage.modelfile(model))
  return usage.commands(
    base=base,
    convert=convert,
    hub=hub,
    model=model,
    window=role.config.sliding_window if windowed else None,
  )


def architecture(config: ModelConfig, origin: Origin) -> str:
  """The architecture of a model, as llama.cpp names it.

  Raises:
    ValueError: None has this combination of switches.
  """
  if origin.kind == "gguf":
    return str(read_metadata(origin.path)["general.architecture"])
  family = hf_config_out.hf_config(config).model_type
  return _ARCHITECTURES.get(family, family)

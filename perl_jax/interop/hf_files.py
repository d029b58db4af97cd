"""The weight files of a Hugging Face checkpoint, chosen as `transformers` does.

`from_pretrained` reads the file that the field `transformers_weights` of
config.json names, else `model.safetensors`, else the shards that
`model.safetensors.index.json` names. What counts is which tensors these files
hold, not which the index lists.

Reference: huggingface/transformers, `modeling_utils`.
"""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors

from perl_jax import json_text
from perl_jax.data.text import gguf_metadata
from perl_jax.interop import hf_names

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The library reads tensors of 8 bits for PyTorch alone.
_EIGHT_BITS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
FLOATS = ("F64", "F32", "F16", "BF16", *_EIGHT_BITS)
_LFS = b"version https://git-lfs"


class NoWeightsError(FileNotFoundError):
  """A directory without weights that can be read."""


class Checkpoint:
  """The tensors of a checkpoint directory, by name; nothing is read at once.

  Names are those that `...ForCausalLM` gives its parameters, however the file
  spells them; see `hf_names.canonical`.

  Attributes:
    directory: Directory of the checkpoint.
    shapes: Shape of each tensor.
    dtypes: Name of each tensor's dtype in the file ("F32", "BF16", ...).
    others: Names, in the file, of tensors that belong to no language model.

  Raises:
    FileNotFoundError: No weights, or a shard that the index names is missing.
    ValueError: The index or a shard is broken, or names a file outside the
      directory; or two tensors have one name.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    file: str | None = None,
    nested: bool = False,
  ) -> None:
    """Reads the headers of the files.

    Args:
      directory: Directory of the checkpoint.
      file: The file or index that config.json names, or None.
      nested: Whether the language model is a part of a larger one.
    """
    self.directory = Path(directory)
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.dtypes: dict[str, str] = {}
    self.others: list[str] = []
    self._places: dict[str, tuple[str, str]] = {}  # (file, name in the file)
    for name in self._chosen(file):
      self._read_header(name, nested)

  def _read_header(self, file: str, nested: bool) -> None:
    with self._open(file) as shard:
      for name in shard.keys():  # noqa: SIM118 (not a mapping)
        known = hf_names.canonical(name, nested)
        if known is None:
          self.others.append(name)
          continue
        _, before = self._places.get(known, (file, name))
        if before != name:
          raise ValueError(
            f"{self.directory} holds both {before!r} and {name!r}, which are"
            f" names of one tensor, {known!r}. Remove the one that is not"
            " meant."
          )
        tensor = shard.get_slice(name)
        self.shapes[known] = tuple(tensor.get_shape())
        self.dtypes[known] = tensor.get_dtype()
        self._places[known] = file, name

  def _chosen(self, file: str | None) -> list[str]:
    """Names of the files with weights, relative to the directory."""
    if file is None:
      file = SINGLE if (self.directory / SINGLE).is_file() else INDEX
      if not (self.directory / file).is_file():
        raise NoWeightsError(
          f"{self.directory} has neither {SINGLE} nor {INDEX}."
          + _instead(self.directory)
        )
    else:
      self._require_inside(file, "config.json: transformers_weights")
    if not file.endswith(".json"):
      return [file]
    index = self.directory / file
    what = "Its weight_map names a file for each tensor: download it again."
    listed = json_text.read_object(index, what).get("weight_map")
    if not isinstance(listed, dict) or not listed:
      raise ValueError(f"{index}: weight_map={listed!r:.60}. {what}")
    for name, shard in listed.items():
      self._require_inside(shard, f"{index}: {name}")
    return sorted(set(listed.values()))

  def _require_inside(self, file: object, what: str) -> None:
    inside = isinstance(file, str) and not os.path.isabs(file)
    if not inside or os.path.normpath(file).startswith(os.pardir):
      raise ValueError(
        f"{what} is said to be in {file!r}. A file of weights has to lie in"
        f" the directory itself, {self.directory}."
      )

  def _open(self, file: str):
    path = self.directory / file
    if not path.is_file():
      raise FileNotFoundError(
        f"{path} is missing, and {INDEX} or config.json names it: download or"
        " copy it too."
      )
    try:
      return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
      require_no_pointer(path)
      raise ValueError(
        f"{path} is truncated or no safetensors file: {error}. Download it"
        " again."
      ) from error

  def place(self, name: str) -> str:
    """The file of a tensor and its name there, for error messages."""
    file, spelled = self._places[name]
    return f"{self.directory / file}: {spelled}"

  def alias(self, name: str, of: str) -> None:
    """Gives a tensor another name; the old one is forgotten."""
    for table in (self.shapes, self.dtypes, self._places):
      table[name] = table.pop(of)

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A part of one tensor."""
    file, spelled = self._places[name]
    if self.dtypes[name] in _EIGHT_BITS:
      return _map_eight_bits(self.directory / file, spelled)[index]
    with self._open(file) as shard:
      return shard.get_slice(spelled)[index]


def require_no_pointer(path: Path) -> None:
  """Checks that a file is not what Git LFS puts in the place of one.

  Raises:
    ValueError: It is.
  """
  with path.open("rb") as content:
    if content.read(len(_LFS)) == _LFS:
      raise ValueError(
        f"{path} is a pointer of Git LFS, not the weights: run `git lfs pull`"
        f" in {path.parent}."
      )


def _map_eight_bits(path: Path, name: str) -> np.ndarray:
  with path.open("rb") as content:
    size = int.from_bytes(content.read(8), "little")
    entry = json.loads(content.read(size))[name]
  return np.memmap(
    path,
    jnp.dtype(_EIGHT_BITS[entry["dtype"]]),
    mode="r",
    offset=8 + size + entry["data_offsets"][0],
    shape=tuple(entry["shape"]),
  )


def _instead(directory: Path) -> str:
  """What to do with the weights that the directory has under other names."""
  indices = sorted(directory.glob("*.safetensors.index*.json"))
  if indices:
    return (
      f" It has {indices[0].name}, a variant: rename that file to {INDEX}, or"
      f" name it in config.json as transformers_weights."
    )
  found = sorted(directory.glob("*.safetensors"))
  found = [path for path in found if not path.name.startswith("adapter_")]
  if len(found) == 1 and _has_embedding(found[0]):
    return f" It has {found[0].name}: rename that file to {SINGLE}."
  if found:
    names = ", ".join(path.name for path in found[:3])
    return (
      f" It has {names}: these are shards without their index, or weights under"
      f" names of another library. Download or copy {INDEX} and the files that"
      " it names."
    )
  pickles = ("pytorch_model*.bin", "*.pth", "*.pt")
  if any(True for pattern in pickles for _ in directory.glob(pattern)):
    return (
      " It has weights as a pickle, which can run code and is not read. If you"
      " trust them, write them again where PyTorch is installed:"
      f" transformers.AutoModelForCausalLM.from_pretrained({str(directory)!r})"
      ".save_pretrained(NEW), and copy the tokenizer's files there."
    )
  found = sorted(directory.glob(f"*{gguf_metadata.SUFFIX}"))
  if found:
    others = ", or another of its GGUF files" if len(found) > 1 else ""
    return f" It has a GGUF file: give {found[0]}{others}."
  return " Download or copy the weights too."


def _has_embedding(path: Path) -> bool:
  try:
    with safetensors.safe_open(path, framework="np") as content:
      names = {
        hf_names.canonical(name, nested)
        for name in content.keys()  # noqa: SIM118 (not a mapping)
        for nested in (False, True)
      }
  except safetensors.SafetensorError:
    return False
  return bool(names & {hf_names.EMBEDDING, hf_names.LM_HEAD})


def require_unquantized(checkpoint: Checkpoint) -> None:
  """Checks that no tensor belongs to a quantised weight.

  Raises:
    ValueError: Some do; names them.
  """
  names = [*checkpoint.shapes, *checkpoint.others]
  left = sorted(filter(hf_names.QUANTIZED.fullmatch, names))
  if left:
    raise ValueError(
      f"{checkpoint.directory} holds what quantised weights need, though its"
      f" config.json has no quantization_config: {left[:4]}. Give the"
      " checkpoint that it was made from."
    )


def same_tensors(checkpoint: Checkpoint, names: tuple[str, str]) -> bool:
  """Whether two tensors of a checkpoint are equal, a part at a time."""
  first, second = (checkpoint.shapes[name] for name in names)
  if first != second:
    return False
  rows, step = first[0], 4096
  return all(
    np.array_equal(
      *(checkpoint.read(n, (slice(i, min(i + step, rows)),)) for n in names)
    )
    for i in range(0, rows, step)
  )

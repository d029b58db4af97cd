"""The licence of a base and its name on the hub, as far as its files say."""

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCard

from perl_jax.data.text import gguf_metadata

UNKNOWN = "unknown"
# Where huggingface_hub keeps what it has downloaded.
_CACHED = re.compile(r"/models--([\w.-]+?)(?:--([\w.-]+))?/snapshots/")


class Licence(NamedTuple):
  """A licence as model cards name it.

  Attributes:
    id: Identifier of the hub, "apache-2.0" or "other"; "unknown" if no file
      says.
    name: Name of a licence without an identifier, or "".
    link: Where it can be read, or "".
  """

  id: str
  name: str = ""
  link: str = ""

  def __str__(self) -> str:
    """For people: "apache-2.0", or "llama3.1 (https://...)"."""
    name = self.name or self.id
    return f"{name} ({self.link})" if self.link else name


def licence_of(path: str | Path) -> Licence:
  """The licence that the files of a checkpoint name.

  Args:
    path: Directory with a README.md, or a GGUF file.
  """
  path = Path(path)
  if path.is_file() and path.suffix == gguf_metadata.SUFFIX:
    found = gguf_metadata.read_metadata(path)
    keys = (f"general.license{end}" for end in ("", ".name", ".link"))
    return _licence(*(found.get(key) for key in keys))
  card = path / "README.md"
  if not card.is_file():
    return Licence(UNKNOWN)
  try:
    data = ModelCard.load(card, ignore_metadata_errors=True).data
  except Exception:  # whatever the parser makes of somebody's text
    return Licence(UNKNOWN)
  return _licence(data.license, data.license_name, data.license_link)


def hub_name(path: str | Path) -> str:
  """The name on the hub of what lies in its cache; "" for other places."""
  found = _CACHED.search(f"{Path(path).absolute().as_posix()}/")
  return "/".join(filter(None, found.groups())) if found else ""


def _licence(id_: object, name: object, link: object) -> Licence:
  if isinstance(id_, list) and len(id_) == 1:
    id_ = id_[0]
  texts = [
    value.strip() if isinstance(value, str) else ""
    for value in (id_, name, link)
  ]
  if not any(texts[:2]):
    return Licence(UNKNOWN)
  return Licence(texts[0] or "other", *texts[1:])

"""Which path of this machine stands for which address of a bucket.

`gs://BUCKET/KEY` has its copy at `ROOT/gs/BUCKET/KEY`, so that paths from one
workdir to another are the same in the bucket and here.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMES = ("gs", "s3")
_PREFIXES = tuple(f"{scheme}://" for scheme in SCHEMES)
_ANY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]+")


def root() -> Path:
  """The folder of all copies, in the user's cache folder for this package.

  It is `$PERL_JAX_CACHE/buckets`, or `perl_jax/buckets` in the folder for
  caches that the XDG specification names.
  """
  own = os.environ.get("PERL_JAX_CACHE", "")
  if own:
    above = Path(own)
  else:
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    above = caches if caches.is_absolute() else Path("~/.cache")
    above /= "perl_jax"
  # Without "..": paths below it are looked for in absolute ones.
  return Path(os.path.abspath(above.expanduser())) / "buckets"


def is_address(path: object) -> bool:
  """Whether a path is the address of something in a bucket."""
  return isinstance(path, str) and path.startswith(_PREFIXES)


def is_url(path: str) -> bool:
  """Whether a text is an address of any kind, and no path of this machine."""
  return bool(_ANY.match(path))


def check(address: str) -> str:
  """An address in one spelling, without a slash at its end.

  Raises:
    ValueError: It is malformed.
  """
  scheme, _, rest = address.partition("://")
  bucket, *parts = rest.rstrip("/").split("/")
  bad = {"", ".", ".."} & set(parts)
  if not _BUCKET.fullmatch(bucket) or not parts or bad:
    raise ValueError(
      f"{address} is no address of something in a bucket: write"
      f" {scheme}://BUCKET/PATH, without empty parts and '..' in the path."
    )
  return "/".join((f"{scheme}:/", bucket, *parts))


def path_of(address: str) -> Path:
  """The path of this machine that stands for an address; nothing is read."""
  scheme, _, rest = check(address).partition("://")
  return root() / scheme / rest


def address_of(path: str | os.PathLike) -> str:
  """The address that a path stands for; "" if it is not below the root."""
  text = named(os.path.abspath(path))
  return text if is_address(text) else ""


def here(path: str | os.PathLike) -> str:
  """A path of this machine for people, which `named` leaves as it is."""
  return os.fspath(path).replace(f"{root()}/", f"{root()}/./")


def named(value: Any) -> Any:
  """Text, or texts in JSON values, with addresses instead of their paths."""
  if isinstance(value, str):
    for scheme, prefix in zip(SCHEMES, _PREFIXES):
      value = value.replace(f"{root()}/{scheme}/", prefix)
    return value
  if isinstance(value, Mapping):
    return {key: named(item) for key, item in value.items()}
  return [named(v) for v in value] if isinstance(value, list) else value


def relative(path: str | os.PathLike, workdir: str | os.PathLike) -> str:
  """How a file of a workdir names another path, so that it is found again.

  From here to there, so that a tree of runs can be moved as a whole; but whole
  where one of the two is in a bucket and the other is not in it.
  """
  theirs, mine = address_of(path), address_of(workdir)
  if theirs.split("/")[:3] == mine.split("/")[:3]:
    return os.path.relpath(os.path.abspath(path), workdir)
  return theirs or os.path.abspath(path)

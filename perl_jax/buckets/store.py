"""The objects below an address of a bucket.

They are reached through `fsspec`, with `gcsfs` and `s3fs`: what `etils.epath`
reads and writes buckets with, which has no list with tags and no conditional
creation. An object is written as a whole or not at all.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from perl_jax.buckets import addresses

_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_CREDENTIALS = {
  "gs": (
    "Log in with `gcloud auth application-default login`, or name the key of a"
    " service account in GOOGLE_APPLICATION_CREDENTIALS"
  ),
  "s3": (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or run `aws configure`,"
    " and name the server in AWS_ENDPOINT_URL if it is not Amazon's"
  ),
}
# Larger files are sent in parts, as they are read.
_WHOLE_BYTES = 2**26


class BucketError(ValueError):
  """A bucket that cannot be used; the message is for people."""


class Object(NamedTuple):
  """An object of a bucket.

  Attributes:
    size: Bytes.
    tag: Changes when the object is written anew.
  """

  size: int
  tag: str


class Store:
  """The objects below an address, by the rest of their names.

  Attributes:
    address: The address.
  """

  def __init__(self, address: str):
    """Opens it; nothing is read.

    Raises:
      ValueError: The address is malformed, or the package that reaches it is
        missing.
    """
    self.address = addresses.check(address)
    self._scheme, _, self._key = self.address.partition("://")
    package, extra = _PACKAGES[self._scheme]
    # They log what they raise as well.
    logging.getLogger(package).setLevel(logging.CRITICAL)
    try:
      import fsspec

      self._files: Any = fsspec.filesystem(
        self._scheme, use_listings_cache=False
      )
    except ImportError as error:
      raise BucketError(
        f"{address} is reached with the package {package}, which is not"
        f" installed: pip install {package}, or perl_jax with the extra"
        f" {extra!r}."
      ) from error
    except Exception as error:
      raise self._said(error) from error

  def listed(self) -> dict[str, Object]:
    """All objects; one that lies at the address itself has the name "".

    Raises:
      BucketError: It cannot be listed.
    """
    with self._explained():
      found = self._files.find(self._key, detail=True)
    listed = {}
    for key, about in found.items():
      name = key.removeprefix(self._key).removeprefix("/")
      if key.endswith("/"):
        continue  # stands for a folder
      if {".", "..", ""} & set(name.split("/")) and name:
        raise BucketError(
          f"{self.address} holds an object {key!r}, which is no name of a file."
        )
      tag = about.get("generation") or about.get("ETag") or ""
      listed[name] = Object(about["size"], f"{tag}")
    return listed

  def read(self, name: str) -> bytes | None:
    """The content of an object; None if there is none."""
    with contextlib.suppress(FileNotFoundError), self._explained():
      return self._files.cat_file(self._at(name))
    return None

  def write(self, name: str, content: bytes) -> None:
    """Writes an object, over what was there."""
    kwargs = {}
    if self._scheme == "gs" and content.endswith(b"\r"):
      # gcsfs ends a part with "\n": a server that takes "\r\n" for the end of a
      # line would lose a byte. A resumable upload has no parts.
      kwargs["chunksize"] = len(content)
    with self._explained():
      self._files.pipe_file(self._at(name), content, **kwargs)

  def create(self, name: str, content: bytes) -> bool:
    """Writes an object unless there is one, of several that do so one alone.

    Raises:
      BucketError: The bucket is zonal, or refuses.
    """
    self._require_conditions()
    with self._explained(), contextlib.suppress(FileExistsError):
      self._files.pipe_file(self._at(name), content, mode="create")
      return True
    return False

  def _require_conditions(self) -> None:
    """Checks that an object can be created on condition.

    In a zonal bucket gcsfs ignores `mode="create"`, and all would succeed.
    """
    kind = getattr(self._files, "_sync_lookup_bucket_type", None)
    if kind is None:
      return  # it knows no zonal buckets
    bucket = self._key.partition("/")[0]
    with self._explained():
      found = kind(bucket)
    if str(getattr(found, "value", found)).startswith("ZONAL"):
      raise BucketError(
        f"{self.address} is in a zonal bucket, where gcsfs cannot create an"
        " object on the condition that there is none: two runs could write one"
        " workdir. Give an address in a bucket of a region; data and models are"
        " read from this one."
      )

  def remove(self, name: str) -> None:
    """Removes an object, if it is there."""
    with contextlib.suppress(FileNotFoundError), self._explained():
      self._files.rm_file(self._at(name))

  def upload(self, path: Path, name: str) -> None:
    """Writes a file as an object.

    Raises:
      FileNotFoundError: The file is gone.
    """
    if path.stat().st_size < _WHOLE_BYTES:
      self.write(name, path.read_bytes())
      return
    with self._explained():
      self._files.put_file(str(path), self._at(name))

  def download(self, name: str, path: Path) -> None:
    """Writes an object as a file."""
    with self._explained():
      self._files.get_file(self._at(name), str(path))

  def ages(self, names: tuple[str, ...], beside: str) -> list[float | None]:
    """Seconds since objects were written, by the clock of the store.

    Args:
      names: Names of the objects.
      beside: Name of an object that is written and removed, for its time.

    Returns:
      None for one that is not there.
    """
    self.write(beside, b"%f" % time.time())
    try:
      now, *times = (self._time(name) for name in (beside, *names))
    finally:
      self.remove(beside)
    return [t and (now - t).total_seconds() for t in times]

  def _time(self, name: str) -> Any:
    with contextlib.suppress(FileNotFoundError), self._explained():
      return self._files.modified(self._at(name))
    return None

  def _at(self, name: str) -> str:
    return f"{self._key}/{name}" if name else self._key

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Around what asks the store; its errors are put in a sentence."""
    try:
      yield
    except (BucketError, FileExistsError):
      raise
    except FileNotFoundError as error:
      if self._has_bucket():
        raise
      raise BucketError(
        f"{self.address}: there is no bucket {self._key.partition('/')[0]!r},"
        " or these credentials do not see it. Make it, or give another"
        f" address. {_CREDENTIALS[self._scheme]}."
      ) from error
    except Exception as error:
      raise self._said(error) from error

  def _has_bucket(self) -> bool:
    try:
      return self._files.exists(self._key.partition("/")[0])
    except Exception as error:
      raise self._said(error) from error

  def _said(self, error: Exception) -> BucketError:
    reason = " ".join(str(error).split())[:300]
    return BucketError(
      f"{self.address} cannot be reached ({type(error).__name__}: {reason})."
      f" {_CREDENTIALS[self._scheme]}."
    )

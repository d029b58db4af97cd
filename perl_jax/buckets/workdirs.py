"""The workdir of a command, in a bucket: who writes it, and when it is sent."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from perl_jax.buckets import addresses, apart, copies
from perl_jax.buckets.mirror import Mirror, Undisturbed, only_said
from perl_jax.buckets.store import Store


class Written(ValueError):
  """What goes wrong once all files are written, which are sent all the same."""


@contextlib.contextmanager
def mirrored(
  address: str,
  may_write: Callable[[], bool] | None = None,
  undisturbed: Undisturbed = contextlib.nullcontext,
) -> Iterator[Path]:
  """The workdir of an address, as a directory of this machine.

  All processes of a run call it, of which process 0 alone writes and sends;
  see `apart`.

  Args:
    address: The address.
    may_write: Says, before anything is sent, whether nobody else writes there.
      It is sent while the block runs and after it, also if it fails, and what
      is removed here is removed there. With None, others may write there: what
      has been written is sent once the block has worked, or raises `Written`,
      and nothing removed.
    undisturbed: Blocks in which the last files are sent, and signals wait.

  Raises:
    BucketError: The bucket cannot be read, or not be written in the end. An
      error of the block goes on, and the bucket's is logged.
  """
  from perl_jax import hosts

  copies.copied.add(addresses.check(address))
  try:
    with apart.sent_at_end():
      if not hosts.is_primary():
        with apart.copied(address):
          yield addresses.path_of(address)
      elif may_write is None:
        with _sent_after(address, undisturbed) as path:
          yield path
      else:
        mirror = Mirror(Store(address), addresses.path_of(address), may_write)
        mirror.pull()
        with (
          mirror.sending(undisturbed),
          apart.copied(address, mirror.share),
        ):
          yield mirror.path
  finally:
    copies.copied.discard(addresses.check(address))


@contextlib.contextmanager
def _sent_after(address: str, undisturbed: Undisturbed) -> Iterator[Path]:
  """A workdir that others may write; see `mirrored`."""
  mirror = Mirror(Store(address), addresses.path_of(address), None)
  mirror.pull()
  try:
    with apart.copied(address):
      yield mirror.path
  except Written:
    with undisturbed(), only_said():
      mirror.push()
    raise
  with undisturbed():
    mirror.push()


def require_nothing(address: str) -> None:
  """Checks that nothing lies at an address.

  Raises:
    ValueError: Something does.
  """
  if Store(address).listed():
    raise ValueError(
      f"--workdir={address} exists. An export writes a directory of its own:"
      " name another, or remove this one."
    )

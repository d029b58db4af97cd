"""Workdirs, models and data in buckets: `gs://` and `s3://`.

What others read and write as files has a copy on this machine, at a path that
its address says, and the rest of the package sees that path:

  addresses   which path stands for which address, and the other way round
  store       the objects of a bucket: list, read, write, create, remove
  copies      the copy of what lies at an address, made when it is needed
  unsent      what a copy has that its bucket has not
  mirror      what changes in a directory, sent to a bucket
  apart       copies of a workdir on the hosts of a run
  workdirs    the workdir of a command, as a directory of this machine
"""

from perl_jax.buckets.addresses import (
  address_of,
  check,
  here,
  is_address,
  is_url,
  named,
  path_of,
  relative,
)
from perl_jax.buckets.apart import is_apart, renew
from perl_jax.buckets.copies import fetch, present
from perl_jax.buckets.store import BucketError, Store
from perl_jax.buckets.workdirs import Written, mirrored, require_nothing

__all__ = [
  "BucketError",
  "Store",
  "Written",
  "address_of",
  "check",
  "fetch",
  "here",
  "is_address",
  "is_apart",
  "is_url",
  "mirrored",
  "named",
  "path_of",
  "present",
  "relative",
  "renew",
  "require_nothing",
]

"""The TPU's compiler on machines without a TPU."""

from collections.abc import MutableMapping


def quiet(environment: MutableMapping[str, str]) -> None:
  """Keeps libtpu from querying the metadata of a TPU VM where there is none.

  The query fails with a long warning. JAX sets TPU_SKIP_MDS_QUERY when it is
  imported and finds no chip; on a TPU nothing is changed. To be called before
  JAX creates its first device.

  Args:
    environment: Environment variables. Those that a TPU VM would set are added
      unless they are there.
  """
  if environment.get("TPU_SKIP_MDS_QUERY") == "1":
    environment.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    environment.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

"""The TPU's compiler on machines without a TPU."""

from collections.abc import MutableMapping


def quiet(environment: MutableMapping[str, str]) -> None:
  """Keeps libtpu from asking for the TPU VM that it is not on.

  It looks for the metadata of one, and complains at length of what it reads
  instead. JAX sets TPU_SKIP_MDS_QUERY when it is imported and finds no chip; a
  TPU is left to say what it is. To be called before JAX's first device.

  Args:
    environment: Is given what a TPU VM would say, unless it says so already.
  """
  if environment.get("TPU_SKIP_MDS_QUERY") == "1":
    environment.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    environment.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

"""The TPU's compiler on machines without a TPU."""

from collections.abc import MutableMapping

_FLAGS, _CPU = "XLA_FLAGS", "--xla_cpu_"


def quiet(environment: MutableMapping[str, str]) -> None:
  """Tells libtpu that there is no TPU, and no TPU VM to ask for its metadata.

  The query fails with a long warning. JAX sets TPU_SKIP_MDS_QUERY when it is
  imported and finds no chip; on a TPU nothing is changed. To be called before
  JAX creates its first device.

  Args:
    environment: Environment variables. Those that a TPU VM would set are added
      unless they are there.
  """
  if environment.get("TPU_SKIP_MDS_QUERY") == "1":
    # There is no chip that two processes could want, which a file would lock.
    environment.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    environment.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    environment.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def hide_cpu_flags(environment: MutableMapping[str, str]) -> None:
  """Takes XLA's flags for CPUs away, before libtpu compiles for the first time.

  Its own XLA knows only some of them, and ends the process at the first flag
  that it does not know. None of them is for a TPU.

  Args:
    environment: Environment variables.
  """
  given = environment.get(_FLAGS, "")
  if _CPU in given:
    kept = [flag for flag in given.split() if not flag.startswith(_CPU)]
    environment[_FLAGS] = " ".join(kept)

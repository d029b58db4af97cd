"""Environment variables of JAX and of launchers that a run cannot do with."""

from collections.abc import Mapping

import jax

# Says how many tasks a launcher has started, in each of them.
LAUNCHERS = {
  "SLURM": "SLURM_STEP_NUM_TASKS",
  "Open MPI": "OMPI_COMM_WORLD_SIZE",
}
# Which devices JAX is to use; the second is an older name.
_PLATFORMS = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")


def require_floats() -> None:
  """Checks that numbers have the types that the code gives them.

  Raises:
    ValueError: JAX makes them float64 and int64 where none is given.
  """
  if jax.config.jax_enable_x64:
    raise ValueError(
      "JAX_ENABLE_X64 is set, with which JAX computes in 64 bits where no type"
      " is named. Runs are in 32 bits and below: unset JAX_ENABLE_X64, or set"
      " it to 0."
    )


def require_devices(environment: Mapping[str, str]) -> None:
  """Makes the devices, of the platforms that the user has chosen, if any.

  Args:
    environment: Environment variables.

  Raises:
    ValueError: There are no such devices here.
  """
  name = next((n for n in _PLATFORMS if environment.get(n)), None)
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    if name is None:
      raise
    reason = f": {' '.join(str(error).split())}" if str(error) else ""
    raise ValueError(
      f"{name}={environment[name]} asks for devices that JAX does not find here"
      f"{reason.rstrip('.')}. Unset {name} to run on what there is; a GPU needs"
      " JAX with CUDA, the extra cuda12 or cuda13 of perl_jax."
    ) from error


def several_tasks(environment: Mapping[str, str]) -> tuple[str, str, int]:
  """The launcher that has started several tasks, its variable, and how many.

  Args:
    environment: Environment variables.

  Returns:
    ("", "", 1) where none has; a variable that is empty says nothing.

  Raises:
    ValueError: A variable is no number.
  """
  for launcher, name in LAUNCHERS.items():
    value = environment.get(name, "").strip()
    if value and not (value.isascii() and value.isdigit()):
      raise ValueError(
        f"{name}={value!r} should be the number of tasks that {launcher} has"
        f" started. Unset {name} if this run is not one of them."
      )
    if value and int(value) > 1:
      return launcher, name, int(value)
  return "", "", 1

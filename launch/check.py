"""What is wrong with the config of a run that is to be started elsewhere.

The shell scripts run this module before they make a machine, with the arguments
of the run. The exit status is 2 where a config is refused, and the line says
why.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
  """Prints why a config is refused; returns the exit status."""
  said = refusal(arguments)
  # What a config imports may be installed on the other machine alone.
  if said is None or "ModuleNotFoundError: " in said:
    return 0
  print(said)
  return 2


def refusal(arguments: Sequence[str]) -> str | None:
  """What is wrong with the config of a run's arguments, None if nothing is.

  Nothing is, where the packages that read configs are not installed, as on the
  login node of a cluster: the run says it.
  """
  try:
    from perl_jax.tasks.settings import overrides
  except ModuleNotFoundError:
    return None
  return overrides.refusal(["", *arguments])


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

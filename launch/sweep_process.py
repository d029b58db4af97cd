"""The process of a run that a sweep starts."""

import os
import pathlib
import signal
import subprocess
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment(given: Mapping[str, str]) -> dict[str, str]:
  """Variables with which a run that is started anywhere finds this package.

  Relative paths are those of the current directory, not of the package.
  """
  before = given.get("PYTHONPATH")
  paths = os.pathsep.join([str(ROOT), *([before] if before else [])])
  return {"PERL_JAX_DIR": str(ROOT)} | dict(given) | {"PYTHONPATH": paths}


def call(
  words: Sequence[str],
  seconds: float | None = None,
  directory: pathlib.Path | None = None,
) -> int:
  """Runs a command to its end and returns its status.

  What tells this process to stop is passed on, and the command may save. Where
  all of a group are told, it is told twice, which is one request to a run; see
  `perl_jax.hosts.signals`. It has no session of its own: Ctrl-Z and `kill -9`
  of the group are for both, and what it submits may ask for a password.

  Args:
    words: The command.
    seconds: After this time it is told to stop; None never.
    directory: Where it runs; None for the current directory.
  """
  process = subprocess.Popen(words, env=environment(os.environ), cwd=directory)

  def tell(number: int, frame: object) -> None:
    del frame
    # A terminal has sent Ctrl-C to the command as well: not twice.
    if number != signal.SIGINT:
      process.send_signal(number)

  numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
  numbers += [signal.SIGUSR1, signal.SIGUSR2]
  before = {
    number: signal.signal(number, tell)
    for number in numbers
    if signal.getsignal(number) is not signal.SIG_IGN
  }
  try:
    return process.wait(seconds)
  except subprocess.TimeoutExpired:
    print(f"sweep: {seconds / 60:g} minutes are over: told to stop", flush=True)
    process.send_signal(signal.SIGTERM)
    return process.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)

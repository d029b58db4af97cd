r"""Entry point: flags, devices, and one task.

  python -m perl_jax.main --config=configs/rl.py --workdir=runs/rl \
      --config.lora.rank=4

Where the package is installed, `perl_jax` is the same command, and
`--config=rl` the same config.

On several hosts the same command runs on each of them, with `--distributed`
where JAX finds the others by itself (TPU VM, GKE, SLURM, Open MPI), or with
`--coordinator_address=HOST:PORT --num_processes=N --process_id=I`.
"""

import logging as standard_logging
import os
import sys
import threading
import traceback
from collections.abc import Mapping

# Signals are heard while JAX is imported, which takes seconds.
# isort: off
from perl_jax import starting
from perl_jax.importing import jax
# isort: on

from absl import app, flags, logging

import perl_jax
from perl_jax import buckets, compilation_cache, disk, hosts, tasks
from perl_jax.hosts import environment, signals
from perl_jax.planning import libtpu
from perl_jax.tasks.rollouts import time_limit
from perl_jax.tasks.settings import config_files, overrides

_CONFIG = config_files.define(
  "config",
  "Experiment config: the path of a file, or one of the names"
  f" {', '.join(config_files.known())}; NAME:DATASET for another data set.",
)
flags.declare_key_flag("config")  # for --help: another module defines it
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory for everything that the run writes."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  None,
  "Joins the other processes of a run on several hosts, as JAX finds them (TPU"
  " VM, GKE, SLURM, Open MPI) or as --coordinator_address, --num_processes and"
  " --process_id say.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator_address", None, "HOST:PORT of process 0, reached by all."
)
_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many processes the run has.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer(
  "process_id", None, "Which process this is, from 0.", lower_bound=0
)
_JOIN_SECONDS = flags.DEFINE_integer(
  "join_seconds", 300, "How long to wait for the other processes to start."
)
_TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Shows where in the code an error was raised."
)

_COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache",
  "",
  "Directory that keeps compiled programs for later starts; empty for the"
  " user's cache folder, 'off' for none.",
)

HELP = {"-h", "-help", "--help", "--helpshort"}
# What bad input raises. Everything else is a bug and keeps its traceback.
USER_ERRORS = (
  *(ValueError, FileNotFoundError, FloatingPointError),
  disk.CannotWrite,
)
# How long a run that was told to stop may take to end.
_LAST_SECONDS = 15


def main(argv: list[str]) -> None:
  """Runs the task that the config names."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  if not _WORKDIR.value.strip():
    raise app.UsageError("--workdir is empty: give a directory for the run.")
  quiet_libraries()
  config = _CONFIG.value
  libtpu.quiet(os.environ)
  if config.task != "plan":
    libtpu.leave_out(os.environ)
  join_others(os.environ)
  try:
    environment.require_floats()
    environment.require_devices(os.environ)
  except ValueError as error:
    sys.exit(f"error: {error}")
  if not hosts.is_primary():
    logging.set_verbosity(logging.WARNING)
  logging.info(
    "task %s on %d %s device(s), process %d of %d",
    config.task,
    jax.device_count(),
    jax.default_backend(),
    jax.process_index(),
    jax.process_count(),
  )
  try:
    with signals.handled():
      tasks.run(config, _WORKDIR.value)
      hosts.barrier("end")
  except signals.Stopped as stopped:
    stop(stopped)
  except USER_ERRORS as error:
    if _TRACEBACK.value and jax.process_count() == 1:
      raise
    if _TRACEBACK.value:
      traceback.print_exc()
    hosts.fail(buckets.named(str(error)))
  except (Exception, KeyboardInterrupt) as error:
    refused = disk.explain(error)
    if refused and not _TRACEBACK.value:
      hosts.fail(buckets.named(refused))
    if jax.process_count() == 1:
      raise
    traceback.print_exc()
    hosts.fail(f"{type(error).__name__}: {error}")


def stop(stopped: signals.Stopped) -> None:
  """Ends a run that was told to stop, with one line and `signals.STATUS`."""
  signals.end_blocks(stopped)
  again = f"To go on, run the same command again: {starting.command_line()}"
  said = buckets.named(f"{stopped} {stopped.then or again}")
  # What was abandoned may still compute, and is not waited for.
  last = threading.Timer(_LAST_SECONDS, lambda: os._exit(signals.STATUS))
  last.daemon = True
  last.start()
  if not stopped.together:
    hosts.end(said, signals.STATUS)
  if hosts.is_primary():
    hosts.say(said)
  hosts.barrier("stopped")
  sys.exit(signals.STATUS)


def join_others(variables: Mapping[str, str]) -> None:
  """Joins the other processes of the run, if the flags say that there are any.

  Exits with one line if the flags contradict each other, if the others are not
  found, or if a launcher has started several tasks without a flag that makes
  them one run: each would train alone, and all write into one workdir.

  Args:
    variables: Environment variables, with the number of tasks that a launcher
      has started.
  """
  explicit = {
    "coordinator_address": _COORDINATOR.value,
    "num_processes": _PROCESSES.value,
    "process_id": _PROCESS.value,
  }
  given = {name for name, value in explicit.items() if value is not None}
  if _DISTRIBUTED.value is False and given:
    sys.exit(
      f"error: --nodistributed and --{min(given)} contradict each other."
    )
  if _DISTRIBUTED.value is False:
    return
  if not _DISTRIBUTED.value and not given:
    try:
      launcher, name, count = environment.several_tasks(variables)
    except ValueError as error:
      sys.exit(f"error: {error}")
    if count > 1:
      sys.exit(
        f"error: {launcher} has started {count} tasks ({name}={count}), and"
        " without --distributed each would be a run of its own in one"
        " workdir. Add --distributed, or --nodistributed if they are separate"
        " runs."
      )
    return
  address = _COORDINATOR.value
  if address is not None and not address.rpartition(":")[2].isdigit():
    sys.exit(
      f"error: --coordinator_address={address!r} is not HOST:PORT, such as"
      " 10.0.0.2:8476."
    )
  if len(given) == 3 and _PROCESS.value >= _PROCESSES.value:
    sys.exit(
      f"error: --process_id={_PROCESS.value} is not one of"
      f" --num_processes={_PROCESSES.value}: they count from 0."
    )
  try:
    hosts.join(**explicit, timeout_seconds=_JOIN_SECONDS.value)
  except ValueError as error:
    sys.exit(f"error: {error}")


def quiet_libraries() -> None:
  """Logs information of this package only, and warnings of all libraries.

  Orbax writes dozens of lines for each checkpoint through the same logger, and
  warns of checkpoints without a score, such as those between evaluations.
  """
  logging.set_verbosity(logging.INFO)
  ours = os.path.dirname(os.path.dirname(tasks.__file__))

  def shown_line(record):
    if record.pathname.startswith(ours):
      # A workdir in a bucket is a directory here, and has an address.
      record.msg, record.args = buckets.named(record.getMessage()), ()
      return True
    return is_news(record)

  logging.get_absl_handler().python_handler.addFilter(shown_line)
  shown, ignored = sys.excepthook, sys.unraisablehook

  def is_left_over(error):
    # TensorStore's threads say so after one of their writes was refused.
    return str(error) == "Event loop is closed"

  def excepthook(kind, error, trace):
    if not is_left_over(error):
      shown(kind, error, trace)

  def unraisablehook(about):
    # Raised in a callback or a finalizer, out of which no exception comes: it
    # is raised again elsewhere.
    again = issubclass(about.exc_type, (signals.Stopped, time_limit.OutOfTime))
    if not again and not is_left_over(about.exc_value):
      ignored(about)

  sys.excepthook, sys.unraisablehook = excepthook, unraisablehook


def is_news(record: standard_logging.LogRecord) -> bool:
  """Whether a library's log line says what nobody else says.

  Orbax logs a disk that is full once for each of its threads, with a traceback
  each, and raises it as well: one line of it is written at the end.
  """
  if record.levelno < standard_logging.WARNING:
    return False
  error = record.exc_info[1] if record.exc_info else None
  message = record.getMessage()
  refused = disk.refusal(error) or disk.refusal(OSError(message))
  return not refused and "did not provide metrics" not in message


def start(argv: list[str]) -> None:
  """Runs the task with a cache of compiled programs."""
  try:
    compilation_cache.use(_COMPILATION_CACHE.value, os.environ)
  except ValueError as error:
    sys.exit(f"error: {error}")
  status = 1
  try:
    main(argv)
    status = 0
  except SystemExit as error:
    status = 0 if error.code is None else error.code
    status = status if isinstance(status, int) else 1
    raise
  finally:
    wait_for_no_thread(status)
    if status:
      starting.leave_last(status)


def wait_for_no_thread(status: int, seconds: float = _LAST_SECONDS) -> None:
  """Lets the command end though a thread of the user's code never does.

  Python waits at its end for all threads that are not daemons.

  Args:
    status: Exit status of the command.
    seconds: Time that they have.
  """

  def left():
    mine = threading.main_thread()
    every = [t for t in threading.enumerate() if t is not mine]
    names = dict.fromkeys(t.name for t in every if not t.daemon)
    return ", ".join(names)

  def leave():
    if names := left():
      hosts.say(
        f"Not waited for, {seconds:g} s after the end: threads that somebody"
        f" has started and that do not end ({names}). Give them daemon=True."
      )
      os._exit(status)

  if left():
    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; exits with one line if they are wrong."""
  if argv[1:] in (["--version"], ["-version"]):
    print(f"perl_jax {perl_jax.__version__}")
    sys.exit(0)
  if HELP & set(argv[1:]):
    # absl's shows the flags of the script, which is another for `perl_jax`.
    ours = flags.FLAGS.find_module_defining_flag(_TRACEBACK.name)
    print(__doc__, flags.FLAGS.module_help(ours), sep="")
    print("\nTry --helpfull for the flags of libraries.")
    sys.exit(0)
  try:
    rest = flags.FLAGS(argv)
    config = _CONFIG.value
    _ = config.task  # a config file that failed to load raises here
  except Exception as error:
    # ml_collections raises whatever comes of a path that is not there, and of
    # the code of a config file.
    wrong = overrides.explain(argv, error)
  else:
    wrong = overrides.fault(config, argv)
    if wrong is None:
      return rest
  sys.exit(f"error: {' '.join(wrong.split())}")


def run() -> None:
  """Console entry point; a user's error is one line, not a traceback."""
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(start, flags_parser=parse)


if __name__ == "__main__":
  run()

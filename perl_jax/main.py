"""Entry point: flags, devices, and one task.

  python -m perl_jax.main --config=configs/rl.py --workdir=runs/rl \
      --config.lora.rank=4
"""

import ast
import contextlib
import logging as standard_logging
import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from perl_jax import tasks

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment config, configs/NAME.py[:DATASET]."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory for everything that the run writes."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Joins the other processes of a multi-host run."
)
_TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Shows where in the code an error was raised."
)

# What bad input raises. Everything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError)


def main(argv: list[str]) -> None:
  """Runs the task that the config names."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  quiet_libraries()
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  config = _CONFIG.value
  logging.info(
    "task %s on %d %s device(s), process %d of %d",
    config.task,
    jax.device_count(),
    jax.default_backend(),
    jax.process_index(),
    jax.process_count(),
  )
  try:
    tasks.run(config, _WORKDIR.value)
  except USER_ERRORS as error:
    if _TRACEBACK.value:
      raise
    sys.exit(f"error: {error}")


def quiet_libraries() -> None:
  """Keeps our own lines and everybody's warnings in the log.

  Orbax writes dozens of lines for each checkpoint through the same logger.
  """
  logging.set_verbosity(logging.INFO)
  ours = os.path.dirname(os.path.dirname(tasks.__file__))
  logging.get_absl_handler().python_handler.addFilter(
    lambda record: (
      record.pathname.startswith(ours)
      or record.levelno >= standard_logging.WARNING
    )
  )


def parse(argv: list[str]) -> list[str]:
  """Parses flags; what is wrong with them is said in one line."""
  try:
    rest = flags.FLAGS(argv)
    _ = _CONFIG.value.task  # a config file that failed to load raises here
    return rest
  except AttributeError as error:
    # ml_collections wraps its message, "'rnk'\nDid you mean ...", in quotes.
    text = str(error)
    with contextlib.suppress(SyntaxError, ValueError):
      text = str(ast.literal_eval(text))
    sys.exit(f"error: no such config field: {' '.join(text.split())}")
  except (flags.Error, OSError) as error:
    # A config file that raises brings its traceback along; its last line says
    # what is wrong, but a missing file is named further up.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = [line for line in lines if "No such file" in line]
    sys.exit(f"error: {(missing or lines)[-1]}")


def run() -> None:
  """Console entry: errors of the user are a line, not a traceback."""
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=parse)


if __name__ == "__main__":
  run()

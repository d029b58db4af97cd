"""The user's reward function: found by name, called, checked.

  --config.reward.fn=package.module:function
  --config.reward.fn=./file.py:function
  --config.reward.fn=http://localhost:8000/score

  def function(prompts, responses, rows):
    return [float(row["reference"] in text)
            for text, row in zip(responses, rows)]

It is called with a batch, on the process that holds the rows:

  prompts    the messages of each row, [{"role", "content"}, ...]
  responses  what the policy answered, text without the stop token
  rows       the data row of each as a dict: "id", "group", "prompt" and
             "reference" (the right or the human response, or None); with
             JSONL files also "fields", the whole line as an object

and returns as many finite numbers, in their order; or it is an `async def` that
does. It must accept any text as a response, and be deterministic, or a resumed
run differs from one that was never interrupted.

The address of a server is called by `endpoints.Scorer`, on process 0 alone.
"""

import asyncio
import atexit
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from perl_jax import endpoints, hosts
from perl_jax.data import records
from perl_jax.tasks.rollouts import reward_values, time_limit
from perl_jax.tasks.settings import reward_functions
from perl_jax.tasks.training import undone

FIELD = reward_functions.FIELD
_SIGNATURE = "function(prompts, responses, rows) -> a number for each response"
# Whose lines no user wants to see: this package's, and Python's own.
_OTHERS = (
  str(Path(__file__).parents[2]), sysconfig.get_path("stdlib"), "<frozen",
)  # fmt: skip


class RewardError(undone.UndoneStepError):
  """A reward function failed, took too long, or returned no rewards."""


class RewardFunction:
  """The user's function with the checks of its results.

  Attributes:
    name: "package.module:function", as in the config.
    on_primary: Whether process 0 alone calls it, for the rows of all.
  """

  def __init__(
    self,
    name: str,
    function: Callable[..., Any],
    *,
    seconds: float = 0.0,
    files: Sequence[str] = (),
    on_primary: bool = False,
    forget: Callable[[], None] = lambda: None,
  ):
    """Binds a function.

    Args:
      name: Name of the function, as `config.reward.fn` has it.
      function: The user's function.
      seconds: Time that a call may take; 0 for any. See `time_limit`.
      files: Files of the user, for the line of an error.
      on_primary: Whether process 0 alone calls it.
      forget: Forgets results of earlier calls, where they are kept.
    """
    self.name, self.on_primary, self.forget = name, on_primary, forget
    self._function, self._seconds, self._files = function, seconds, files

  def __call__(
    self, rows: Sequence[records.Prompt], responses: Sequence[str]
  ) -> np.ndarray:
    """Rewards of the responses, `[n]` float32.

    Raises:
      RewardError: The function failed or took too long, or returned something
        else than one finite number for each response.
    """
    # Copies: what the function does to a row must not reach the data.
    copies = [dataclasses.asdict(row) for row in rows]
    prompts = [list(copy["prompt"]) for copy in copies]

    def act():
      found = self._function(prompts, list(responses), copies)
      return _awaited(found) if inspect.isawaitable(found) else found

    try:
      found = time_limit.call(act, self._seconds)
    except time_limit.OutOfTime as late:
      raise RewardError(
        f"{FIELD}={self.name!r} took longer than config.reward.timeout="
        f"{self._seconds:g} seconds{self._place(late)} on {len(responses)}"
        f" responses, to the rows {_listed(rows)}. Raise config.reward.timeout"
        " (0 is no limit), or mend the function; the same command then goes on"
        " from the last checkpoint."
      ) from late
    except (Exception, SystemExit) as error:
      raise RewardError(
        f"{FIELD}={self.name!r} failed on {len(responses)}"
        f" responses, the first of them {reward_values.shown(responses[0])} to"
        f" row {rows[0].id}: {type(error).__name__}: {error}"
        f"{self._place(error)}. It must take any text as a response."
      ) from error
    try:
      return reward_values.checked(
        found, responses, [row.id for row in rows], _SIGNATURE
      )
    except ValueError as error:
      raise RewardError(f"{FIELD}={self.name!r} {error}") from error

  def _place(self, error: BaseException) -> str:
    return place_of(error, self._files)


def place_of(error: BaseException, files: Sequence[str]) -> str:
  """The last line of the user's own code that an error went through.

  Args:
    error: The error, with its traceback.
    files: The user's files. Where none of them is in the traceback, it is the
      last line outside of this package and of libraries.

  Returns:
    " in FILE, line N (`code`)", or "".
  """
  if isinstance(error, SyntaxError) and error.filename:
    code = f" (`{error.text.strip()}`)" if error.text else ""
    return f" in {_short(error.filename)}, line {error.lineno}{code}"
  frames = traceback.extract_tb(error.__traceback__)
  theirs = [frame for frame in frames if frame.filename in files]
  if not theirs:
    theirs = [
      frame
      for frame in frames
      if not frame.filename.startswith(_OTHERS)
      and "site-packages" not in frame.filename
    ]
  if not theirs:
    return ""
  last = theirs[-1]
  code = f" (`{last.line}`)" if last.line else ""
  return f" in {_short(last.filename)}, line {last.lineno}{code}"


def _short(path: str) -> str:
  """The path from here, if it is below here."""
  here = os.path.join(os.getcwd(), "")
  return path.removeprefix(here)


def _listed(rows: Sequence[records.Prompt], most: int = 5) -> str:
  ids = list(dict.fromkeys(row.id for row in rows))
  more = f" and {len(ids) - most} more" if len(ids) > most else ""
  return ", ".join(ids[:most]) + more


@functools.cache
def _runner() -> asyncio.Runner:
  """One event loop for the whole run, as clients are bound to theirs."""
  runner = asyncio.Runner()
  atexit.register(runner.close)
  return runner


def _awaited(found: Any) -> Any:
  async def result():
    return await found

  return _runner().run(result())


def load(name: str, seconds: float = 0.0) -> RewardFunction:
  """The function, or the server, of a name.

  Args:
    name: "package.module:function", "FILE.py:function", or the address of a
      server.
    seconds: Time that a call may take; 0 for any.

  Raises:
    ValueError: The name has another form, the module cannot be imported, or
      what it has under that name cannot be called.
  """
  if name.startswith(reward_functions.SERVERS):
    # A little later than `time_limit`, which knows the rows.
    scorer = endpoints.Scorer(name, seconds=seconds and seconds + 1.0)
    return RewardFunction(
      name, scorer, seconds=seconds, on_primary=True, forget=scorer.forget
    )
  place, _, attribute = name.rpartition(":")
  if not (place and attribute):
    raise ValueError(
      f"{FIELD}={name!r} must be 'package.module:function', such as"
      " 'perl_jax.data.coffee_bar:gold_reward', './FILE.py:function', or the"
      " address of a server, 'http://HOST:PORT/PATH'."
    )
  in_file = place.endswith(".py") or "/" in place or os.sep in place
  module = _import_file(name, place) if in_file else _import(name, place)
  function: Any = module
  for part in attribute.split("."):
    if not hasattr(function, part):
      having = [n for n in vars(function) if callable(getattr(function, n))]
      named = ", ".join(n for n in having if not n.startswith("_"))
      raise ValueError(
        f"{FIELD}={name!r}: {place} has no {attribute!r}. It has"
        f" {named or 'no function'}."
      )
    function = getattr(function, part)
  if not callable(function):
    raise ValueError(
      f"{FIELD}={name!r} is a {type(function).__name__}, not a function. Name"
      f" one: {_SIGNATURE}."
    )
  files = [getattr(module, "__file__", None), _source_of(function)]
  return RewardFunction(
    name, function, seconds=seconds, files=[f for f in files if f]
  )


def _source_of(function: Any) -> str | None:
  code = getattr(inspect.unwrap(function), "__code__", None)
  return code.co_filename if code is not None else None


def _import(name: str, module: str) -> Any:
  try:
    return importlib.import_module(module)
  except (Exception, SystemExit) as error:
    raise ValueError(
      f"{FIELD}={name!r}: importing {module} failed{place_of(error, ())} with"
      f" {type(error).__name__}: {error}. Start from the directory that holds"
      " it, put that on PYTHONPATH, install the package, or name its file:"
      " './FILE.py:function'."
    ) from error


def _import_file(name: str, place: str) -> Any:
  """The module of a file; once, if it has not changed.

  The modules beside the file can be imported by it.
  """
  path = Path(place).expanduser().resolve()
  if not path.is_file():
    raise ValueError(
      f"{FIELD}={name!r}: there is no file {path}. A relative path begins where"
      f" the command is started, {Path.cwd()}."
    )
  about = path.stat()
  key = f"{path.stem}_{abs(hash((path, about.st_mtime_ns, about.st_size)))}"
  if key in sys.modules:
    return sys.modules[key]
  if str(path.parent) not in sys.path:
    sys.path.append(str(path.parent))
  spec = importlib.util.spec_from_file_location(key, path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{FIELD}={name!r}: {path} is no Python file (.py).")
  module = importlib.util.module_from_spec(spec)
  sys.modules[key] = module
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    del sys.modules[key]
    raise ValueError(
      f"{FIELD}={name!r}: {path} failed{place_of(error, (str(path),))} with"
      f" {type(error).__name__}: {error}."
    ) from error
  return module


def load_and_try(
  name: str,
  rows: Sequence[records.Prompt],
  count: int = 2,
  seconds: float = 0.0,
) -> RewardFunction:
  """Loads the function and calls it twice with the references of a few rows.

  A function that fails is then refused before anything is computed, and the log
  warns of one that does not return the same again. A server is asked by process
  0 alone.

  Raises:
    ValueError: As `load` and `RewardFunction` do.
  """
  function = load(name, seconds)
  if function.on_primary and not hosts.is_primary():
    return function
  tried = list(rows[:count])
  references = [row.reference or "" for row in tried]
  first = function(tried, references)
  function.forget()
  second = function(tried, references)
  for place in np.flatnonzero(first != second)[:1]:
    logging.warning(
      "%s=%r returned %s and then %s for the same response to row %s. A reward"
      " that is drawn at random is noise to the policy, and a run that is"
      " interrupted and resumed differs from one that was not.",
      FIELD,
      name,
      first[place],
      second[place],
      tried[place].id,
    )
  return function

"""The user's code: found by name, imported, called within a time.

  package.module:function    as Python imports it
  ./file.py:function         of a file, and what lies beside it

An error of it is one line with the line of the user's file.
"""

import asyncio
import atexit
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
from typing import Any, NamedTuple

from perl_jax.tasks.rollouts import own_state, time_limit

# Whose lines no user wants to see: this package's, and Python's own.
_OTHERS = (
  str(Path(__file__).parents[2]), sysconfig.get_path("stdlib"), "<frozen",
)  # fmt: skip


class Found(NamedTuple):
  """A function of the user.

  Attributes:
    function: The function.
    files: Files of the user, for the line of an error.
  """

  function: Callable[..., Any]
  files: Sequence[str]


class OutOfTimeError(Exception):
  """The code took too long; says where it was."""


class UserCodeError(Exception):
  """The code failed; says with what, and where."""


def call(
  function: Callable[..., Any],
  *args: Any,
  seconds: float = 0.0,
  files: Sequence[str] = (),
) -> Any:
  """What a function of the user returns; an `async def` is awaited.

  Args:
    function: The function.
    *args: What it is called with.
    seconds: Time of the call; 0 for any. See `time_limit`.
    files: Files of the user.

  Raises:
    OutOfTimeError: It took longer.
    UserCodeError: It raised, or wanted to leave.
  """

  def act():
    with own_state.children_end():
      found = function(*args)
      return _awaited(found) if inspect.isawaitable(found) else found

  try:
    with own_state.put_back():
      return time_limit.call(act, seconds)
  except time_limit.OutOfTime as late:
    raise OutOfTimeError(place_of(late, files)) from late
  except (Exception, SystemExit) as error:
    raise UserCodeError(
      f"{type(error).__name__}: {error}{place_of(error, files)}"
    ) from error


def find(name: str, field: str, signature: str) -> Found:
  """The function of a name.

  Args:
    name: "package.module:function" or "FILE.py:function".
    field: Config field that named it, for errors.
    signature: How a function is called, for errors.

  Raises:
    ValueError: The module cannot be imported, or what it has under that name
      cannot be called.
  """
  place, _, attribute = name.rpartition(":")
  if not (place and attribute):
    raise ValueError(
      f"{field}={name!r} must be 'package.module:function' or"
      " './FILE.py:function'."
    )
  in_file = place.endswith(".py") or "/" in place or os.sep in place
  named = f"{field}={name!r}"
  with own_state.put_back():
    module = _import_file(named, place) if in_file else _import(named, place)
  function: Any = module
  for part in attribute.split("."):
    if not hasattr(function, part):
      having = [n for n in vars(function) if callable(getattr(function, n))]
      public = ", ".join(n for n in having if not n.startswith("_"))
      raise ValueError(
        f"{named}: {place} has no {attribute!r}. It has"
        f" {public or 'no function'}."
      )
    function = getattr(function, part)
  if not callable(function):
    raise ValueError(
      f"{named} is a {type(function).__name__}, not a function. Name one:"
      f" {signature}."
    )
  files = [getattr(module, "__file__", None), _source_of(function)]
  return Found(function, [f for f in files if f])


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


def _source_of(function: Any) -> str | None:
  code = getattr(inspect.unwrap(function), "__code__", None)
  return code.co_filename if code is not None else None


def _import(named: str, module: str) -> Any:
  try:
    return importlib.import_module(module)
  except (Exception, SystemExit) as error:
    raise ValueError(
      f"{named}: importing {module} failed{place_of(error, ())} with"
      f" {type(error).__name__}: {error}. Start from the directory that holds"
      " it, put that on PYTHONPATH, install the package, or name its file:"
      " './FILE.py:function'."
    ) from error


def _import_file(named: str, place: str) -> Any:
  """The module of a file; once, if it has not changed.

  The modules beside the file can be imported by it.
  """
  path = Path(place).expanduser().resolve()
  if not path.is_file():
    raise ValueError(
      f"{named}: there is no file {path}. A relative path begins where"
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
    raise ValueError(f"{named}: {path} is no Python file (.py).")
  module = importlib.util.module_from_spec(spec)
  sys.modules[key] = module
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    del sys.modules[key]
    raise ValueError(
      f"{named}: {path} failed{place_of(error, (str(path),))} with"
      f" {type(error).__name__}: {error}."
    ) from error
  return module

"""Reads who imports whom from the source alone, for test_architecture.py.

Nothing is imported here; `ast` reads the files. Each check takes a mapping from
module names to sources and returns what is wrong, so that the same functions
are tried on a small house with every fault in it.
"""

import ast
import functools
import graphlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "perl_jax"

# Top to bottom, left to right: a room imports from the left of its own floor
# and from any floor below.
FLOORS = (
  ("__main__",),
  ("main",),
  ("tasks",),
  (
    "planning",
    "scoring",
    "steps",
    "checkpoint",
    # What metrics shows, in pictures and numbers.
    "classification",
    "linear_probe",
    "reporting",
    "journal",
    "metrics",
    "data",
    "interop",
  ),
  ("roles", "sampling", "optim"),
  # Models say how activations are laid out: the axes' names are below them.
  (
    *("streams", "starting", "importing", "disk", "names", "segments", "hosts"),
    "sharding",
    *("models", "objectives", "params", "json_text", "files", "checksums"),
    *("endpoints", "buckets", "compilation_cache"),
    "",  # the package itself has its version, and no more
  ),
)
PURE = {
  *("objectives", "models", "params", "roles"),
  *("sampling", "scoring"),
  *("steps", "optim", "sharding", "names", "segments"),
}
# Logging, clocks, files, flags, environment, global seeds, configs.
EFFECTS = {
  *("absl", "logging", "time", "datetime", "io", "os", "sys", "pathlib"),
  *("shutil", "tempfile", "subprocess", "random", "secrets", "json"),
  *("requests", "ml_collections", "warnings"),
}
BY_JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib"}
PICKLES |= {"marshal", "shelve"}
# Folders of tasks/, top to bottom: one imports only those below it.
TASK_FOLDERS = (
  *("dry_run", "judging", "evaluation", "rollouts", "training", "initial"),
  "settings",
)
# Where a list of tasks is: the table, the stages of a pipeline, and learning
# rates by task.
TABLES = {
  "perl_jax.tasks",
  "perl_jax.tasks.pipeline",
  "perl_jax.tasks.settings.defaults",
}
VOCABULARY = "perl_jax.reporting.vocabulary"
MAX_LINES = 350
MAX_FUNCTION, MAX_LOOP = 80, 100
# Files that may be longer. Keep it empty.
LONG_FILES: set[str] = set()


@functools.cache
def house():
  """Sources of the package by module name."""
  sources = {}
  for path in sorted((ROOT / PACKAGE).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    sources[".".join(parts)] = path.read_text()
  return sources


def imports(name, sources):
  """Dotted names that a module imports, anywhere in it, lazily or not.

  `from a import b` is `a.b` where that is a module of the house, else `a`.
  """
  is_package = any(other.startswith(f"{name}.") for other in sources)
  for node in ast.walk(ast.parse(sources[name])):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        keep = name.split(".")
        keep = keep[: len(keep) - node.level + is_package]
        base = ".".join([*keep, *filter(None, [node.module])])
      for alias in node.names:
        full = f"{base}.{alias.name}"
        yield full if full in sources else base


def top(name):
  return name.split(".")[0]


def room(name):
  """The room of a module of the house, "" for the package itself."""
  return [*name.split("."), ""][1]


def place(room_name):
  """(floor, column) of a room."""
  for floor, rooms in enumerate(FLOORS):
    if room_name in rooms:
      return floor, rooms.index(room_name)
  return None


def allowed(importer, imported):
  """Whether one room may import another."""
  here, there = place(importer), place(imported)
  if here is None or there is None:
    return False
  return there[0] > here[0] or (there[0] == here[0] and there[1] < here[1])


def upward_imports(sources):
  """Imports of a room on the right or above, or of no known room."""
  wrong = []
  for name in sources:
    for imported in imports(name, sources):
      if top(imported) != PACKAGE or room(name) == room(imported):
        continue
      if not allowed(room(name), room(imported)):
        wrong.append(f"{name} imports {imported}")
  return wrong


def circle(sources):
  """Modules that import each other in a circle, or None."""
  graph = {
    name: {found for found in imports(name, sources) if found in sources}
    - {name}
    for name in sources
  }
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    return error.args[1]
  return None


def imports_of(sources, rooms, forbidden=None, only=None):
  """Imports by some rooms of forbidden packages, or of others than `only`."""
  wrong = []
  for name in sources:
    if rooms is not None and room(name) not in rooms:
      continue
    for imported in imports(name, sources):
      mine = f"{PACKAGE}.{room(name)}"
      if only is None:
        bad = top(imported) in forbidden
      elif top(imported) == PACKAGE:
        bad = not (imported == mine or imported.startswith(f"{mine}."))
      else:
        bad = top(imported) not in only | sys.stdlib_module_names
      if bad:
        wrong.append(f"{name} imports {imported}")
  return wrong


def dynamic_imports(sources):
  """Calls that import what `ast` cannot see, by module."""
  names = {"import_module", "__import__", "exec", "eval"}
  found = []
  for name, source in sources.items():
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.Call):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        found += [f"{name} calls {called}"] if called in names else []
  return found


def commands(sources):
  """Modules of tasks/ that are commands: files, and not folders."""
  parts = {name: name.split(".") for name in sources}
  return {
    name
    for name, (*folder, last) in parts.items()
    if folder == [PACKAGE, "tasks"] and last not in TASK_FOLDERS
  }


def commands_that_import_commands(sources):
  """Imports of a command by any module of tasks/, lazily or not."""
  found = commands(sources)
  return [
    f"{name} imports {imported}"
    for name in sources
    if room(name) == "tasks"
    for imported in imports(name, sources)
    if imported in found and imported != name
  ]


def task_folders_upward(sources):
  """Imports by a folder of tasks/ of one above it, or of the table."""
  wrong = []
  for name in sources:
    if room(name) != "tasks" or name in commands(sources) | {"perl_jax.tasks"}:
      continue
    here = TASK_FOLDERS.index(name.split(".")[2])
    for imported in imports(name, sources):
      if room(imported) != "tasks":
        continue
      there = [*imported.split("."), "", ""][2]
      below = there in TASK_FOLDERS and TASK_FOLDERS.index(there) >= here
      wrong += [] if below else [f"{name} imports {imported}"]
  return wrong


def literal_lists(sources, names, least):
  """Modules with a literal collection of at least so many of the names."""
  found = set()
  for name, source in sources.items():
    for node in ast.walk(ast.parse(source)):
      items = getattr(node, "elts", None) or getattr(node, "keys", None) or []
      values = {getattr(item, "value", None) for item in items}
      if len({v for v in values if isinstance(v, str)} & names) >= least:
        found.add(name)
  return found


def long_functions(sources):
  """Functions that are too long, by "module.name"; loops of tasks may be more.

  Everything counts, docstring included.
  """
  wrong = {}
  for name, source in sources.items():
    most = MAX_LOOP if name in commands(sources) else MAX_FUNCTION
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        lines = node.end_lineno - node.lineno + 1
        if lines > most:
          wrong[f"{name}.{node.name}"] = lines
  return wrong


def pickles(sources):
  """Imports of picklers, and arguments that let NumPy or pandas unpickle."""
  wrong = imports_of(sources, None, forbidden=PICKLES)
  for name, source in sources.items():
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        plain = isinstance(node.value, ast.Constant) and not node.value.value
        wrong += [] if plain else [f"{name} allows pickle"]
      called = getattr(node, "attr", "")
      if called in ("to_pickle", "read_pickle"):
        wrong.append(f"{name} calls {called}")
  return wrong

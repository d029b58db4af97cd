"""The floors of the house: who may import whom, read from the source alone.

Nothing is imported here; `ast` reads the files. Each check takes a mapping from
module names to sources and returns what is wrong, so that the same functions
are tried on a small house with every fault in it.
"""

import ast
import functools
import graphlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "perl_jax"

# Top to bottom, left to right: a room imports from the left of its own floor
# and from any floor below.
FLOORS = (
  ("main",),
  ("tasks",),
  (
    "planning",
    "scoring",
    "steps",
    "checkpoint",
    # What metrics shows, in pictures and numbers.
    "classification",
    "reporting",
    "metrics",
    "data",
    "interop",
  ),
  ("roles", "sampling", "optim"),
  # Models say how activations are laid out: the axes' names are below them.
  (*("names", "hosts", "sharding", "models", "objectives", "params", "files"),),
)
PURE = {
  *("objectives", "models", "params", "roles"),
  *("sampling", "scoring"),
  *("steps", "optim", "sharding", "names"),
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
MAX_LINES = 350
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


def test_every_room_has_a_floor():
  rooms = {room(name) for name in house()} - {""}
  assert {name for name in rooms if place(name) is None} == set()


def test_rooms_import_from_their_left_or_from_below():
  assert upward_imports(house()) == []


def test_there_are_no_circles():
  assert circle(house()) is None


def test_objectives_know_only_jax_and_chex():
  wrong = imports_of(house(), {"objectives"}, only={"jax", "chex"})
  assert wrong == []


def test_data_does_not_import_jax():
  """Nor what would: libraries on jax, and other rooms."""
  assert imports_of(house(), {"data", "names"}, forbidden=BY_JAX) == []
  others = [
    f"{name} imports {imported}"
    for name in house()
    if room(name) == "data"
    for imported in imports(name, house())
    if top(imported) == PACKAGE and room(imported) not in ("data", "names")
  ]
  assert others == []


def test_pure_rooms_have_no_side_effects():
  assert imports_of(house(), PURE, forbidden=EFFECTS) == []
  collective = [
    f"{name} imports {imported}"
    for name in house()
    if room(name) in PURE
    for imported in imports(name, house())
    if imported.startswith(f"{PACKAGE}.hosts")
  ]
  assert collective == []


def test_nothing_imports_configs():
  assert imports_of(house(), None, forbidden={"configs"}) == []


def test_only_main_and_tasks_see_a_config():
  rest = {room(name) for name in house()} - {"main", "tasks"}
  assert imports_of(house(), rest, forbidden={"ml_collections"}) == []


def test_only_tasks_import_by_name():
  """`tasks.run` finds a task, and `reward_function` what the user names.

  Nobody else hides an import.
  """
  assert dynamic_imports(house()) == [
    f"{PACKAGE}.tasks calls import_module",
    f"{PACKAGE}.tasks.rollouts.reward_function calls import_module",
  ]


def test_no_pickle():
  configs = {p.stem: p.read_text() for p in (ROOT / "configs").glob("*.py")}
  assert pickles(house() | configs) == []


def test_files_can_be_read_in_one_sitting():
  long = {
    str(path.relative_to(ROOT)): count
    for folder in (PACKAGE, "configs")
    for path in (ROOT / folder).rglob("*.py")
    if (count := len(path.read_text().splitlines())) >= MAX_LINES
  }
  assert set(long) - LONG_FILES == set(), long
  assert set(long) >= LONG_FILES, "no longer long: take it off the list"


FAULTY = {
  "perl_jax": "",
  "perl_jax.main": "from perl_jax import tasks",
  "perl_jax.tasks": "import importlib\nimportlib.import_module('x')",
  "perl_jax.tasks.rl": "from perl_jax.tasks import sft\nimport ml_collections",
  "perl_jax.tasks.sft": "def f():\n  from . import rl",
  "perl_jax.attic": "",
  "perl_jax.steps": "import perl_jax.metrics",
  "perl_jax.metrics": "import numpy\nnumpy.load('x', allow_pickle=True)",
  "perl_jax.data": "",
  "perl_jax.data.loader": "def f():\n  import jax.numpy",
  "perl_jax.roles": "from perl_jax.tasks.rl import run\nimport time",
  "perl_jax.params": "import ml_collections\nimport pickle",
  "perl_jax.models": "from configs import rl",
  "perl_jax.objectives": "import numpy as np\nfrom perl_jax import models",
  "perl_jax.objectives.kl": "import jax, chex, math",
}


@pytest.mark.parametrize(
  ("found", "expected"),
  [
    (
      upward_imports(FAULTY),
      [
        "perl_jax.steps imports perl_jax.metrics",
        "perl_jax.roles imports perl_jax.tasks.rl",
      ],
    ),
    (
      sorted(set(circle(FAULTY))),
      ["perl_jax.tasks.rl", "perl_jax.tasks.sft"],
    ),
    (
      imports_of(FAULTY, {"objectives"}, only={"jax", "chex"}),
      [
        "perl_jax.objectives imports numpy",
        "perl_jax.objectives imports perl_jax.models",
      ],
    ),
    (
      imports_of(FAULTY, {"data"}, forbidden=BY_JAX),
      ["perl_jax.data.loader imports jax.numpy"],
    ),
    (
      imports_of(FAULTY, PURE, forbidden=EFFECTS),
      [
        "perl_jax.roles imports time",
        "perl_jax.params imports ml_collections",
      ],
    ),
    (
      imports_of(FAULTY, None, forbidden={"configs"}),
      ["perl_jax.models imports configs"],
    ),
    (dynamic_imports(FAULTY), ["perl_jax.tasks calls import_module"]),
    (
      pickles(FAULTY),
      ["perl_jax.params imports pickle", "perl_jax.metrics allows pickle"],
    ),
    ([r for r in map(room, FAULTY) if r and not place(r)], ["attic"]),
  ],
  ids=[
    "upward",
    "circle",
    "objectives",
    "data",
    "pure",
    "configs",
    "dynamic",
    "pickle",
    "no floor",
  ],
)
def test_the_checks_see_a_fault(found, expected):
  assert found == expected

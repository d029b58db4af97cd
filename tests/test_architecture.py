"""The floors of the house: who may import whom, what is in one place only.

Each check takes a mapping from module names to sources and returns what is
wrong, so that the same functions are tried on a small house with every fault in
it.
"""

import ast

import pytest

from tests.architecture import (
  BY_JAX,
  EFFECTS,
  LONG_FILES,
  MAX_LINES,
  PACKAGE,
  PURE,
  ROOT,
  TABLES,
  VOCABULARY,
  circle,
  commands,
  commands_that_import_commands,
  dynamic_imports,
  house,
  imports,
  imports_of,
  literal_lists,
  long_functions,
  pickles,
  place,
  room,
  task_folders_upward,
  top,
  upward_imports,
)


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
  shared = {"names", "json_text", "segments"}
  assert imports_of(house(), {"data", *shared}, forbidden=BY_JAX) == []
  others = [
    f"{name} imports {imported}"
    for name in house()
    if room(name) == "data"
    for imported in imports(name, house())
    if top(imported) == PACKAGE and room(imported) not in {"data", *shared}
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
  """`tasks.run` finds a task, and `user_code` what the user names.

  Nobody else hides an import.
  """
  assert dynamic_imports(house()) == [
    f"{PACKAGE}.tasks calls import_module",
    f"{PACKAGE}.tasks.rollouts.user_code calls import_module",
  ]


def test_no_pickle():
  configs = {p.stem: p.read_text() for p in (ROOT / "configs").glob("*.py")}
  assert pickles(house() | configs) == []


def test_no_command_imports_another():
  """A file of tasks/ is a command, a folder is what commands share."""
  assert commands(house()) >= {f"{PACKAGE}.tasks.{n}" for n in ("rl", "plan")}
  assert commands_that_import_commands(house()) == []


def test_a_folder_of_tasks_imports_only_folders_below_it():
  assert task_folders_upward(house()) == []


def test_there_is_one_table_of_tasks():
  every = {name.rsplit(".", 1)[-1] for name in commands(house())}
  assert literal_lists(house(), every, least=3) <= TABLES


def test_there_is_one_vocabulary_of_metrics():
  """What shows metrics names no four of them in a list of its own."""
  calls = ast.walk(ast.parse(house()[VOCABULARY]))
  names = {
    node.args[0].value
    for node in calls
    if isinstance(node, ast.Call)
    and getattr(node.func, "id", "") in ("Metric", "_share", "_check")
    and isinstance(node.args[0], ast.Constant)
  }
  assert {"gold", "kl", "seconds/step"} <= names
  showing = {
    name: source
    for name, source in house().items()
    if room(name) == "reporting" or name == f"{PACKAGE}.tasks.report"
  }
  assert literal_lists(showing, names, least=4) <= {VOCABULARY}


def test_functions_can_be_seen_at_once():
  assert long_functions(house()) == {}


def test_files_can_be_read_in_one_sitting():
  long = {
    str(path.relative_to(ROOT)): count
    for folder in (PACKAGE, "configs", "tests", "benchmarks", "launch")
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
  "perl_jax.tasks.settings": "",
  "perl_jax.tasks.settings.rl": "from perl_jax.tasks import training, plan",
  "perl_jax.tasks.training": "STAGES = ('sft', 'rl', 'x', 'plan')",
  "perl_jax.tasks.plan": "def f():\n" + 100 * "  pass\n" + "  pass",
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
    (
      commands_that_import_commands(FAULTY),
      [
        "perl_jax.tasks.rl imports perl_jax.tasks.sft",
        "perl_jax.tasks.sft imports perl_jax.tasks.rl",
        "perl_jax.tasks.settings.rl imports perl_jax.tasks.plan",
      ],
    ),
    (
      task_folders_upward(FAULTY),
      [
        "perl_jax.tasks.settings.rl imports perl_jax.tasks.training",
        "perl_jax.tasks.settings.rl imports perl_jax.tasks.plan",
      ],
    ),
    (
      sorted(literal_lists(FAULTY, {"sft", "rl", "plan"}, least=3)),
      ["perl_jax.tasks.training"],
    ),
    (long_functions(FAULTY), {"perl_jax.tasks.plan.f": 102}),
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
    "command",
    "folder",
    "table",
    "long",
    "dynamic",
    "pickle",
    "no floor",
  ],
)
def test_the_checks_see_a_fault(found, expected):
  assert found == expected

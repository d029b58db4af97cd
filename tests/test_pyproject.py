"""What pyproject.toml promises: dependencies, versions, extras."""

import ast
import re
import sys
import tomllib
from importlib import metadata

import pytest

import perl_jax
from perl_jax import main
from tests.architecture import PACKAGE, ROOT, house, imports, top

requirements = pytest.importorskip(
  "packaging.requirements", reason="reads version ranges; pip install packaging"
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def plain(name):
  return re.sub(r"[-_.]+", "-", name).lower()


def ranges(lines):
  found = [requirements.Requirement(line) for line in lines]
  return {plain(one.name): one for one in found}


REQUIRED = ranges(PROJECT["dependencies"])
OPTIONAL = ranges(
  line
  for name in ("gguf", "datasets", "sentencepiece")
  for line in EXTRAS[name]
)
TRACKERS = ranges(EXTRAS["trackers"])
BUCKETS = ranges([*EXTRAS["gcs"], *EXTRAS["s3"]])
DOCS = ranges(EXTRAS["docs"])


def undeclared(sources, known):
  """Packages that the sources import and that no requirement brings."""
  distributions = metadata.packages_distributions()
  packages = {top(i) for name in sources for i in imports(name, sources)}
  packages -= {*sys.stdlib_module_names, PACKAGE}
  # The client of MLflow is a distribution of its own.
  known = {*known} | {"mlflow"} if "mlflow-skinny" in known else known
  return {
    package
    for package in packages
    if not {plain(d) for d in distributions.get(package, [package])} & known
  }


def test_everything_that_is_imported_is_required():
  assert undeclared(house(), {*REQUIRED, *OPTIONAL, *TRACKERS}) == set()
  assert undeclared(house(), {*REQUIRED} - {"scipy"}) >= {
    *("scipy", "gguf", "mlflow")
  }


def test_everything_that_is_required_is_imported():
  distributions = metadata.packages_distributions()
  packages = {top(i) for name in house() for i in imports(name, house())}
  used = {plain(d) for p in packages for d in distributions.get(p, [])}
  # TFDS reads its files with it, and does not require it.
  assert set(REQUIRED) - used == {"array-record"}


def test_pins_are_within_the_ranges():
  texts = (
    (ROOT / f"requirements{which}.txt").read_text()
    for which in ("", "-parity", "-docs")
  )
  lines = "".join(texts).splitlines()
  pins = ranges(line for line in lines if line and line[0] != "#")
  named = REQUIRED | OPTIONAL | TRACKERS | BUCKETS | DOCS
  for name, allowed in named.items():
    (pin,) = pins[name].specifier
    assert allowed.specifier.contains(pin.version), (name, str(pin))


def test_the_version_is_in_one_place(capsys):
  assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
  newest = re.search(
    r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
  )
  assert newest[1] == perl_jax.__version__
  with pytest.raises(SystemExit) as caught:
    main.parse(["perl_jax", "--version"])
  assert caught.value.code == 0
  assert capsys.readouterr().out == f"perl_jax {perl_jax.__version__}\n"


def test_extras():
  assert {"tpu", "cuda12", "cuda13", "gguf", "plan", "docs", "dev"} <= set(
    EXTRAS
  )
  for name in ("tpu", "cuda12", "cuda13"):
    (line,) = EXTRAS[name]
    assert line == f"jax[{name}]"


def test_the_documentation_names_extras_that_there_are():
  pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
  named = {
    (page.name, extra)
    for page in pages
    for found in re.findall(
      r"pip install '?[\w./-]+\[([\w,]+)\]", page.read_text()
    )
    for extra in found.split(",")
  }
  assert {extra for _, extra in named} >= {"cuda13", "gguf"}
  assert {(page, e) for page, e in named if e not in EXTRAS} == set()


def test_the_command_is_a_function():
  module, _, name = PROJECT["scripts"]["perl_jax"].partition(":")
  tree = ast.parse(house()[module])
  assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}

"""Command lines drawn at random: a config that holds, or one line that says."""

import importlib
import math

import pytest
from absl import flags
from absl.testing import flagsaver
from hypothesis import given
from hypothesis import strategies as st

from perl_jax import main
from perl_jax.tasks.settings import leaves, overrides, ranges
from tests import fuzzing
from tests.test_main import ROOT

CONFIGS = ("rl", "reward", "sft", "dpo", "export", "pipeline")
FIELDS = {
  name: sorted(
    dict(
      overrides.fields(importlib.import_module(f"configs.{name}").get_config())
    )
  )
  for name in CONFIGS
}
EVERY = sorted(set().union(*FIELDS.values()))
VALUES = st.one_of(
  st.integers(-3, 9).map(str),
  st.floats().map(repr),
  fuzzing.SCALARS.map(str),
  st.sampled_from(["(1,2)", "(-1,)", "('a',)", "{}", "{'a': 1}", "()", "true"]),
)


@st.composite
def slips(draw, name):
  """A field's name with a letter or a part of it gone, doubled or other."""
  at = draw(st.integers(0, len(name)))
  piece = draw(st.sampled_from(["", ".", "-", "_", "x", " ", "[0]", "é", '"']))
  return name[:at] + piece + name[at + draw(st.integers(0, 2)) :]


@st.composite
def command_lines(draw):
  name = draw(st.sampled_from(CONFIGS))
  own = st.sampled_from(FIELDS[name])
  any_ = st.sampled_from(EVERY)
  path = st.one_of(own, own, any_, any_.flatmap(slips), st.text(max_size=8))
  arguments = []
  for _ in range(draw(st.integers(1, 3))):
    start = draw(st.sampled_from(["--config.", "--config.", "-config.", "--"]))
    found = draw(path)
    if start == "--" and found in ("", *flags.FLAGS):
      start = "--config."
    arguments.append(f"{start}{found}={draw(VALUES)}")
  return name, arguments


@pytest.fixture
def parse(monkeypatch, tmp_path):
  """Parses the arguments as the command line of one process would be."""
  monkeypatch.chdir(ROOT)
  before = set(flags.FLAGS)

  def parse_(name, arguments):
    argv = ["main", f"--config=configs/{name}.py", *arguments]
    argv.append(f"--workdir={tmp_path / 'run'}")
    saved = flagsaver.save_flag_values(flags.FLAGS)
    monkeypatch.setattr("sys.argv", argv)  # ml_collections looks there
    try:
      main.parse(argv)
      return main._CONFIG.value
    finally:
      for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
      flagsaver.restore_flag_values(saved)
      flags.FLAGS.unparse_flags()

  return parse_


@pytest.mark.slow
@fuzzing.drawn()
@given(command_lines())
def test_overrides(parse, drawn):
  name, arguments = drawn
  try:
    config = parse(name, arguments)
  except SystemExit as error:
    message = str(error)
    assert message.startswith("error: ") and len(message.splitlines()) == 1
    assert len(message) > len("error: ")
    return
  named = {a.lstrip("-").removeprefix("config.").partition("=")[0]
           for a in arguments if "config." in a}  # fmt: skip
  try:
    ranges.check(config)
  except ValueError as error:
    assert any(f"config.{path}=" in str(error) for path in named)
    return
  for leaf in leaves.leaves(config):
    items = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
    for item in items:
      assert not isinstance(item, float) or math.isfinite(item), leaf.path

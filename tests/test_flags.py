"""Flags of the command: `--help` names all of them, and so do the pages."""

import pytest
from absl import flags

from perl_jax import main
from tests import documents


@pytest.fixture
def names():
  known = flags.FLAGS.flags_by_module_dict()[main.__name__]
  return {"config", *(flag.name for flag in known)}


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help(names, capsys, argument):
  """Under any name of the script: installed, it is not this module."""
  with pytest.raises(SystemExit) as caught:
    main.parse(["perl_jax", "--config=rl", argument])
  said = capsys.readouterr().out.replace("--[no]", "--")
  assert caught.value.code == 0 and "--config.lora.rank=4" in said
  assert {"traceback", "join_seconds", "workdir"} <= names
  assert {name for name in names if f"\n  --{name}: " not in said} == set()


def test_pages(names):
  text = "".join(map(documents.text, documents.PAGES))
  assert {name for name in names if f"--{name}" not in text} == set()

"""Every command of the pages at small size; what is not run says why."""

import contextlib
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.buckets import servers
from tests.nightly import places, small

# What a command may change is copied for it, everything else is a link.
COPIED = ("runs",)
COMMANDS = small.commands()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  place = tmp_path_factory.mktemp("prepared")
  places.write(place)
  return place


@pytest.fixture
def bucket(prepared, monkeypatch):
  """Returns a function that fills a bucket, for a command that writes one."""
  with contextlib.ExitStack() as stack:

    def filled(workdir):
      process, variables = servers.started("gs")
      stack.enter_context(process)
      stack.callback(process.kill)
      for name, value in variables.items():
        monkeypatch.setenv(name, value)
      places.write_bucket(prepared, workdir)

    yield filled


@pytest.fixture
def here(prepared, tmp_path):
  """A directory of a command's own."""
  here = tmp_path / "here"
  here.mkdir()
  for path in prepared.iterdir():
    if path.name in COPIED:
      shutil.copytree(path, here / path.name)
    else:
      (here / path.name).symlink_to(path.resolve())
  return here


@servers.WARNINGS[0]
@pytest.mark.parametrize(
  "command", COMMANDS, ids=lambda command: " ".join(command.words)
)
def test_command(command, here, bucket, monkeypatch):
  if why := small.why_not(command.words):
    pytest.skip(f"{command.page}: {why}")
  words = small.small(command.words, sys.executable)
  (here / "my.jsonl").symlink_to(here / small.rows_for(command.words))
  flags = small.named(words)
  if "--config=" in str(words) and "configs/report.py" not in str(words):
    shutil.rmtree(here / flags.get("workdir", "none"), ignore_errors=True)
  if places.IN_BUCKET in str(words):
    monkeypatch.setenv("PERL_JAX_CACHE", str(here / "cache"))
    bucket(flags["workdir"])
  devices = 16 if "config.mesh.tensor" in flags else 1
  # What a page has set before, such as a login.
  given = filter(None, flags.get("env", "").split(","))
  environment = os.environ | dict.fromkeys(given, "given")
  environment |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": re.sub(
      r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"]
    ),
    "PYTHONPATH": "",
  }
  done = subprocess.run(
    words,
    cwd=here,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}"

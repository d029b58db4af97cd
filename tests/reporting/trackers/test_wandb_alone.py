"""W&B's client in a process of its own: no login, and what it is sent."""

import os
import pty
import subprocess
import sys

import pytest

from perl_jax import files
from tests.reporting.trackers.test_clients import CONFIG, records

pytest.importorskip("wandb", reason="W&B's client is not installed")


def opened_alone(workdir, then, *arguments, **fields):
  """Opens a run of W&B in a process of its own, as `client`, without a login.

  Args:
    workdir: Its workdir; the process finds no other home.
    then: What it does with `client`; empty for nothing.
    *arguments: Arguments of the command.
    **fields: Environment variables, and arguments of `subprocess.run`.
  """
  code = (
    "import pathlib, sys\n"
    "from perl_jax.reporting.trackers import clients\n"
    "sys.tracebacklimit = 0\n"  # a terminal that nobody reads holds little
    "workdir = pathlib.Path(sys.argv[1])\n"
    "start = clients.Start('', 'rl', '', 'rl', workdir, None)\n"
    "client = clients.Wandb(start)\n"
  )
  environment = {k: v for k, v in os.environ.items() if k[:5] != "WANDB"}
  environment |= {"HOME": str(workdir), "NETRC": str(workdir / "netrc")}
  environment["PYTHONPATH"] = os.pathsep.join(sys.path)
  environment |= {k: fields.pop(k) for k in list(fields) if k.isupper()}
  return subprocess.run(
    [sys.executable, "-c", code + then, str(workdir), *arguments],
    env=environment,
    cwd=workdir,
    timeout=120,
    check=False,
    **fields,
  )


def test_wandb_asks_nobody_for_a_key(tmp_path):
  ours, theirs = pty.openpty()  # it would ask in a terminal
  streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
  try:
    done = opened_alone(tmp_path, "", TERM="xterm", **streams)
    said = os.read(ours, 2**16).decode()
  finally:
    os.close(theirs)
    os.close(ours)
  assert done.returncode == 1
  assert "No API key configured" in said and "choice" not in said


def test_wandb_disabled(tmp_path):
  """Its run has no address; it is used as any other."""
  then = (
    "client.configure({'lora.rank': 4})\n"
    "client.log([clients.Row(0, {'loss': 1.0})])\n"
    "client.upload([workdir / 'config.json'])\n"
    "client.close('finished')\n"
    "print(client.place)\n"
  )
  files.write_json(tmp_path / "config.json", CONFIG)
  fields = {"capture_output": True, "text": True, "WANDB_MODE": "disabled"}
  done = opened_alone(tmp_path, then, **fields)
  assert done.returncode == 0, done.stderr
  assert done.stdout == "disabled\n"


def test_wandb_gets_nothing_of_the_command_and_the_machine(tmp_path):
  then, secret = "client.close('finished')\n", "pa55word"
  argument = f"--config.endpoint.url=https://me:{secret}@host/v1"
  fields = {"capture_output": True, "text": True, "WANDB_MODE": "offline"}
  done = opened_alone(tmp_path, then, argument, **fields)
  assert done.returncode == 0, done.stderr
  (path,) = (tmp_path / "wandb").glob("offline-*/*.wandb")
  kinds = {record.WhichOneof("record_type") for record in records(path)}
  assert "run" in kinds
  assert not kinds & {"environment", "files", "stats", "python_packages"}
  written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
  assert not any(secret.encode() in content for content in written)

"""SIGTERM while XLA compiles within a training: saved, and left at once."""

import subprocess
import sys

import pytest

from tests.tasks import tiny

pytestmark = pytest.mark.slow

# The sampler of an SFT, at its last step, is a program that XLA
# would compile for minutes, and SIGTERM comes meanwhile.
CODE = """
import os, signal, threading
import jax, jax.numpy as jnp
from perl_jax import main

real = jax.stages.Lowered.compile

def endless(x):
  for i in range(4000):
    x = jnp.sin(x @ x) + i
  return x

def compile_(lowered, *args, **options):
  if "sample" not in lowered.as_text()[:400]:
    return real(lowered, *args, **options)
  lowered = jax.jit(endless).lower(jnp.ones((8, 8)))
  threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
  real(lowered)
  print("compiled", flush=True)
  return real(lowered)

jax.stages.Lowered.compile = compile_
main.run()
"""


def test_a_stop_does_not_wait_for_the_compiler(tmp_path):
  workdir = tmp_path / "run"
  flags = tiny.fields("sft") | {"eval.rows": 8}
  done = subprocess.run(
    [
      *(sys.executable, "-c", CODE, "--config=sft", f"--workdir={workdir}"),
      "--compilation_cache=",
      *(f"--config.{name}={value}" for name, value in flags.items()),
    ],
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 75, done.stderr
  assert "compiled" not in done.stdout
  (line,) = [x for x in done.stderr.splitlines() if x.startswith("Stopped by")]
  assert "SIGTERM after step 4 of 4, saved as" in line
  assert "Fatal" not in done.stderr and "Traceback" not in done.stderr
  assert max(tiny.kept(workdir)) == 4

"""Memory of this process, and results of other processes."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Threads of torch that wait sleep, rather than take processor time.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def status_bytes(field: str) -> int:
  """Returns a field of Linux's /proc/self/status, such as VmHWM, in bytes.

  Raises:
    ValueError: There is no such field.
  """
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(f"{field}:"):
      return 1024 * int(line.split()[1])
  raise ValueError(f"/proc/self/status has no {field}.")


def last_json(
  command: Sequence[str],
  *,
  cwd: Path | None = None,
  env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Runs a command; returns the JSON object in its last line of output.

  Args:
    command: Program and arguments.
    cwd: Working directory.
    env: Environment variables beside those of this process.

  Raises:
    ValueError: It failed or printed something else.
  """
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    env=os.environ | (env or {}),
    cwd=cwd,
  )
  last = (done.stdout.strip().splitlines() or [""])[-1]
  if done.returncode or not last.startswith("{"):
    raise ValueError(
      f"{' '.join(map(str, command))} gave no result (exit"
      f" {done.returncode}):\n{done.stderr[-2000:]}"
    )
  return json.loads(last)

"""Does getting-started work on a machine with nothing, word by word?

  python -m benchmarks.from_nothing --log=benchmarks/logs/from_nothing.log
  python -m benchmarks.from_nothing --directory=runs/from_nothing --data=DIR

The commands in the blocks of docs/getting-started.md are run as they are
printed, in their order, in a clone of this one in an empty directory, by a
shell whose environment is empty but for PATH, a home directory without files
and what says how this machine reaches package indexes. Files that the page
shows, "# mine.py", are written as they are shown. Each command has to end with
status 0, and what the page says of the outcome has to be so. What is left out,
and why, is in `LEFT_OUT`; with `--data`, a directory with hh_harmless, the
second model is trained too, which takes half an hour. Without it some ten
minutes on two CPU cores, most of them for installing.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/getting-started.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# How a machine reaches package indexes, which is its own affair.
_NETWORK = re.compile(r"(PIP_|SSL_|REQUESTS_|https?_proxy|no_proxy)", re.I)
# Commands of the page that are not run, and why.
LEFT_OUT = {
  "make smollm2": "downloads 20 MB of pairs, and takes half an hour",
  "make smollm2 DATA=DIR": "takes half an hour; --data runs it",
  ".venv/bin/python -m perl_jax.main --config=configs/smollm2.py "
  "--workdir=runs/smollm2": "is what `make smollm2` runs",
  "make test": "CI runs it",
  "make test-slow": "CI runs it",
  "make nightly": "runs this script",
}
_LAST_LINES = 12


def steps(page: str) -> Iterator[tuple[str, str]]:
  """What the page shows, in order: ("run", a command) or ("write", a file)."""
  for language, block in _BLOCK.findall(page):
    if language == "python" and block.startswith("# "):
      yield "write", block
    elif language == "bash":
      for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
        command = re.sub(r"\s+#.*", "", line).strip()
        if command:
          yield "run", command


def environment(home: Path) -> dict[str, str]:
  """What the shell of somebody has who has just logged in."""
  given = {k: v for k, v in os.environ.items() if _NETWORK.match(k)}
  python = Path(sys.base_prefix) / "bin"
  path = os.pathsep.join([str(python), "/usr/local/bin", "/usr/bin", "/bin"])
  return given | {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8"}


class Shell:
  """A shell that keeps its variables and directory from command to command."""

  def __init__(self, place: Path, log: TextIO):
    self._state, self._place, self._log = place / "state.sh", place, log
    self._env = environment(place / "home")
    (place / "home").mkdir()
    self._state.write_text("")

  def __call__(self, command: str) -> str:
    """Runs a command and returns what it printed.

    Raises:
      RuntimeError: Its exit status is not 0.
    """
    keep = f'{{ export -p; echo cd $(printf %q "$PWD"); }} > {self._state}'
    script = f"source {self._state}\n{command}\nstatus=$?\n{keep}\nexit $status"
    started = time.monotonic()
    done = subprocess.run(
      ["bash", "--noprofile", "--norc", "-c", script],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      stdin=subprocess.DEVNULL,
      text=True,
      env=self._env,
      cwd=self._place,
    )
    seconds = time.monotonic() - started
    said = done.stdout.replace(str(self._place), "DIR")
    self.note(f"$ {command}".replace(str(ROOT), "CLONE"))
    for line in said.splitlines()[-_LAST_LINES:]:
      self.note(f"  {line.rstrip()}")
    self.note(f"status {done.returncode}, {seconds:.0f} s")
    if done.returncode:
      raise RuntimeError(f"{command}: status {done.returncode}\n{said}")
    return said

  def note(self, line: str) -> None:
    """Writes a line into the log."""
    print(line, file=self._log, flush=True)


def expect(shell: Shell, what: str, holds: bool) -> None:
  """Notes what was found, and ends if it is not what the page says.

  Raises:
    RuntimeError: It is not.
  """
  shell.note(f"{'so it is' if holds else 'NOT SO'}: {what}")
  if not holds:
    raise RuntimeError(f"not so: {what}")


def check_quickstart(shell: Shell, clone: Path, page: str) -> None:
  """Compares what `make quickstart` has left with what the page says."""
  workdir = clone / "runs/quickstart"
  found = json.loads((workdir / "summary.json").read_text())
  table = page.split("## Reading the results")[1].split("\n### ")[0]
  rows = [
    line.split("|")[1] for line in table.splitlines() if line[:3] == "| `"
  ]
  keys = [key for row in rows for key in re.findall(r"`([^`]+)`", row)]
  expect(shell, "report.html is there", (workdir / "report.html").is_file())
  missing = [key for key in keys if key not in found]
  expect(
    shell, f"the {len(keys)} keys of the table are in summary.json", not missing
  )
  for name in ("rl.gold", "rl.reward"):
    before, after = found[f"{name}_before"], found[f"{name}_after"]
    expect(shell, f"{name} rises, {before:.3f} to {after:.3f}", after > before)
  points = 100 * (found["rl.gold_after"] - found["rl.gold_before"])
  (least,) = re.findall(r"by (\d+) points at least", page)
  expect(
    shell, f"gold by {points:.1f} points, of {least}", points >= int(least)
  )
  expect(shell, "rl.kl_at_step_0 is 0", found["rl.kl_at_step_0"] == 0)
  expect(shell, f"rl.kl is {found['rl.kl']:.2f}", 0 < found["rl.kl"] < 1)
  again = abs(found["evaluate.policy.gold"] - found["rl.gold_after"])
  expect(
    shell, f"sampled again it differs by {again:.3f}, as noise", again < 0.08
  )
  accuracy = found["reward.accuracy"]
  expect(shell, f"reward.accuracy is {accuracy:.3f}", 0.8 < accuracy < 1)


def follow(page: str, place: Path, data: str, log: TextIO) -> None:
  """Does what the page says, in an empty directory.

  Raises:
    RuntimeError: A command fails, or what comes out is not what the page says.
  """
  shell = Shell(place, log)
  clone = place / "perl_jax"
  shell(f"git clone --quiet {ROOT} perl_jax && cd perl_jax")
  for kind, text in steps(page):
    if kind == "write":
      name = text.splitlines()[0].removeprefix("# ")
      (clone / name).write_text(text)
      shell.note(f"wrote {name}")
      continue
    command = text
    if data and command == "make smollm2 DATA=DIR":
      command = command.replace("DIR", str(Path(data).absolute()))
    elif text in LEFT_OUT:
      shell.note(f"$ {text}\nnot run: it {LEFT_OUT[text]}")
      continue
    before = summary_of(clone)
    shell(command)
    if text == "make quickstart":
      check_quickstart(shell, clone, page)
    elif "--workdir=runs/quickstart" in text:
      expect(shell, "nothing is run again", summary_of(clone) == before)
    elif text == "make docs":
      index = clone / "site/getting-started.html"
      expect(shell, "the site has this page", index.is_file())
  shell("perl_jax --version")
  shell("python -m pip wheel --quiet --no-deps .")
  expect(shell, "there is a wheel", bool(list(clone.glob("perl_jax-*.whl"))))


def summary_of(clone: Path) -> Mapping[str, float] | None:
  """The summary of the quickstart, None before there is one."""
  path = clone / "runs/quickstart/summary.json"
  return json.loads(path.read_text()) if path.is_file() else None


def main() -> None:
  """Follows the page; ends with the first thing that is not as it says."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--directory", type=Path, help="empty; kept afterwards")
  parser.add_argument("--data", default="", help="directory with hh_harmless")
  parser.add_argument("--log", type=Path, help="file to write")
  options = parser.parse_args()
  page = PAGE.read_text(encoding="utf-8")
  with tempfile.TemporaryDirectory() as temporary:
    place = (options.directory or Path(temporary)).absolute()
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
      sys.exit(f"error: {place} is not empty.")
    with open(options.log or os.devnull, "w", encoding="utf-8") as log:
      follow(page, place, options.data, Both(log, sys.stdout))


class Both:
  """Writes to two files at once."""

  def __init__(self, *files: TextIO):
    self._files = files

  def write(self, text: str) -> None:
    """Writes to both."""
    for file in self._files:
      file.write(text)

  def flush(self) -> None:
    """Flushes both."""
    for file in self._files:
      file.flush()


if __name__ == "__main__":
  main()

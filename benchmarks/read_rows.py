"""Seconds and memory of reading rows, beside the parser alone.

  python -m benchmarks.read_rows --rows=100000

Conversations and pairs of some hundred letters are written as JSON lines and as
Parquet, and read in two ways: by `json.loads` or `Table.to_pylist()` alone,
which keep all rows, and as records with their split. Each way is measured
`--rounds` times by turns, each time in a process of its own, and the least
counts. Seconds are those of the processor, and memory is what the process has
grown by at most. Tokenisation is not measured.
"""

import argparse
import json
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from benchmarks import process

WORDS = (
  *("the", "a", "of", "to", "what", "how", "plant", "river", "count"),
  *("seven", "blue", "answer", "short"),
)
KINDS = {
  "messages": "demonstrations",
  "pairs": "preferences",
}


def write(root: pathlib.Path, shape: str, rows: int) -> list[pathlib.Path]:
  """Writes rows of a shape in both formats, and returns the files."""
  import pyarrow
  from pyarrow import parquet

  made = list(_rows(shape, rows))
  lines = root / f"{shape}.jsonl"
  with lines.open("w") as file:
    file.writelines(json.dumps(row) + "\n" for row in made)
  table = root / f"{shape}.parquet"
  parquet.write_table(pyarrow.Table.from_pylist(made), table)
  return [lines, table]


def parse(path: pathlib.Path) -> int:
  """Keeps the rows of a file as the parser gives them; returns their number."""
  if path.suffix == ".jsonl":
    with path.open("rb") as file:
      rows = [json.loads(line) for line in file]
  else:
    from pyarrow import parquet

    rows = parquet.read_table(path).to_pylist()
  return len(rows)


def load(path: pathlib.Path, kind: str) -> int:
  """Keeps all rows of a file as records; returns their number."""
  from perl_jax.data.sources import registry

  found = registry.load("jsonl", kind, path=str(path))
  return len(found.train) + len(found.validation)


def measure(path: pathlib.Path, kind: str) -> None:
  """Prints seconds and MiB of reading a file; "" as kind parses it alone."""
  # Imports take seconds whatever is read, and are not what is measured.
  import sklearn.model_selection  # noqa: F401

  from perl_jax.data.sources import registry  # noqa: F401

  before = _peak()
  start = time.process_time()
  rows = load(path, kind) if kind else parse(path)
  seconds = time.process_time() - start
  found = {"rows": rows, "seconds": seconds, "MiB": _peak() - before}
  print(json.dumps(found))


def compare(rows: int, rounds: int) -> list[dict[str, object]]:
  """Returns a row for each shape and format, with the ratios to the parser."""
  found = []
  with tempfile.TemporaryDirectory() as folder:
    for shape, kind in KINDS.items():
      for path in write(pathlib.Path(folder), shape, rows):
        both = [
          (_in_process(path, ""), _in_process(path, kind))
          for _ in range(rounds)
        ]
        alone, ours = map(_least, zip(*both, strict=True))
        found.append(
          {
            "file": path.name,
            "rows": ours["rows"],
            "seconds": ours["seconds"],
            "seconds_alone": alone["seconds"],
            "times": ours["seconds"] / alone["seconds"],
            "MiB": ours["MiB"],
            "MiB_alone": alone["MiB"],
            "times_memory": ours["MiB"] / max(alone["MiB"], 1),
          }
        )
  return found


def _rows(shape: str, rows: int) -> Iterator[dict[str, object]]:
  draw = random.Random(0)

  def said() -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(10, 60)))

  for number in range(rows):
    question = {"role": "user", "content": f"{number} {said()}?"}
    replies = [{"role": "assistant", "content": said()} for _ in range(2)]
    if shape == "messages":
      again = {"role": "user", "content": said()}
      yield {"messages": [question, replies[0], again, replies[1]]}
    else:
      yield {
        "prompt": question["content"],
        "chosen": [question, replies[0]],
        "rejected": [question, replies[1]],
      }


def _in_process(path: pathlib.Path, kind: str) -> dict[str, float]:
  command = [sys.executable, "-m", "benchmarks.read_rows", f"--path={path}"]
  return process.last_json([*command, f"--kind={kind}"])


def _least(found: Sequence[dict[str, float]]) -> dict[str, float]:
  """Returns the least of each number."""
  return {name: min(row[name] for row in found) for name in found[0]}


def _peak() -> float:
  """Returns the most memory that the process has had, in MiB.

  `getrusage` gives that of the process that started it, if it was larger.
  """
  return process.status_bytes("VmHWM") / 2**20


def main() -> None:
  """Compares, or measures one file in the process that was started for it."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=100_000)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--path", default="")
  parser.add_argument("--kind", default="")
  given = parser.parse_args()
  if given.path:
    measure(pathlib.Path(given.path), given.kind)
    return
  for row in compare(given.rows, given.rounds):
    print(json.dumps(row))


if __name__ == "__main__":
  main()

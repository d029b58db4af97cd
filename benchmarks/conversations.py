"""The first conversations of a judgement side by side, as Markdown.

  python -m benchmarks.conversations runs/judge/verdicts.jsonl --rows=10

The first lines of the file as they are, none left out: each prompt whole, what
either side answered, and what each judge said of it.
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from perl_jax import files


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
  """A section for each line of verdicts.jsonl, texts as blocks of code."""
  parts = []
  for number, row in enumerate(rows, start=1):
    verdicts = ", ".join(
      f"{name}: {found['outcome'] or 'no verdict'}"
      for name, found in row["judges"].items()
    )
    other = row["against_is"].capitalize()
    parts += [
      f"### {number}",
      block(row["prompt"]),
      f"{other}:",
      block(row["against"]),
      f"Policy ({verdicts}):",
      block(row["policy"]),
    ]
  return "\n\n".join(parts) + "\n"


def block(text: str) -> str:
  """Text between fences longer than any in it."""
  fence = "```"
  while fence in text:
    fence += "`"
  return f"{fence}text\n{text}\n{fence}"


def main() -> None:
  """Prints them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("path", type=Path, help="verdicts.jsonl")
  parser.add_argument("--rows", type=int, default=10)
  given = parser.parse_args()
  print(markdown(files.read_jsonl(given.path)[: given.rows]), end="")


if __name__ == "__main__":
  main()

"""What an endpoint has answered so far: a killed run does not ask again.

It costs money and time. The file stays: verdicts that are made anew, as after a
change of one side, need fewer answers.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from perl_jax import disk, files, hosts
from perl_jax.endpoints import Answer

NAME = "answers.jsonl"


class Later:
  """Takes answers once there is somewhere to put them.

  Attributes:
    add: Called with each answer and its key.
  """

  def __init__(self) -> None:
    self.add: Callable[[str, Answer], None] = lambda key, answer: None

  def __call__(self, key: str, answer: Answer) -> None:
    """Hands over to `add`."""
    self.add(key, answer)


def read(workdir: Path) -> dict[str, Answer]:
  """The answers by the key of their request; {} without a file.

  A last line that a kill has torn is left out.
  """
  path = workdir / NAME
  if not path.exists():
    return {}
  rows = files.read_jsonl(path, torn_end=True)
  return {
    str(row["key"]): Answer(str(row["text"]), str(row["ended"]))
    for row in rows
    if {"key", "text", "ended"} <= row.keys()
  }


@contextlib.contextmanager
def kept(
  workdir: Path, known: dict[str, Answer]
) -> Iterator[Callable[[str, Answer], None]]:
  """A function that adds an answer to the file, in the block.

  Args:
    workdir: Workdir of the run.
    known: The answers that are there, from `read`.
  """
  if not hosts.is_primary():
    yield lambda key, answer: None
    return
  path = workdir / NAME

  def row(key: str, answer: Answer) -> dict[str, str]:
    return {"key": key, "text": answer.text, "ended": answer.ended}

  if path.exists():  # without the torn line
    files.write_jsonl(path, [row(key, known[key]) for key in known])
  with disk.writing(NAME, workdir):
    file = path.open("ab", buffering=0)
  with file:

    def add(key: str, answer: Answer) -> None:
      files.append(file, [row(key, answer)], durable=True)

    yield add
  if not path.stat().st_size:
    path.unlink()

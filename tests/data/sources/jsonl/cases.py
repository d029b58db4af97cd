"""Messages and rows for the tests of JSON-lines files."""

from perl_jax.data.sources.jsonl import files
from tests.data.text.messages import system, user

QUESTION = user("Why?")
SYSTEM = system("Be brief.")
# A valid row of each shape.
GOOD = {
  "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
  "labelled": {"prompt": "a", "response": "b", "label": 1},
  "demonstrations": {"prompt": "a", "response": "b"},
  "prompts": {"prompt": "a"},
  "texts": {"text": "a"},
}


def read(path, kind):
  """Returns all rows of a file, in order, without a split."""
  return files.load(path, kind, validation_path=path).train


def many(shape, count=20):
  """Yields rows of a shape, each in a group of its own."""
  for n in range(count):
    yield {
      "preferences": {"prompt": f"q{n}", "chosen": "a", "rejected": "b"},
      "labelled": {"prompt": f"q{n}", "response": "a", "label": n % 2},
      "demonstrations": {"prompt": f"q{n}", "response": "a"},
      "prompts": {"prompt": f"q{n}"},
      "texts": {"text": f"q{n}"},
    }[shape]

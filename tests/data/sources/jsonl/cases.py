"""Messages and rows for the tests of JSON lines."""

from perl_jax.data.sources.jsonl import files

QUESTION = {"role": "user", "content": "Why?"}


SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
  return {"role": "user", "content": text}


def assistant(text):
  return {"role": "assistant", "content": text}


def read(path, kind):
  """All rows of a file, in order, without a split."""
  return files.load(path, kind, validation_path=path).train


def many(shape, count=20):
  """Rows of a shape, each of its own group."""
  for n in range(count):
    yield {
      "preferences": {"prompt": f"q{n}", "chosen": "a", "rejected": "b"},
      "labelled": {"prompt": f"q{n}", "response": "a", "label": n % 2},
      "demonstrations": {"prompt": f"q{n}", "response": "a"},
      "prompts": {"prompt": f"q{n}"},
    }[shape]

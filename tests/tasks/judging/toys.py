"""Pairs of responses, and judges whose opinion is known."""

from perl_jax.data import records
from perl_jax.tasks.judging.pairs import Pair


def row(number, content="say {}", reference=None):
  """A prompt with a number in it."""
  message = {"role": "user", "content": content.format(number)}
  return records.Prompt(f"row {number}", str(number), (message,), reference)


def pairs(*texts):
  """Pairs of (policy, other) responses."""
  return [Pair(row(i), *both) for i, both in enumerate(texts)]


def verdicts(judged):
  """Verdicts of opinions, (policy first, policy last) each."""
  return [tuple(opinion.verdict for opinion in both) for both in judged]

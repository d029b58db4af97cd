"""What is judged: two responses to one prompt; and what is said of them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from perl_jax.data import records
from perl_jax.tasks.judging import statistics

# Why there is no verdict.
REFUSED, UNPARSABLE, CUT = "refused", "unparsable", "cut"
FAULTS = ("", REFUSED, UNPARSABLE, CUT)


class Pair(NamedTuple):
  """Two responses to one prompt.

  Attributes:
    row: The prompt.
    policy: Response of the policy, as text.
    against: The response that it is compared with.
  """

  row: records.Prompt
  policy: str
  against: str


class Opinion(NamedTuple):
  """What a judge said of a pair in one order.

  Attributes:
    verdict: 1 for the policy, -1 for the other response, 0 for a tie, nan for
      none; see `statistics`.
    reason: The answer of a model, or the scores.
    fault: Why there is no verdict, one of `FAULTS`.
  """

  verdict: float
  reason: str
  fault: str = ""


# With the policy's response shown first, and with the other one first.
Both = tuple[Opinion, Opinion]
EQUAL = Opinion(statistics.TIE, "The responses are equal.")


class Judge(Protocol):
  """A judge, ready to be asked.

  Attributes:
    label: What the metrics call it.
    everywhere: Whether all processes have to call it, as it computes on the
      devices; others are called by process 0 alone.
  """

  label: str
  everywhere: bool

  def __call__(self, pairs: Sequence[Pair]) -> list[Both]:
    """Opinions of pairs, in their order."""


def by_scores(policy: float, against: float) -> Both:
  """The opinions of who scores single responses: the higher score wins."""
  verdict = float(policy > against) - float(policy < against)
  reason = f"policy {policy:.6g}, other {against:.6g}"
  return (Opinion(verdict, reason),) * 2


def judge(asked: Judge, pairs: Sequence[Pair]) -> list[Both]:
  """Opinions of all pairs; nobody is asked about equal responses."""
  differ = [pair for pair in pairs if pair.policy != pair.against]
  found = iter(asked(differ) if differ else ())
  return [
    (EQUAL, EQUAL) if pair.policy == pair.against else next(found)
    for pair in pairs
  ]

"""Weak preferences out of dialogs: what the agent did, and what would be wrong.

Rated turns are few; dialogs are many. A turn that a human agent took in a
context is better than a turn of another place, nearly always. A reward model
that has learned these comparisons first needs fewer labels afterwards.

Reference: preference model pre-training, Askell et al. 2021, arXiv:2112.00861,
section 4.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from perl_jax.data import records
from perl_jax.data.taskmaster import parse_call

# Where the rejected turn is from, in equal parts:
#   step: another turn of the same dialog (right order, wrong moment)
#   arguments: a turn of another dialog that calls the same API, or also talks
#   other: any turn of another dialog
WAYS = ("step", "arguments", "other")


def weak_preferences(
  splits: records.Splits, *, seed: int, pairs_per_turn: int = 1
) -> records.Splits:
  """Pairs for every agent turn of every dialog, each side from its own dialogs.

  Args:
    splits: Demonstrations of dialogs.
    seed: Of the rejected turns.
    pairs_per_turn: Rejected turns for each agent turn.

  Returns:
    Preferences of the same groups. Turns for which no other turn differs are
    counted as `without_rejected`.
  """
  counts = dict(splits.counts) | {"pairs": 0, "without_rejected": 0}
  sides = []
  for number, side in enumerate((splits.train, splits.validation)):
    rng = np.random.default_rng([seed, number])
    sides.append(list(_pairs(side, rng, pairs_per_turn, counts)))
  return records.Splits(*sides, counts)


def _pairs(
  dialogs: Sequence[records.Demonstration],
  rng: np.random.Generator,
  pairs_per_turn: int,
  counts: dict[str, int],
) -> Iterator[records.Preference]:
  everywhere: list[str] = []
  alike: dict[str, list[str]] = {}
  for dialog in dialogs:
    for turn in _agent_turns(dialog):
      everywhere.append(turn)
      alike.setdefault(_kind(turn), []).append(turn)
  for dialog in dialogs:
    own = _agent_turns(dialog)
    for at, message in enumerate(dialog.turns):
      if message["role"] != "assistant":
        continue
      chosen = message["content"]
      for number in range(pairs_per_turn):
        way = WAYS[int(rng.integers(len(WAYS)))]
        pool = {
          "step": own,
          "arguments": alike[_kind(chosen)],
          "other": everywhere,
        }[way]
        rejected = _other_than(chosen, pool, rng)
        if rejected is None:
          counts["without_rejected"] += 1
          continue
        counts["pairs"] += 1
        yield records.Preference(
          id=f"{dialog.id}#{at}.{number}",
          group=dialog.group,
          prompt=dialog.prompt + dialog.turns[:at],
          chosen=chosen,
          rejected=rejected,
        )


def _agent_turns(dialog: records.Demonstration) -> list[str]:
  return [m["content"] for m in dialog.turns if m["role"] == "assistant"]


def _kind(turn: str) -> str:
  call = parse_call(turn)
  return "" if call is None else next(iter(call))


def _other_than(
  turn: str, pool: Sequence[str], rng: np.random.Generator, tries: int = 16
) -> str | None:
  """A turn of the pool with another text, or None if none was drawn."""
  for _ in range(tries):
    found = pool[int(rng.integers(len(pool)))]
    if found != turn:
      return found
  return None

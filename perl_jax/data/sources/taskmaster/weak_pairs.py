"""Weak preferences out of dialogs: what the agent did, and what would be wrong.

Rated turns are few; dialogs are many. A turn that a human agent took in a
context is better than a turn of another place, nearly always. A reward model
that has learned these comparisons first needs fewer labels afterwards.

Reference: preference model pre-training, Askell et al. 2021, arXiv:2112.00861,
section 4.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from perl_jax.data import records
from perl_jax.data.sources.taskmaster.checks import parse_call
from perl_jax.data.sources.taskmaster.turns import OR

# What the rejected turn is, in equal parts:
#   step: another turn of the same dialog (right order, wrong moment)
#   arguments: a turn of another dialog that calls the same API
#   edit: the chosen call with one argument swapped, added to or shortened
# Nothing easier: a turn of any kind from anywhere is soon told apart, and
# teaches little about whether a call asks for what the user asked for. For a
# text, and where the others find nothing, it is a step: of two texts for the
# same moment neither is wrong.
WAYS = ("step", "arguments", "edit")


def weak_preferences(
  splits: records.Splits, *, seed: int, pairs_per_turn: int = 1
) -> records.Splits:
  """Pairs for every agent turn of every dialog, each side from its own dialogs.

  Args:
    splits: Demonstrations of dialogs.
    seed: Seed of the choice of rejected turns.
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
  alike: dict[str, list[str]] = {}  # calls by API
  seen: dict[tuple[str, str], list[Any]] = {}
  for dialog in dialogs:
    for turn in _agent_turns(dialog):
      for api, arguments in (parse_call(turn) or {}).items():
        alike.setdefault(api, []).append(turn)
        for key, value in arguments.items():
          seen.setdefault((api, key), []).extend(_parts(value))
  for dialog in dialogs:
    own = _agent_turns(dialog)
    for at, message in enumerate(dialog.turns):
      if message["role"] != "assistant":
        continue
      chosen = message["content"]
      for number in range(pairs_per_turn):
        way = WAYS[int(rng.integers(len(WAYS)))]
        rejected = None
        if way == "edit":
          rejected = _edited(chosen, seen, rng)
        elif way == "arguments":
          for api in parse_call(chosen) or {}:
            rejected = _other_than(chosen, alike[api], rng)
        if rejected is None:
          rejected = _other_than(chosen, own, rng)
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


def _parts(value: Any) -> list[Any]:
  """Entries of a list, terms of a query, or the value itself."""
  if isinstance(value, list):
    return value
  return value.split(OR) if isinstance(value, str) else [value]


def _whole(parts: list[Any], like: Any) -> Any:
  """Inverse of `_parts`, for a value of the same kind as `like`."""
  if isinstance(like, list):
    return parts
  return OR.join(parts) if isinstance(like, str) else parts[0]


def _edited(
  turn: str,
  seen: dict[tuple[str, str], list[Any]],
  rng: np.random.Generator,
  tries: int = 16,
) -> str | None:
  """The call with one argument changed; None if there is none to change.

  One part of the argument is replaced by, or gets beside it, a part that the
  same argument has in other dialogs; or, of several, it is left out.
  """
  call = parse_call(turn)
  api, arguments = next(iter(call.items())) if call else ("", {})
  for _ in range(tries if arguments else 0):
    key = sorted(arguments)[int(rng.integers(len(arguments)))]
    value = arguments[key]
    parts, pool = list(_parts(value)), seen[api, key]
    several = isinstance(value, list) or key == "query"
    how = ("swap", "add", "drop")[int(rng.integers(3))] if several else "swap"
    other = pool[int(rng.integers(len(pool)))] if pool else None
    at = int(rng.integers(len(parts))) if parts else 0
    if how == "drop" and len(parts) > 1:
      del parts[at]
    elif other is None or other in parts:
      continue
    elif how == "add":
      parts.append(other)
    elif parts:
      parts[at] = other
    changed = arguments | {key: _whole(parts, value)}
    found = json.dumps({api: changed}, ensure_ascii=False)
    if found != turn:
      return found
  return None


def _agent_turns(dialog: records.Demonstration) -> list[str]:
  return [m["content"] for m in dialog.turns if m["role"] == "assistant"]


def _other_than(
  turn: str, pool: Sequence[str], rng: np.random.Generator, tries: int = 16
) -> str | None:
  """A turn of the pool with another text, or None if none was drawn."""
  for _ in range(tries):
    found = pool[int(rng.integers(len(pool)))]
    if found != turn:
      return found
  return None

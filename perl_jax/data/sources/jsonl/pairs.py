"""Pairs as people write them, turned into prompt, chosen and rejected.

The prompt is what both sides share, whether they are conversations, plain texts
or transcripts, and whether there is a `prompt` beside them or not. If there is
one, it must be in what they share.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from perl_jax.data.sources import hh
from perl_jax.data.sources.jsonl import conversations, keys, messages, rated

Fields = dict[str, Any]
SIDES = ("chosen", "rejected")
# Fields with what follows a prompt.
REPLIES = (*SIDES, *rated.RESPONSES)


def texts_of(fields: Fields) -> dict[str, str]:
  """Returns what follows a prompt, as far as it is text, by field."""
  return {n: fields[n] for n in REPLIES if isinstance(fields.get(n), str)}


def is_many(fields: Fields) -> bool:
  """Whether a side of a pair is a list of replies (RewardBench 2, RM-Bench)."""
  return _is_list_of_replies(fields.get("chosen")) or _is_list_of_replies(
    fields.get("rejected")
  )


def each(fields: Fields) -> Iterator[Fields]:
  """Yields a pair of every chosen reply with every rejected one."""
  chosen, rejected = (
    value if isinstance(value, list) else [value]
    for value in (fields.get(side) for side in SIDES)
  )
  for good in map(conversations.of, chosen):
    for bad in map(conversations.of, rejected):
      yield fields | {"chosen": good, "rejected": bad}


def apart(fields: Fields, where: str) -> Fields:
  """Returns a pair with its prompt apart from the replies.

  Args:
    fields: A row with `chosen` and `rejected`; others are left as they are.
    where: File and line, for errors.

  Raises:
    ValueError: The sides do not share what `prompt` says, or nothing, or part
      before the last message.
  """
  chosen, rejected = (fields.get(side) for side in SIDES)
  if isinstance(chosen, str) and isinstance(rejected, str):
    if all(map(conversations.is_transcript, (chosen, rejected))):
      return fields | _of_transcripts(chosen, rejected, where)
    if "prompt" in fields:
      return fields
    return fields | _of_texts(chosen, rejected)
  if not (isinstance(chosen, list) and isinstance(rejected, list)):
    return fields
  if len(chosen) == len(rejected) == 1 and "prompt" in fields:
    return fields
  if not chosen or not rejected:
    return fields
  return fields | _of_conversations(fields, chosen, rejected, where)


def with_chosen(fields: Fields) -> Fields:
  """Returns a row whose `messages` end with the chosen reply as a pair.

  Such a row has a rejected reply beside them, or a whole conversation that ends
  with it, and no other chosen one (ms-swift).
  """
  talk, rejected = fields.get("messages"), fields.get("rejected")
  others = ("prompt", "chosen")
  if not rejected or any(name in fields for name in others):
    return fields
  if not isinstance(talk, list) or len(talk) < 2:
    return fields
  found = rated.without(fields, ("messages",))
  if isinstance(rejected, list) and len(rejected) > 1:
    return found | {"chosen": talk}
  return found | {
    "prompt": talk[:-1],
    "chosen": talk[-1:],
    "rejected": [{"role": "assistant", "content": rejected}]
    if isinstance(rejected, str)
    else rejected,
  }


def _is_list_of_replies(side: Any) -> bool:
  return (
    isinstance(side, list) and bool(side) and isinstance(side[0], (str, list))
  )


def _of_texts(chosen: str, rejected: str) -> Fields:
  """The prompt is the words that both texts begin with; {} if there is none.

  Both sides keep a word at least.
  """
  end = 0
  most = min(len(chosen.rstrip()), len(rejected.rstrip())) - 1
  for n, (left, right) in enumerate(zip(chosen, rejected, strict=False), 1):
    if left != right or n > most:
      break
    if left.isspace():
      end = n
  prompt = chosen[:end].strip()
  if not prompt:
    return {}
  return {
    "prompt": prompt,
    "chosen": chosen[end:].strip(),
    "rejected": rejected[end:].strip(),
  }


def _of_transcripts(chosen: str, rejected: str, where: str) -> Fields:
  found = hh.divide(
    conversations.padded(chosen), conversations.padded(rejected)
  )
  if found is None:
    raise messages.error(
      where,
      "chosen",
      "a transcript that shares no turn of a human with `rejected`.",
    )
  return {
    "prompt": list(found.prompt),
    "chosen": found.chosen,
    "rejected": found.rejected,
  }


def _of_conversations(
  fields: Fields, chosen: list[Any], rejected: list[Any], where: str
) -> Fields:
  shared = 0
  # At least one message on each side is left to be the reply.
  for good, bad in zip(chosen[:-1], rejected[:-1], strict=False):
    if good != bad and _rendered(good) != _rendered(bad):
      break
    shared += 1
  prompt = _prompt(fields.get("prompt"), chosen[:shared], chosen[0], where)
  for side, talk in (("chosen", chosen), ("rejected", rejected)):
    if len(talk) - shared > 1:
      raise messages.error(
        where,
        side,
        f"has {len(talk)} messages that are not the prompt"
        f" ({len(prompt)} messages) and one answer: the conversations part"
        " before their last message.",
      )
  return {
    "prompt": prompt,
    "chosen": chosen[shared:],
    "rejected": rejected[shared:],
  }


def _rendered(message: Any) -> Any:
  """Returns what a model sees of a message: no date and no id of it."""
  if not isinstance(message, dict):
    return message
  seen = ("role", "content", *keys.RENDERED)
  return {key: message[key] for key in seen if message.get(key) is not None}


def _prompt(
  given: Any, shared: Sequence[Any], first: Any, where: str
) -> list[Any]:
  """Returns what both sides share, which has to contain the given prompt."""
  if isinstance(given, str) and given.strip():
    given = [{"role": "user", "content": given}]
  if not given or not isinstance(given, list):
    if not shared:
      raise messages.error(
        where,
        "prompt",
        "missing, and `chosen` and `rejected` do not begin with the same"
        " message: give the prompt, or whole conversations.",
      )
    return list(shared)
  if given == shared or conversations.contains(shared, given):
    return list(shared)
  # The sides begin where the prompt ends, or leave out how it begins.
  begins = isinstance(first, dict) and first.get("role") == "assistant"
  if begins:
    return [*given, *shared]
  if shared and conversations.contains(given[-len(shared) :], shared):
    return list(given)
  raise messages.error(
    where,
    "prompt",
    f"is {messages.found(given)}, but `chosen` and `rejected` begin with"
    f" {messages.found(list(shared))}: give the messages that both share, or"
    " leave `prompt` out.",
  )

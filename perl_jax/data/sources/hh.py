"""hh-rlhf transcripts as preferences over the last reply.

A row is two whole transcripts, `chosen` and `rejected`, whose turns are marked
by a blank line and `Human:` or `Assistant:`. The turns they share become the
prompt, and what follows in each becomes the two replies. Irregular rows:

- parted_earlier: the transcripts differ before the last turn. The reply is then
  the rest of the transcript with its markers, which is what the rater read.
- merged_turns: one speaker has two turns in a row; in a prompt they become one
  message (chat templates expect speakers to alternate).
- empty_reply_dropped: a reply has no text. Dropped.
- equal_dropped: both replies are the same. Dropped.
- malformed_dropped: no turn markers, or no Human turn before the replies.
  Dropped.

A reply that has `Human:` inside its text (the model continued for both sides)
is kept unchanged, since raters saw it and it is a reason to reject a reply.
Many chosen replies are harmful too, so no reply is used as a reference.

The group of a row is its first Human turn, lower-cased and without punctuation.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from perl_jax.data import splits
from perl_jax.data.records import Message, Preference, Prompt

_MARKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_COUNTS = (
  "rows",
  "parted_earlier",
  "merged_turns",
  "empty_reply_dropped",
  "equal_dropped",
  "malformed_dropped",
)

Turn = tuple[str, str]


class Divided(NamedTuple):
  """Two transcripts as a prompt and two replies.

  Attributes:
    prompt: The turns that both share.
    chosen: What follows in the better one; may be empty.
    rejected: What follows in the other one; may be empty.
    parted_earlier: Whether a reply is more than one turn.
    merged_turns: Whether a message of the prompt is several turns.
  """

  prompt: tuple[Message, ...]
  chosen: str
  rejected: str
  parted_earlier: bool
  merged_turns: bool


def parse_transcript(text: str) -> list[Turn]:
  """Returns the `(speaker, text)` turns; [] if there is text before them."""
  before, *rest = _MARKER.split(text)
  if before.strip():
    return []
  return list(zip(rest[::2], rest[1::2], strict=True))


def preferences(
  rows: Sequence[Mapping[str, str]], name: str = "hh_rlhf"
) -> tuple[list[Preference], dict[str, int]]:
  """Turns pairs of transcripts into preferences.

  Args:
    rows: Upstream rows (`chosen`, `rejected`).
    name: First part of the ids; the rest is the number of the row.

  Returns:
    One preference per row that is not dropped, and the counts.

  Raises:
    ValueError: A row lacks one of the fields, or it is not text.
  """
  counts = Counter(dict.fromkeys(_COUNTS, 0))
  pairs = []
  for number, row in enumerate(rows):
    counts["rows"] += 1
    for field in ("chosen", "rejected"):
      if not isinstance(row.get(field), str):
        raise ValueError(
          f"{name}:{number}: the field {field!r} must be a transcript, but is"
          f" {row.get(field)!r:.60}."
        )
    found = divide(row["chosen"], row["rejected"])
    if found is None:
      counts["malformed_dropped"] += 1
      continue
    if not (found.chosen and found.rejected):
      counts["empty_reply_dropped"] += 1
      continue
    if found.chosen == found.rejected:
      counts["equal_dropped"] += 1
      continue
    counts["parted_earlier"] += found.parted_earlier
    counts["merged_turns"] += found.merged_turns
    pairs.append(
      Preference(
        id=f"{name}:{number}",
        group=splits.first_user_turn(found.prompt),
        prompt=found.prompt,
        chosen=found.chosen,
        rejected=found.rejected,
      )
    )
  return pairs, dict(counts)


def prompts(
  rows: Sequence[Mapping[str, str]], name: str = "hh_rlhf"
) -> tuple[list[Prompt], dict[str, int]]:
  """Turns pairs of transcripts into prompts without a reference.

  Arguments, counts and errors are those of `preferences`.
  """
  pairs, counts = preferences(rows, name)
  return [Prompt(p.id, p.group, p.prompt, None) for p in pairs], counts


def divide(chosen: str, rejected: str) -> Divided | None:
  """Divides two transcripts; None if there is no Human turn that both share."""
  left, right = parse_transcript(chosen), parse_transcript(rejected)
  shared = _shared_turns(left, right)
  if not shared:
    return None
  prompt = messages(left[:shared])
  return Divided(
    prompt,
    _reply(left[shared:]),
    _reply(right[shared:]),
    max(len(left), len(right)) > shared + 1,
    len(prompt) < shared,
  )


def _shared_turns(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> int:
  """Counts the turns up to the last shared Human turn before the replies."""
  shared = 0
  # At least one turn on each side is left to be the reply.
  for left, right in zip(chosen[:-1], rejected[:-1], strict=False):
    if left != right:
      break
    shared += 1
  while shared and chosen[shared - 1][0] != "Human":
    shared -= 1
  return shared


def _reply(turns: Sequence[Turn]) -> str:
  (_, first), *rest = turns
  later = "".join(f"\n\n{speaker}:{text}" for speaker, text in rest)
  return (first + later).strip()


def messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
  """Returns turns as messages, two of one speaker in a row as one."""
  found: list[Message] = []
  for speaker, text in turns:
    role, text = _ROLES[speaker], text.strip()
    if found and found[-1]["role"] == role:
      found[-1]["content"] += "\n\n" + text
    else:
      found.append({"role": role, "content": text})
  return tuple(found)

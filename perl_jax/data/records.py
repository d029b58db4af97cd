"""The rows that every data source yields, whatever their upstream format.

A source (TFDS builder, JSONL file, generator) turns its rows into one of four
records; everything after it (tokenisation, batching, judging) sees these alone.
Every record carries an `id` that names the row in error messages and a `group`:
rows of one group overlap in content and must stay on one side of a split.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

# {"role": "system" | "user" | "assistant" | "tool", "content": str}
Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A dialogue to imitate: the loss is on the assistant messages of `turns`.

  Attributes:
    id: Names the row in error messages.
    group: Key of the leak-free split.
    prompt: Messages that are given and carry no loss; may be empty.
    turns: Messages that follow; each assistant message is a target.
  """

  id: str
  group: str
  prompt: tuple[Message, ...]
  turns: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Preference:
  """Two responses to one prompt, of which a human preferred `chosen`."""

  id: str
  group: str
  prompt: tuple[Message, ...]
  chosen: str
  rejected: str


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A response with a thumbs-up (1.0) or thumbs-down (0.0)."""

  id: str
  group: str
  prompt: tuple[Message, ...]
  response: str
  label: float


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A context to respond to; `reference` is the human or the right response.

  `fields` is the row of a user's file as it stands there, for reward functions;
  empty for other sources.
  """

  id: str
  group: str
  prompt: tuple[Message, ...]
  reference: str | None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Record = Demonstration | Preference | Labelled | Prompt


@dataclasses.dataclass(frozen=True)
class Splits:
  """Training and validation rows of one source.

  Attributes:
    train: Rows to learn from.
    validation: Rows of groups that are not in `train`.
    counts: How many rows were read, mended, dropped or irregular, by kind.
  """

  train: Sequence[Record]
  validation: Sequence[Record]
  counts: dict[str, int]

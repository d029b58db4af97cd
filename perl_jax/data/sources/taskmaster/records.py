"""Taskmaster rows, in the upstream formats, as records.

There are two data sets: coffee orders (Taskmaster-4: dialogs, and agent turns
rated 0 or 1) and movie tickets (Taskmaster-3: agent turns rated 0 or 1).
`turns` turns a turn into a message and removes the differences between files;
this file makes records, groups and counts.

The group of a record is the first user turn of its conversation, lower-cased
and without punctuation, for dialogs and rated turns alike. A rated turn with no
user turn before it (six coffee rows with an empty context) has its own text as
its group.

Counts, one entry per kind, 0 when there was none:

- rows: upstream rows read.
- json_mended: annotations whose JSON had doubled quotes or a raw tab, which
  were repaired.
- dialogs_dropped: dialogs that could not be repaired, or had no agent turn.
- request_missing: API calls of dialogs without a request, taken as `{}`.
- turns_cut: turns after the last agent turn of a dialog, which have no target.
- repeated: rows equal to an earlier one, in context and generation (kept).
- conflicting: rated turns with an equal one of the other label (kept).
- empty_context, empty_response, json_as_text: rated turns (kept) without a
  context, with an empty text, with a JSON object for a text.
- greeting_added, id_not_in_context, quantity_moved, menu_left_out: coffee
  conversations that `turns` changed in these ways.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from perl_jax.data import splits
from perl_jax.data.records import Demonstration, Labelled, Message, Prompt
from perl_jax.data.sources.taskmaster.checks import require_dataset
from perl_jax.data.sources.taskmaster.turns import (
  coffee_messages,
  ticketing_messages,
)
from perl_jax.data.sources.taskmaster.utterances import dialog_turns

_MESSAGES = {
  "taskmaster_coffee": coffee_messages,
  "taskmaster_ticketing": ticketing_messages,
}
_DIALOG_COUNTS = (
  "rows",
  "json_mended",
  "dialogs_dropped",
  "request_missing",
  "turns_cut",
  "repeated",
)
_REWARD_COUNTS = (
  "rows",
  "repeated",
  "conflicting",
  "empty_context",
  "empty_response",
  "json_as_text",
)
_COFFEE_COUNTS = (
  "greeting_added",
  "id_not_in_context",
  "quantity_moved",
  "menu_left_out",
)


def dialog_demonstrations(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[Demonstration], dict[str, int]]:
  """Turns coffee dialogs into demonstrations: every agent turn is a target.

  Args:
    rows: Upstream dialogs (`conversation_id`, `utterances`, ...).

  Returns:
    One demonstration per dialog, and the counts. The greeting is the prompt;
    what follows the last agent turn is cut.

  Raises:
    ValueError: A row lacks a field; names the row and the field.
  """
  counts = Counter(dict.fromkeys((*_DIALOG_COUNTS, *_COFFEE_COUNTS), 0))
  demonstrations = []
  seen = set()
  for number, row in enumerate(rows):
    counts["rows"] += 1
    name, utterances = _fields(row, number, "conversation_id", "utterances")
    messages = _dialog_messages(utterances, name, number, counts)
    # The greeting alone: there is nothing to imitate.
    if len(messages) < 2:
      counts["dialogs_dropped"] += 1
      continue
    text = json.dumps(messages)
    counts["repeated"] += text in seen
    seen.add(text)
    group = splits.first_user_turn(messages)
    demonstrations.append(
      Demonstration(name, group, messages[:1], messages[1:])
    )
  return demonstrations, dict(counts)


def dialog_prompts(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[Prompt], dict[str, int]]:
  """Turns coffee dialogs into a prompt per agent turn, which is the reference.

  Arguments, counts and errors are those of `dialog_demonstrations`. The id of a
  prompt is `conversation#number of the message`.
  """
  demonstrations, counts = dialog_demonstrations(rows)
  prompts = []
  for dialog in demonstrations:
    messages = dialog.prompt + dialog.turns
    for number in range(len(dialog.prompt), len(messages)):
      if messages[number]["role"] == "assistant":
        prompts.append(
          Prompt(
            id=f"{dialog.id}#{number}",
            group=dialog.group,
            prompt=messages[:number],
            reference=messages[number]["content"],
          )
        )
  return prompts, counts


def reward_labelled(
  rows: Sequence[Mapping[str, Any]], dataset: str
) -> tuple[list[Labelled], dict[str, int]]:
  """Turns rated turns into labelled responses, in order, all of them.

  Args:
    rows: Upstream rows (`conversation_id`, `context`, `generation`, `reward`).
    dataset: "taskmaster_coffee" or "taskmaster_ticketing".

  Returns:
    One labelled response per row, and the counts.

  Raises:
    ValueError: A row lacks a field, its context or generation is not JSON of
      turns, or its reward is neither 0 nor 1; names the row and the field.
  """
  normalise = _MESSAGES[require_dataset(dataset)]
  coffee = _COFFEE_COUNTS if dataset == "taskmaster_coffee" else ()
  counts = Counter(dict.fromkeys((*_REWARD_COUNTS, *coffee), 0))
  labelled = []
  labels = defaultdict(Counter)
  for number, row in enumerate(rows):
    counts["rows"] += 1
    labelled.append(_rated_turn(row, number, normalise, counts))
    labels[row["context"], row["generation"]][labelled[-1].label] += 1
  for rated in labels.values():
    counts["repeated"] += rated.total() - 1
    counts["conflicting"] += rated.total() if len(rated) > 1 else 0
  return labelled, dict(counts)


def reward_prompts(
  rows: Sequence[Mapping[str, Any]], dataset: str
) -> tuple[list[Prompt], dict[str, int]]:
  """Turns rated turns into prompts; the reference is a response rated 1.

  Arguments, counts and errors are those of `reward_labelled`. Each row becomes
  a prompt, so prompts are split as labelled rows are; a row rated 0 has no
  reference.
  """
  labelled, counts = reward_labelled(rows, dataset)
  prompts = [
    Prompt(
      id=row.id,
      group=row.group,
      prompt=row.prompt,
      reference=row.response if row.label == 1.0 else None,
    )
    for row in labelled
  ]
  return prompts, counts


def _dialog_messages(
  utterances: Any, name: str, number: int, counts: Counter
) -> tuple[Message, ...]:
  """Returns messages up to the last agent turn; () if JSON is beyond repair."""
  try:
    turns = dialog_turns(utterances, counts)
    messages = coffee_messages(turns, counts)
  except (KeyError, TypeError, AttributeError) as error:
    raise _malformed(name, number, error) from error
  except ValueError:
    return ()
  kept = len(messages)
  while messages[kept - 1]["role"] != "assistant":
    kept -= 1
  counts["turns_cut"] += len(messages) - kept if kept > 1 else 0
  return tuple(messages[:kept])


def _rated_turn(
  row: Mapping[str, Any], number: int, normalise, counts: Counter
) -> Labelled:
  name, context, generation, reward = _fields(
    row, number, "conversation_id", "context", "generation", "reward"
  )
  if reward not in (0, 1):
    raise ValueError(
      f"Row {number} ({name}): the reward is {reward!r}, but must be 0 or 1."
    )
  turns = _json_turns(context, "context", list, name, number)
  turn = _json_turns(generation, "generation", dict, name, number)
  try:
    *prompt, response = normalise([*turns, turn], counts)
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise _malformed(name, number, error) from error
  if response["role"] != "assistant":
    raise ValueError(
      f"Row {number} ({name}): the generation is a turn of the"
      f" {turn['role']}, but must be one of the agent."
    )
  content = response["content"]
  counts["empty_context"] += not turns
  counts["empty_response"] += not content
  counts["json_as_text"] += "text" in turn and content.startswith("{")
  group = splits.first_user_turn(prompt) or splits.text_key(content)
  return Labelled(name, group, tuple(prompt), content, float(reward))


def _fields(row: Mapping[str, Any], number: int, *names: str) -> list[Any]:
  missing = [name for name in names if name not in row]
  if missing:
    raise ValueError(
      f"Row {number} has no field {missing[0]!r}: it has"
      f" {', '.join(sorted(row)) or 'none'}."
    )
  return [row[name] for name in names]


def _json_turns(
  text: str, field: str, kind: type, name: str, number: int
) -> Any:
  try:
    turns = json.loads(text)
  except (TypeError, json.JSONDecodeError) as error:
    raise ValueError(
      f"Row {number} ({name}): the field {field!r} is not JSON text: {error}."
    ) from error
  if not isinstance(turns, kind):
    raise ValueError(
      f"Row {number} ({name}): the field {field!r} must be JSON of a"
      f" {kind.__name__}, but is {text[:60]!r}."
    )
  return turns


def _malformed(name: str, number: int, error: Exception) -> ValueError:
  return ValueError(
    f"Row {number} ({name}): a turn is not in the upstream format:"
    f" {type(error).__name__}: {error}."
  )

"""Which keys of rows and messages may not be left out, and why.

A key that would change what a row means, or what is learned of it, is refused
by name, and so is a slip for one. Names are compared in lower case, with `_`
between their words.
"""

import difflib
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from perl_jax.data import records
from perl_jax.data.sources.jsonl import cells

# Keys of a message that chat templates render.
RENDERED = (
  "tool_calls",
  "tool_call_id",
  "name",
  "reasoning_content",
  "reasoning",
  "thinking",
)
# Keys of a message that say whether it is a target: 0 or false masks it.
WEIGHTS = (
  "weight", "train", "training", "trainable", "loss", "loss_weight",
  "loss_scale", "train_on_turn",
)  # fmt: skip
# Those of them that a column of rows is refused for: `loss` may be a figure.
_WEIGHTS_OF_ROWS = {*WEIGHTS} - {"trainable", "loss"}
# Columns with the system message of a row.
SYSTEM = ("system", "system_prompt", "system_message")
# Other names of it, in which a number or a Boolean is no message.
_SYSTEM_TOO = {
  "sys", "sys_prompt", "sysprompt", "sys_message", "system_instruction",
  "system_instructions", "systemprompt", "systemmessage",
}  # fmt: skip
OLD_TOOLS = "functions"
# Keys that a model should see, and that cannot be shown to it.
SEEN = (
  "audio", "audios", "chat_template", "context", "custom_system_prompt",
  "documents", "history", "image", "image_url", "images", "input_audio",
  "video", "videos",
)  # fmt: skip
# Other names of pictures, sounds and files.
_SEEN_TOO = {"img", "imgs", "pixel_values", "attachment", "attachments"}
_SEEN_TOO |= {"input_image", "input_images", "input_video"}
_SEEN_TOO |= {
  f"{what}_{how}"
  for what in ("image", "images", "img", "audio", "video")
  for how in ("path", "paths", "url", "urls", "file", "files", "bytes",
              "base64", "data")
}  # fmt: skip
# Columns with what may be a part of the question; of prompts the log has them.
_ASKED = {"contexts", "passage", "passages"}
# Columns with what was thought before the one response of a row.
THOUGHTS = ("reasoning_content", "thinking")
# Keys that would change what is learned, and that cannot be honoured.
_REFUSED = {
  *SEEN, *THOUGHTS, "function_calls", OLD_TOOLS, "loss_mask", "mask", "masked",
  "no_loss", "refusal", "sample_weight", "train_detail", "train_on",
  "training_detail",
}  # fmt: skip
# What to write instead of some of them.
_INSTEAD = {
  **dict.fromkeys(THOUGHTS, "The thoughts of an answer are a key of its message"
  " `reasoning_content`, or a column beside one response."),
  "function_calls": "Calls are `tool_calls` of a message.",
  OLD_TOOLS: "Tools are a column `tools` of the row.",
  **dict.fromkeys(("mask", "masked", "no_loss", "train_on", "loss_mask"),
  "`weight` 0 of a message masks it."),
  "custom_system_prompt": "A system message is a column `system`.",
}  # fmt: skip
# Keys that others may be slips for. "content" is as good as "context".
_SLIPS = {*RENDERED[:2], *WEIGHTS[:3], *SYSTEM, *_REFUSED, "tools"}
_SLIPS |= {records.VARIABLES}
_SLIPS -= {"context"}
# Keys that are read in one place, and refused in others.
_MEANT = {*_SLIPS, *_WEIGHTS_OF_ROWS}
# Words of a key that may say what is learned of a message.
_MASKING = re.compile(r"(^|_)(is|no|non|un)?(loss|train|mask|ignor)")
_WEIGHTS_AS_TEXT = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_BETWEEN = re.compile(r"[\s_-]+")

# Makes an error of the name of a field and what is wrong with it.
Complain = Callable[[str, str], ValueError]


@functools.lru_cache(maxsize=1 << 14)
def plain_name(key: str) -> str:
  """Returns a name in lower case with `_` between its words."""
  return _BETWEEN.sub("_", _CAMEL.sub("_", key.strip())).lower()


def is_absent(value: Any) -> bool:
  """Whether a value is what writers of mixed tables leave: null or empty.

  A list or an object of nulls is, too, as `{"bytes": null, "path": null}` is
  for an image that is not there.
  """
  return value in ("", {}, []) or _is_null(value)


def _is_null(value: Any) -> bool:
  """Whether a value is null, or holds nulls alone."""
  if isinstance(value, (list, dict)) and value:
    inner = value.values() if isinstance(value, dict) else value
    return all(map(_is_null, inner))
  return cells.is_missing(value)


def weight_of(value: Any) -> int | None:
  """Returns the weight of a message as 0 or 1; None for any other."""
  if isinstance(value, str):
    return _WEIGHTS_AS_TEXT.get(value.strip().lower())
  if not isinstance(value, (bool, int, float)) or value not in (0, 1):
    return None
  return int(value)


def system_columns(
  fields: Mapping[str, Any], others: Collection[str]
) -> dict[str, str]:
  """Returns our names of columns with a system message under other names.

  Args:
    fields: A row.
    others: Columns of it that are something else.
  """
  found: dict[str, str] = {}
  for column, value in fields.items():
    name = _system_name(column)
    if name is None or column in (name, *others) or not _says_much(value):
      continue
    if cells.is_missing(fields.get(name)) and name not in found.values():
      found[column] = name
  return found


@functools.lru_cache(maxsize=1 << 14)
def _system_name(column: str) -> str | None:
  """Returns our name of a column with the system message, None of others."""
  plain = plain_name(column)
  return (
    "system" if plain in _SYSTEM_TOO else plain if plain in SYSTEM else None
  )


def is_seen(key: str, value: Any) -> bool:
  """Whether a key has what a model should see, and cannot be shown."""
  plain = plain_name(key)
  return plain in SEEN or (plain in _SEEN_TOO and _says_much(value))


def check_ignored(key: str, value: Any, complain: Complain) -> None:
  """Refuses a key that may not be left out.

  Raises:
    ValueError: It would change the meaning, or is a slip for one that would.
  """
  if is_absent(value):
    return
  plain, way_out = plain_name(key), _way_out(key)
  if (
    plain in _REFUSED
    or key in ("weight", "tools")
    or is_seen(key, value)
    or (plain in _ASKED and _says_much(value))
  ):
    instead = f" {_INSTEAD[plain]}" if plain in _INSTEAD else ""
    raise complain(
      key,
      f"changes what the row means and cannot be honoured.{instead} {way_out}",
    )
  if key in _MEANT:
    of_messages = key in (*RENDERED, *WEIGHTS)
    place = "a key of messages" if of_messages else "a column of the row"
    raise complain(key, f"is read as {place}, and not here. {way_out}")
  near = plain if plain in _MEANT else None
  if near is None and _says_much(value):
    near = _system_name(key)
  if near is None and _says_much(value):
    near = _slip_for(plain)
  if near:
    raise complain(
      key, f"is not a key that is read. Is {near!r} meant? {way_out}"
    )


def check_mask(key: str, value: Any, complain: Complain) -> None:
  """Refuses a key of a message that may say whether it is learned.

  Raises:
    ValueError: It has a word such as `loss` or `train` in it, and its value is
      a number, a Boolean or the text of one.
  """
  numbers = isinstance(value, (bool, int, float)) or (
    isinstance(value, str) and weight_of(value) is not None
  )
  if numbers and _MASKING.search(plain_name(key)):
    raise complain(
      key,
      "may say whether the message is learned, and is not a key that is read."
      f" `weight` 0 of a message masks it. {_way_out(key)}",
    )


def _way_out(key: str) -> str:
  return (
    "Remove it, or leave it out on purpose with"
    f" --config.data.ignore=\"('{key}',)\"."
  )


def _says_much(value: Any) -> bool:
  """Whether a value may be a message or a picture, and no figure or flag."""
  return isinstance(value, (str, bytes, list, dict)) and not is_absent(value)


@functools.cache
def _slip_for(plain: str) -> str | None:
  """Returns the key that another one is a slip for, or None.

  It begins with the same letter, and one letter is wrong, or two of a long
  name.
  """
  near = difflib.get_close_matches(plain, _SLIPS, n=3, cutoff=0.8)
  for name in near:
    most = 1 if len(name) < 8 else 2
    if name[:1] == plain[:1] and _distance(name, plain) <= most:
      return name
  return None


def _distance(left: str, right: str) -> int:
  """Returns how many letters are more, missing, others or exchanged."""
  before, last = [], list(range(len(right) + 1))
  for i, a in enumerate(left, 1):
    row = [i]
    for j, b in enumerate(right, 1):
      cost = min(row[-1] + 1, last[j] + 1, last[j - 1] + (a != b))
      if i > 1 and j > 1 and (a, left[i - 2]) == (right[j - 2], b):
        cost = min(cost, before[j - 2] + 1)
      row.append(cost)
    before, last = last, row
  return last[-1]

"""Shortens prompts that are too long, by whole turns or by characters."""

from collections.abc import Callable

from perl_jax.data import records
from perl_jax.data.records import Message

# Encodes a prompt; raises ValueError for messages that the template refuses.
PromptIds = Callable[[list[Message]], list[int]]


def drop_turns(
  prompt_ids: PromptIds, ids: list[int], messages: list[Message], limit: int
) -> tuple[list[int], list[Message], int]:
  """Leaves out the fewest oldest messages so that the others fit.

  If no choice fits, all messages but the last are left out.

  Args:
    prompt_ids: Encodes messages as token ids.
    ids: Token ids of `messages`.
    messages: The prompt; a system message at its beginning is kept, and so are
      the tools and the variables of the template.
    limit: Most tokens.

  Returns:
    Token ids, the messages that are kept, and the number of those left out.
  """
  keep = int(messages[0]["role"] == "system" and len(messages) > 1)
  shorter, dropped = messages, 0
  for start in range(keep + 1, len(messages)):
    candidate = messages[:keep] + messages[start:]
    if messages[start]["role"] == "tool":
      continue  # What it answers would be gone.
    candidate[0] = {**candidate[0], **records.around(messages[0])}
    try:
      ids = prompt_ids(candidate)
    except ValueError:  # For example, a user must come first.
      continue
    shorter, dropped = candidate, start - keep
    if len(ids) <= limit:
      break
  return ids, shorter, dropped


def cut(
  prompt_ids: PromptIds, messages: list[Message], limit: int
) -> list[int] | None:
  """Keeps the longest end of the last message that fits, by bisection.

  Returns:
    At most `limit` token ids, or None if not even one character fits.
  """
  content = messages[-1]["content"]

  def ids_with(characters: int) -> list[int]:
    kept = {**messages[-1], "content": content[len(content) - characters :]}
    return prompt_ids([*messages[:-1], kept])

  fits, too_long = 0, len(content)
  while too_long - fits > 1:
    middle = (fits + too_long) // 2
    if len(ids_with(middle)) <= limit:
      fits = middle
    else:
      too_long = middle
  # Without any text of the last message there is nothing to respond to.
  return ids_with(fits) if fits else None

"""Prompts that are too long: which turns to leave out, what to cut."""

from collections.abc import Callable

from perl_jax.data.records import Message

# Tokens of a prompt; raises ValueError for messages that the template refuses.
PromptIds = Callable[[list[Message]], list[int]]


def drop_turns(
  prompt_ids: PromptIds, ids: list[int], messages: list[Message], limit: int
) -> tuple[list[int], list[Message], int]:
  """Leaves out as few of the oldest messages as fit, or all but the last.

  Args:
    prompt_ids: Encodes messages.
    ids: Tokens of `messages`.
    messages: The prompt; a system message at its beginning is kept.
    limit: Most tokens.

  Returns:
    Tokens, the messages that are left, and how many are not.
  """
  keep = int(messages[0]["role"] == "system" and len(messages) > 1)
  shorter, dropped = messages, 0
  for start in range(keep + 1, len(messages)):
    candidate = messages[:keep] + messages[start:]
    try:
      ids = prompt_ids(candidate)
    except ValueError:  # The template wants a user first, for example.
      continue
    shorter, dropped = candidate, start - keep
    if len(ids) <= limit:
      break
  return ids, shorter, dropped


def cut(
  prompt_ids: PromptIds, messages: list[Message], limit: int
) -> list[int] | None:
  """Keeps the longest end of the last content that fits, by bisection."""
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
  # Nothing left of the last message would be a prompt about nothing.
  return ids_with(fits) if fits else None

"""The end of a conversation that a reward model takes for padding.

`...ForSequenceClassification` scores at the last token that is not the pad
token of its config.json. Where that is the end of a turn (pad_token = eos_token
on a template that writes nothing behind it), it scores the token before.
"""

from perl_jax.data.text.tokenization import Tokenization


def strip(ids: list[int], unread: tuple[int, str] | None) -> list[int]:
  """Returns tokens without those at their end that are padding.

  Args:
    ids: Tokens of a response and what follows it.
    unread: `Tokenization.unread`.
  """
  end = len(ids)
  while unread and end and ids[end - 1] == unread[0]:
    end -= 1
  return ids[:end]


def ending(
  tokenization: Tokenization, unread: tuple[int, str] | None
) -> tuple[bool, tuple[int, ...]]:
  """Returns how a conversation that is scored ends.

  Args:
    tokenization: The tokenizer and its chat template.
    unread: See `strip`.

  Returns:
    (whether the stop token of the response is read, the tokens after it).
  """
  stop = list(tokenization.stop_ids[:1]) if tokenization.ends_turn else []
  found = strip([*stop, *tokenization.closing], unread)
  keeps_stop = bool(stop) and bool(found)
  return keeps_stop, tuple(found[1:] if keeps_stop else found)

"""What all kinds of batches share: encoding a record, lengths and padding."""

from collections.abc import Sequence

import numpy as np

from perl_jax.data import records
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import unread
from perl_jax.data.text.rendering import NotRenderedError
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.data.unusable import SHOWN, Unusable

LONG = (*tokenization_lib.LONG, "drop")
# What a row is made of: a name, tokens, and whether they are learned.
Part = tuple[str, Sequence[int], bool]
# Why rows are left out that have the right fields.
TOO_LONG = "which are too long"
REFUSED = "which the tokenizer or its chat template refuses"


def held(tokens: Sequence[int]) -> np.ndarray:
  """Returns tokens as rows hold them, int32: 4 bytes each instead of 36."""
  return np.array(tokens, np.int32)


def no_cuts() -> dict[str, int]:
  """Returns zero counts of everything that shortening may remove."""
  names = ("truncated_rows", "dropped_turns", "cut_tokens", "too_long_dropped")
  return dict.fromkeys(names, 0)


def encode_row(
  row: records.Record,
  responses: Sequence[records.Reply],
  tokenization: Tokenization,
  limit: int,
  long: str,
  counts: dict[str, int],
  closed: bool = False,
  *,
  field: str = "max_len",
  bad: Unusable | None = None,
) -> tuple[list[int], list[list[int]]] | None:
  """Encodes the prompt of a record and responses to it.

  The prompt is shortened so that the longest response fits after it.

  Args:
    row: The record with the prompt.
    responses: Texts of the responses; may be empty.
    tokenization: The tokenizer and its chat template.
    limit: Most tokens of prompt and response together.
    long: How the prompt of a longer row is shortened: one of `LONG`; see
      `Tokenization.encode_prompt`. A row that still does not fit is left out,
      except with "error". "drop" is another name of "cut".
    counts: Counts as `no_cuts` returns them; updated in place.
    closed: Whether prompt and response are a conversation that the response
      ends, as the template writes it; see `Tokenization.encode_response`.
    field: The field of `config.data` with the limit, for errors.
    bad: Takes the rows that are left out. If None, a row that is not too long
      but cannot be encoded is an error.

  Returns:
    Tokens of the prompt and of each response, or None for a row left out.

  Raises:
    NotRenderedError: The chat template leaves out what the row has.
    TooLongError: The row does not fit, and `long` is "error"; names the row.
    ValueError: The row cannot be encoded; names the row.
  """
  if long not in LONG:
    raise ValueError(f"long={long!r} is none of {', '.join(LONG)}.")
  shown = bad is None or bad.counts.get(TOO_LONG, 0) < SHOWN
  try:
    return _encoded(
      row, responses, tokenization, (limit, field), long, counts, closed, shown
    )
  except NotRenderedError as error:
    raise named(error, row.id) from error
  except tokenization_lib.TooLongError as error:
    if long == "error":
      raise named(error, row.id) from error
    counts["too_long_dropped"] += 1
    reason, message = TOO_LONG, str(error)
  except ValueError as error:
    if bad is None:
      raise named(error, row.id) from error
    reason, message = REFUSED, str(error)
  if bad is not None:
    bad.add(f"{row.id}: {message}", reason)
  return None


def _encoded(
  row: records.Record,
  responses: Sequence[records.Reply],
  tokenization: Tokenization,
  limited: tuple[int, str],
  long: str,
  counts: dict[str, int],
  closed: bool,
  shown: bool,
) -> tuple[list[int], list[list[int]]]:
  """Encodes one row; see `encode_row`.

  `limited` is the limit and its field; `shown` says whether the error is.
  """
  limit, field = limited
  encoded = [
    tokenization.encode_response(row.prompt, r, closed) for r in responses
  ]
  if closed:
    encoded = [unread.strip(r, tokenization.unread) for r in encoded]
  longest = max(map(len, encoded), default=0)
  how = "cut" if long == "drop" else long
  try:
    prompt, flags = tokenization.encode_prompt(
      row.prompt, max(limit - longest, 1), how, closed
    )
  except tokenization_lib.TooLongError as error:
    cut = how != "cut" and shown and longest < limit
    cut = cut and _fits(row, tokenization, limit - longest, closed)
    raise _too_long(error, longest, limit, field, how, cut) from error
  if longest >= limit:
    error = tokenization_lib.TooLongError("", len(prompt), len(prompt))
    raise _too_long(error, longest, limit, field, how, False)
  counts["truncated_rows"] += any(flags.values())
  for key, value in flags.items():
    counts[key] += value
  return prompt, encoded


def _fits(
  row: records.Record, tokenization: Tokenization, limit: int, closed: bool
) -> bool:
  """Whether the prompt of a row has room if its last message is shortened."""
  try:
    tokenization.encode_prompt(row.prompt, limit, "cut", closed)
  except tokenization_lib.TooLongError:
    return False
  return True


def _too_long(
  error: tokenization_lib.TooLongError,
  longest: int,
  limit: int,
  field: str,
  how: str,
  cut: bool,
) -> tokenization_lib.TooLongError:
  """Returns an error that says whose length is too much, and for which field.

  Args:
    error: About the prompt.
    longest: Tokens of the longest response; 0 without one.
    limit: Value of the field.
    field: Field of `config.data` that is the limit.
    how: How the prompt was shortened.
    cut: Whether the row fits if its prompt is cut.
  """
  prompt = f"{error.length} tokens"
  if error.least < error.length:
    prompt += f" ({error.least} with data.long={how!r})"
  if longest:
    text = (
      f"the response has {longest} of the {limit} tokens of data.{field}, which"
      f" leaves {max(limit - longest, 0)} for a prompt of {prompt}"
    )
  else:
    text = f"the prompt has {prompt}, and data.{field} is {limit}"
  shorter = ", or shorten prompts with data.long='cut'" if cut else ""
  needed = longest + error.length
  return tokenization_lib.TooLongError(
    f"{text}: raise data.{field} to {needed} to keep all of it{shorter}.",
    needed,
    longest + error.least,
  )


def named(error: ValueError, row_id: str) -> ValueError:
  """Returns an error with the id of its row before the message."""
  message = f"{row_id}: {error}"
  if isinstance(error, tokenization_lib.TooLongError):
    return tokenization_lib.TooLongError(message, error.length, error.least)
  kind = ValueError
  if isinstance(error, NotRenderedError):
    kind = NotRenderedError
  return kind(message)


def bucket_for(length: int, buckets: Sequence[int]) -> int:
  """Returns the smallest of the buckets that holds `length` tokens.

  Raises:
    ValueError: None of them does.
  """
  fitting = [bucket for bucket in buckets if bucket >= length]
  if not fitting:
    raise ValueError(
      f"A row of {length} tokens fits in none of the buckets {list(buckets)}."
    )
  return min(fitting)


def padded_size(rows: Sequence, batch_size: int | None) -> int:
  """Returns the number of rows of the padded batch; None adds no rows.

  Raises:
    ValueError: There are more rows than the batch holds.
  """
  if batch_size is None:
    return len(rows)
  if len(rows) > batch_size:
    raise ValueError(f"{len(rows)} rows do not fit in a batch of {batch_size}.")
  return batch_size


def pad(
  sequences: Sequence[Sequence[int]],
  length: int,
  batch_size: int,
  pad_id: int,
  left: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Pads sequences to `length` tokens, and their number to `batch_size`.

  Rows without a sequence are all padding and have the length 1, not 0, so that
  code may divide by a length or read the last token.

  Args:
    sequences: Token ids, 1 to `length` of each.
    length: T.
    batch_size: B.
    pad_id: Token that pads.
    left: Whether padding precedes the tokens instead of following them.

  Returns:
    tokens `[B, T]` int32, and lengths in tokens, `[B]` int32.

  Raises:
    ValueError: A sequence is empty or too long.
  """
  tokens = np.full((batch_size, length), pad_id, np.int32)
  lengths = np.ones(batch_size, np.int32)
  for i, sequence in enumerate(sequences):
    if not 0 < len(sequence) <= length:
      raise ValueError(
        f"A row has {len(sequence)} tokens; the batch takes 1 to {length}."
      )
    start = length - len(sequence) if left else 0
    tokens[i, start : start + len(sequence)] = sequence
    lengths[i] = len(sequence)
  return tokens, lengths


def validity(rows: Sequence, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns valid `[B]` bool and index `[B]` int32; padding: False and -1."""
  index = np.full(batch_size, -1, np.int32)
  index[: len(rows)] = [row.index for row in rows]
  return np.arange(batch_size) < len(rows), index

"""Records as rows of tokens, shortened where they are too long."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from perl_jax.data import records
from perl_jax.data import text as text_lib
from perl_jax.data.template import UnevenError
from perl_jax.data.text import Tokenization

LONG = (*text_lib.LONG, "drop")


class EncodedPreference(NamedTuple):
  """Tokens of one preference; both sequences begin with the same prompt."""

  chosen: list[int]
  rejected: list[int]
  prompt_length: int
  index: int

  @property
  def length(self) -> int:
    """Tokens of the longer sequence."""
    return max(len(self.chosen), len(self.rejected))

  @property
  def response_length(self) -> int:
    """Number of tokens of the longer response."""
    return self.length - self.prompt_length


class EncodedLabelled(NamedTuple):
  """Tokens of one labelled response, after its prompt."""

  tokens: list[int]
  prompt_length: int
  label: float
  index: int

  @property
  def length(self) -> int:
    """Number of tokens."""
    return len(self.tokens)

  @property
  def response_length(self) -> int:
    """Number of tokens after the prompt."""
    return self.length - self.prompt_length


class EncodedPrompt(NamedTuple):
  """Tokens of one prompt."""

  tokens: list[int]
  index: int

  @property
  def length(self) -> int:
    """Number of tokens."""
    return len(self.tokens)


def encode_demonstrations(
  rows: Iterable[records.Demonstration], tokenization: Tokenization
) -> list[tuple[list[int], list[bool]]]:
  """Tokens and target mask of every dialogue, for `packing.pack_dialogues`.

  Where the template writes a past assistant turn differently from one that is
  being written (Qwen3), each assistant turn becomes a sequence of its own,
  behind the prompt that a policy would be given for it.

  Raises:
    ValueError: Names the row that cannot be encoded.
  """
  encoded = []
  for row in rows:
    try:
      encoded.append(tokenization.encode_dialog(row.prompt, row.turns))
    except UnevenError:
      encoded += _encode_turns(row, tokenization)
    except ValueError as error:
      raise ValueError(f"{row.id}: {error}") from error
  return encoded


def _encode_turns(
  row: records.Demonstration, tokenization: Tokenization
) -> Iterator[tuple[list[int], list[bool]]]:
  """Tokens and target mask of each assistant turn, one by one."""
  messages = [*row.prompt, *row.turns]
  for i in range(len(row.prompt), len(messages)):
    if messages[i]["role"] != "assistant":
      continue
    try:
      prompt, _ = tokenization.encode_prompt(messages[:i])
      content = messages[i]["content"]
      response = tokenization.encode_response(messages[:i], content)
    except ValueError as error:
      raise ValueError(f"{row.id}: {error}") from error
    yield prompt + response, [False] * len(prompt) + [True] * len(response)


def encode_preferences(
  rows: Iterable[records.Preference],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
) -> tuple[list[EncodedPreference], dict[str, int]]:
  """Tokens of prompt + response, for both responses of every row.

  Args:
    rows: The records.
    tokenization: The tokenizer.
    limit: Most tokens of a sequence: the largest bucket.
    long: How the prompt of a longer row is shortened (`encode_prompt`); the
      same for both responses. Responses are never shortened. With "drop" the
      prompt is cut, and a row that still does not fit is left out.

  Returns:
    The rows, and how much was left out: {"truncated_rows", "dropped_turns",
    "cut_tokens", "too_long_dropped"}.

  Raises:
    ValueError: Names the row that does not fit.
  """
  encoded, counts = [], _no_cuts()
  for index, row in enumerate(rows):
    found = _encode_row(
      row, (row.chosen, row.rejected), tokenization, limit, long, counts
    )
    if found is None:
      continue
    prompt, (chosen, rejected) = found
    encoded.append(
      EncodedPreference(prompt + chosen, prompt + rejected, len(prompt), index)
    )
  return encoded, counts


def encode_labelled(
  rows: Iterable[records.Labelled],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
) -> tuple[list[EncodedLabelled], dict[str, int]]:
  """Tokens of prompt + response; see `encode_preferences`."""
  encoded, counts = [], _no_cuts()
  for index, row in enumerate(rows):
    found = _encode_row(row, (row.response,), tokenization, limit, long, counts)
    if found is None:
      continue
    prompt, (response,) = found
    encoded.append(
      EncodedLabelled(prompt + response, len(prompt), float(row.label), index)
    )
  return encoded, counts


def encode_prompts(
  rows: Iterable[records.Prompt],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
) -> tuple[list[EncodedPrompt], dict[str, int]]:
  """Tokens of the prompts; see `encode_preferences`."""
  encoded, counts = [], _no_cuts()
  for index, row in enumerate(rows):
    found = _encode_row(row, (), tokenization, limit, long, counts)
    if found is not None:
      encoded.append(EncodedPrompt(found[0], index))
  return encoded, counts


def _no_cuts() -> dict[str, int]:
  names = ("truncated_rows", "dropped_turns", "cut_tokens", "too_long_dropped")
  return dict.fromkeys(names, 0)


def _encode_row(
  row: records.Preference | records.Labelled | records.Prompt,
  responses: Sequence[str],
  tokenization: Tokenization,
  limit: int,
  long: str,
  counts: dict[str, int],
) -> tuple[list[int], list[list[int]]] | None:
  """Prompt, shortened so that every response fits after it, and responses.

  None for a row that is left out.
  """
  if long not in LONG:
    raise ValueError(f"long={long!r} is none of {', '.join(LONG)}.")
  try:
    encoded = [tokenization.encode_response(row.prompt, r) for r in responses]
    longest = max(map(len, encoded), default=0)
    if longest >= limit:
      raise text_lib.TooLongError(
        f"A response has {longest} tokens, which leaves nothing for the prompt "
        f"within the limit of {limit}. Raise the limit, or set long to 'drop' "
        "to leave such rows out; responses are never shortened."
      )
    prompt, flags = tokenization.encode_prompt(
      row.prompt, limit - longest, "cut" if long == "drop" else long
    )
  except ValueError as error:
    if long == "drop" and isinstance(error, text_lib.TooLongError):
      counts["too_long_dropped"] += 1
      return None
    raise ValueError(f"{row.id}: {error}") from error
  counts["truncated_rows"] += any(flags.values())
  for key, value in flags.items():
    counts[key] += value
  return prompt, encoded

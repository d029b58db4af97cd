"""Labelled responses: a prompt, a response and a binary label."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from perl_jax.data import records
from perl_jax.data.batches import common
from perl_jax.data.text.tokenization import Tokenization
from perl_jax.data.unusable import Unusable


class EncodedLabelled(NamedTuple):
  """Tokens of one labelled response, after its prompt."""

  tokens: np.ndarray
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

  @property
  def prompt(self) -> np.ndarray:
    """The tokens before the response."""
    return self.tokens[: self.prompt_length]

  @property
  def responses(self) -> tuple[np.ndarray]:
    """The response, alone."""
    return (self.tokens[self.prompt_length :],)

  @property
  def parts(self) -> list[common.Part]:
    """The prompt and the response, with its label."""
    (response,) = self.responses
    name = f"response, label {self.label:g}"
    return [("prompt", self.prompt, False), (name, response, True)]


def encode_labelled(
  rows: Iterable[records.Labelled],
  tokenization: Tokenization,
  limit: int,
  long: str = "turns",
  closed: bool = False,
  bad: Unusable | None = None,
) -> tuple[list[EncodedLabelled], dict[str, int]]:
  """Encodes prompt and response of every row; see `encode_preferences`."""
  encoded, counts = [], common.no_cuts()
  for index, row in enumerate(rows):
    found = common.encode_row(
      row,
      (row.response,),
      tokenization,
      limit,
      long,
      counts,
      closed,
      bad=bad,
    )
    if found is None:
      continue
    prompt, (response,) = found
    tokens = common.held(prompt + response)
    encoded.append(
      EncodedLabelled(tokens, len(prompt), float(row.label), index)
    )
  return encoded, counts

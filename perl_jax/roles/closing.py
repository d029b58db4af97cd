"""What a chat template writes after a response, for a reward model to read.

`apply_chat_template` ends a conversation with the stop token of its last turn
and often more, such as a line break. A reward model that was trained on whole
conversations scores at the last of these tokens, and a sampled response ends
with its stop token, or with none if it was cut: the rest is put behind it.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Closed(NamedTuple):
  """Responses as a reward model reads them, with room for a closing.

  Attributes:
    tokens: Responses and what follows them, `[..., T + K]`, int32.
    mask: Which tokens are read, `[..., T + K]`, bool.
    response_mask: Which of them are the response, `[..., T + K]`, bool.
  """

  tokens: jax.Array
  mask: jax.Array
  response_mask: jax.Array


@dataclasses.dataclass(frozen=True)
class Closing:
  """The tokens that follow a response where a conversation ends with it.

  A response that was cut at the maximum length is closed like one that has
  stopped, as a template would write it: in the middle of a turn a reward model
  has never been trained to score, and what it says there may be better than all
  that it says of whole turns.

  Attributes:
    tokens: Ids of the tokens after the stop token.
    stop_ids: Ids of the tokens that end a response, the template's own first.
    keeps_stop: Whether the template writes a stop token before the others; it
      then ends a response that was cut too, and otherwise is taken off one that
      has stopped.
  """

  tokens: tuple[int, ...]
  stop_ids: tuple[int, ...]
  keeps_stop: bool = True

  @property
  def longest(self) -> int:
    """Most tokens that are put behind a response."""
    return len(self.tokens) + self.keeps_stop

  @property
  def room(self) -> int:
    """`K`, columns for the tokens: an even number, as cuDNN's kernel needs."""
    return self.longest + self.longest % 2

  def append(self, responses: jax.Array, mask: jax.Array) -> Closed:
    """Responses with the tokens behind them; padding rows stay as they are.

    Args:
      responses: Sampled tokens, `[..., T]`, int32.
      mask: Which of them are the response, `[..., T]`, bool: those before some
        column.
    """
    length = jnp.sum(mask, axis=-1, keepdims=True)
    last = jnp.take_along_axis(responses, jnp.maximum(length - 1, 0), axis=-1)
    stopped = (length > 0) & jnp.isin(last, jnp.array(self.stop_ids))
    kept = length if self.keeps_stop else length - stopped
    place = jnp.arange(responses.shape[-1] + self.room) - kept
    wide = [(0, 0)] * (responses.ndim - 1) + [(0, self.room)]
    tokens = jnp.pad(responses, wide)
    behind, skipped = self.tokens, jnp.zeros_like(stopped)
    if self.keeps_stop:
      # One that has stopped has the first of these already.
      behind, skipped = (self.stop_ids[0], *self.tokens), stopped
    is_closing = (length > 0) & (place >= 0)
    is_closing &= place < self.longest - skipped
    if self.longest:
      closing = jnp.array(behind, responses.dtype)
      at = jnp.clip(place + skipped, 0, self.longest - 1)
      tokens = jnp.where(is_closing, closing[at], tokens)
    return Closed(tokens, (place < 0) | is_closing, place < 0)


def closed(
  closing: Closing | None, responses: jax.Array, mask: jax.Array
) -> Closed:
  """`closing.append`, or the responses alone where there is no closing."""
  if closing is None:
    return Closed(responses, mask, mask)
  return closing.append(responses, mask)

"""Log-probabilities of given tokens, without an array of size [B, T, V].

The head's logits are the largest array of a training step by far. They are made
here for a few time steps or a piece of the vocabulary at once, reduced to one
number a token, and computed again in the backward pass.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp

from perl_jax.objectives import vocab_chunks

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")


class TokenScores(NamedTuple):
  """Log-probability of given tokens, and more about their distributions.

  Attributes:
    logprobs: log pi(target), in nats, `[B, T]`, float32.
    entropy: Entropy of pi, in nats, `[B, T]`, float32, or None.
    correct: Whether the target has the largest logit (the first of equals),
      `[B, T]`, bool, or None.
  """

  logprobs: jax.Array
  entropy: jax.Array | None
  correct: jax.Array | None


def head_logits(
  hidden: jax.Array,
  head_kernel: jax.Array,
  *,
  temperature: float = 1.0,
  softcap: float | None = None,
) -> jax.Array:
  """Logits of the distribution that is sampled and scored.

  z = c tanh(h W / c) / temperature, or h W / temperature without softcap.

  Args:
    hidden: Final hidden states, `[..., D]`.
    head_kernel: Output projection W, `[D, V]`.
    temperature: Divides the (capped) logits, > 0.
    softcap: The bound c that tanh puts on the logits, > 0, or None.

  Returns:
    Logits, `[..., V]`, float32, accumulated in float32 from any input dtype.

  Raises:
    ValueError: If temperature or softcap is not positive.

  Reference: the soft-cap is that of Gemma 2, arXiv:2408.00118, section 2.
  """
  if temperature <= 0:
    raise ValueError(
      f"temperature must be > 0, got {temperature}; score greedy samples with "
      "the temperature that the training used"
    )
  if softcap is not None and softcap <= 0:
    raise ValueError(f"softcap must be > 0 or None, got {softcap}")
  logits = jnp.einsum(
    "...d,dv->...v", hidden, head_kernel, preferred_element_type=jnp.float32
  ).astype(jnp.float32)
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  return logits / temperature


def token_logprobs(
  hidden: jax.Array,
  head_kernel: jax.Array,
  targets: jax.Array,
  *,
  temperature: float = 1.0,
  softcap: float | None = None,
  chunk_size: int = 512,
  vocab_chunk: int | None = None,
  vocab_shards: int = 1,
  entropy: bool = False,
  correct: bool = False,
) -> TokenScores:
  """Log-probability of each target token.

  logprobs[b, t] = z[targets[b, t]] - log sum_v exp(z[v]), z = head_logits(...)

  There is no shift inside: `hidden[:, t]` must be the state that predicts
  `targets[:, t]`. The head multiplies in the states' dtype; over time chunks
  its gradient is summed in its own, so a trained one should be float32.

  Chunks of time or of the vocabulary? On one device the former do less. Where
  the head is spread over devices they gather all of it, the latter a piece.

  Args:
    hidden: Final hidden states, `[B, T, D]`.
    head_kernel: Output projection, `[D, V]`.
    targets: Token ids in [0, V), `[B, T]`, integer.
    temperature: Divides the logits, > 0.
    softcap: Bound on the logits, > 0, or None.
    chunk_size: Tokens of the batch whose logits exist at once. At least one
      time step is taken, so the largest array is `[max(B, chunk_size), V]`.
    vocab_chunk: Most columns of the head whose logits exist at once, so that
      the largest array is `[B, T, vocab_chunk]`; it replaces `chunk_size`.
    vocab_shards: Number of devices that V is split over; see `vocab_chunks`.
    entropy: Whether to compute the entropy.
    correct: Whether to compare the target with the largest logit.

  Returns:
    `TokenScores`, not reduced. A target outside [0, V) gets NaN.

  Raises:
    ValueError: If temperature, softcap or a chunk's size is not positive.
    AssertionError: If shapes do not fit or targets are not integers.
  """
  chex.assert_rank([hidden, head_kernel, targets], [3, 2, 2])
  chex.assert_equal_shape_prefix([hidden, targets], 2)
  chex.assert_axis_dimension(hidden, 2, head_kernel.shape[0])
  chex.assert_type(targets, int)
  if vocab_chunk is not None:
    # Each piece adds to the gradient of the states: in float32.
    wide = hidden.astype(jnp.float32)

    def chunk_logits(kernel: jax.Array) -> jax.Array:
      states = wide.astype(hidden.dtype)
      return head_logits(
        states, kernel, temperature=temperature, softcap=softcap
      )

    return TokenScores(
      *vocab_chunks.chunked_scores(
        chunk_logits,
        head_kernel.astype(hidden.dtype),
        targets,
        vocab_chunk=vocab_chunk,
        shards=vocab_shards,
        entropy=entropy,
        correct=correct,
      )
    )

  def score(chunk: tuple[jax.Array, jax.Array]) -> TokenScores:
    # Cast in here: what chunks share gets its gradient summed in its dtype.
    kernel = head_kernel.astype(hidden.dtype)
    logits = head_logits(
      chunk[0], kernel, temperature=temperature, softcap=softcap
    )
    return _score(logits, chunk[1], entropy=entropy, correct=correct)

  return map_time_chunks(score, (hidden, targets), chunk_size=chunk_size)


def next_token_loss(logprobs: jax.Array) -> jax.Array:
  """Cross-entropy of the target tokens.

  loss_t = -log pi(target_t)

  Args:
    logprobs: From `token_logprobs`, `[B, T]`, float32.

  Returns:
    Loss in nats per token, `[B, T]`, not reduced.
  """
  chex.assert_rank(logprobs, 2)
  chex.assert_type(logprobs, jnp.float32)
  return -logprobs


def likelihood_features(logprobs: jax.Array, mask: jax.Array) -> jax.Array:
  """How likely a response is, as two numbers in [0, 1] that no length moves.

  phi_1 = exp(mean_t logprobs_t): geometric mean of its tokens' probabilities
  phi_2 = min_t exp(logprobs_t): probability of its least likely token

  Args:
    logprobs: Log-probability of each token, `[B, T]`, float32.
    mask: Which of them are the response, `[B, T]`, bool.

  Returns:
    `[B, 2]`, float32; 1 where a row has no token.
  """
  chex.assert_equal_shape([logprobs, mask])
  zero = jnp.zeros((), jnp.float32)
  kept = jnp.where(mask, logprobs, zero)
  count = jnp.maximum(jnp.sum(mask, axis=1), 1)
  mean = jnp.sum(kept, axis=1) / count
  return jnp.exp(jnp.stack([mean, jnp.min(kept, axis=1)], axis=1))


def map_time_chunks(
  fn: Callable[[Inputs], Outputs], inputs: Inputs, *, chunk_size: int
) -> Outputs:
  """Applies a per-token function to a few time steps of the batch at a time.

  Equals `fn(inputs)` when `fn` treats every token alone. Only the inputs are
  kept for the backward pass, which computes the intermediates of `fn` again.

  Args:
    fn: Maps a tree of `[B, t, ...]` arrays to a tree of `[B, t, ...]` arrays.
    inputs: Tree of `[B, T, ...]` arrays. Zeros fill the last chunk.
    chunk_size: The most tokens in a chunk, B times t; but t is at least 1.

  Returns:
    Tree of `[B, T, ...]` arrays.

  Raises:
    ValueError: If chunk_size is not positive.
  """
  if chunk_size < 1:
    raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
  # Time is cut and the batch is not: a batch that is sharded over devices would
  # be gathered by a loop over pieces of it.
  batch, time = jax.tree.leaves(inputs)[0].shape[:2]
  count = -(-time // max(1, chunk_size // batch))
  width = -(-time // count)
  count = -(-time // width)
  padding = count * width - time

  def split(array: jax.Array) -> jax.Array:
    pads = [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2)
    padded = jnp.pad(array, pads)
    chunks = padded.reshape(batch, count, width, *array.shape[2:])
    return jnp.moveaxis(chunks, 1, 0)

  def join(chunks: jax.Array) -> jax.Array:
    padded = jnp.moveaxis(chunks, 0, 1)
    return padded.reshape(batch, -1, *chunks.shape[3:])[:, :time]

  # A loop already keeps the two passes apart, so prevent_cse would only slow
  # the compiler's work.
  remade = jax.checkpoint(fn, prevent_cse=False)
  return jax.tree.map(join, jax.lax.map(remade, jax.tree.map(split, inputs)))


def _score(
  logits: jax.Array, targets: jax.Array, *, entropy: bool, correct: bool
) -> TokenScores:
  """Scores of one chunk: logits `[B, t, V]`, targets `[B, t]`."""
  size = logits.shape[-1]
  logprobs = jax.nn.log_softmax(logits)
  # Compare and sum instead of gather: it splits over a sharded vocabulary, and
  # its gradient is no scatter.
  hit = jnp.arange(size) == targets[..., None]
  # Without this a target such as -100 would quietly score as 0.
  known = (targets >= 0) & (targets < size)
  return TokenScores(
    logprobs=jnp.where(
      known, jnp.sum(jnp.where(hit, logprobs, 0.0), axis=-1), jnp.nan
    ),
    entropy=-jnp.sum(jnp.exp(logprobs) * logprobs, -1) if entropy else None,
    correct=jnp.argmax(logits, -1) == targets if correct else None,
  )

"""Sampling of responses: a prefill, then cached decoding with early stop.

The distribution that is sampled is softmax(logits / temperature), restricted by
top-k and top-p where the spec says so. A response ends with its first stop
token, which is an action like any other; nothing sampled is overwritten.
"""

from perl_jax.sampling.decode import make_sampler
from perl_jax.sampling.draw import (
  Samples,
  SamplingSpec,
  filter_logits,
  next_token_logits,
)

__all__ = [
  "Samples",
  "SamplingSpec",
  "filter_logits",
  "make_sampler",
  "next_token_logits",
]

"""The four roles on one backbone: log-probs, scores and values.

Policy, anchor, reward and value model are the same base weights with different
adapters and heads. Every function takes `params = combine(trainable, frozen)`
of one role; an adapter is applied if and only if the tree has its leaves.
"""

from perl_jax.roles.backbone import (
  Backbone,
  Role,
  head_kernel,
  hidden_states,
  init_adapter,
  init_base,
  init_head,
)
from perl_jax.roles.closing import Closed, Closing, closed
from perl_jax.roles.outputs import (
  response_kl,
  response_logprobs,
  response_scores,
  response_values,
  target_logprobs,
)
from perl_jax.roles.packed import (
  packed_features,
  packed_logprobs,
  packed_scores,
  row_block,
  shares_prompts,
)
from perl_jax.roles.rows import SharedRows, shared_rows
from perl_jax.roles.sequences import (
  Sequence,
  left_padded,
  right_padded,
  segments_of,
  with_response,
)

__all__ = [
  "Backbone",
  "Closed",
  "Closing",
  "Role",
  "Sequence",
  "SharedRows",
  "closed",
  "head_kernel",
  "hidden_states",
  "init_adapter",
  "init_base",
  "init_head",
  "left_padded",
  "packed_features",
  "packed_logprobs",
  "packed_scores",
  "response_kl",
  "response_logprobs",
  "response_scores",
  "response_values",
  "right_padded",
  "row_block",
  "segments_of",
  "shared_rows",
  "shares_prompts",
  "target_logprobs",
  "with_response",
]

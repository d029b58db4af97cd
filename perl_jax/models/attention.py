"""Attention by the kernel that fits the platform: XLA, cuDNN or splash.

All three compute the same function. XLA runs anywhere and holds the scores of a
block of queries; the fused kernels of cuDNN and Pallas never hold any.
The choice is made while a function is traced, from the mesh in context, so that
a program compiled ahead of time for a TPU gets its kernel on a host without
one.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from perl_jax import sharding
from perl_jax.models import attention_blocks
from perl_jax.models.config import ModelConfig
from perl_jax.models.matmul import matmul

# Heads wider than this need Hopper or later in cuDNN; "auto" does not ask.
_CUDNN_MAX_HEAD_DIM = 128

# Splash works on blocks of keys whose length is a multiple of the TPU's lanes.
LANES = attention_blocks.LANES
_BLOCKS = (512, 256, LANES)


def platform() -> tuple[str, str]:
  """(platform, device kind) of the mesh in context, else of JAX's devices."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    device = jax.devices()[0]
  return device.platform, device.device_kind


def choose(
  config: ModelConfig, *, queries: int, keys: int, contiguous: bool
) -> str:
  """Chooses the kernel for one pass: "xla", "cudnn" or "splash".

  `config.attention` names one. XLA takes over where that kernel cannot run:
  cuDNN needs even lengths; splash needs contiguous segments, and no keys but
  those of the pass.
  "auto" is splash on a TPU from 128 tokens, which fill a block, cuDNN on an
  NVIDIA GPU in bfloat16 without soft-cap and with heads up to 128 wide, and XLA
  elsewhere.

  Args:
    config: Shapes and switches of the model.
    queries: Number of queries, `T`.
    keys: Number of keys, `S`.
    contiguous: Whether all segments are contiguous and a cache is empty, as
      `Transformer.__call__` explains.
  """
  asked = config.attention
  if asked == "auto":
    where, kind = platform()
    if where == "tpu":
      asked = "splash" if queries >= LANES else "xla"
    elif where == "gpu" and kind.startswith("NVIDIA"):
      fits = config.head_dim <= _CUDNN_MAX_HEAD_DIM
      asked = "cudnn" if fits and config.cudnn_refuses is None else "xla"
  # Gradients of cuDNN with a mask need even lengths.
  if asked == "cudnn" and queries % 2 == 0 and keys % 2 == 0:
    return "cudnn"
  if asked == "splash" and contiguous and queries == keys:
    return "splash"
  return "xla"


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  attention_mask: jax.Array,
  *,
  scale: float,
  softcap: float | None,
  causal: bool = False,
) -> jax.Array:
  """Grouped-query attention with a float32 softmax, by XLA.

  out[t] = sum_s softmax_s(c tanh(scale q_t . k_s / c)) v_s, over visible s

  Args:
    q: Queries, `[B, T, N, H]`; query head n reads key/value head n // G.
    k: Keys, `[B, S, K, H]`.
    v: Values, `[B, S, K, H]`.
    attention_mask: True where a query may see a key, `[B, T, S]`. A row that
      sees nothing gets finite, meaningless output.
    scale: Factor on the scores.
    softcap: The bound c that tanh puts on the scores, or None.
    causal: Promises T = S and that no query sees a key behind its own column.
      With n blocks of queries, each compared with the keys up to its end
      alone, a share of (n + 1) / 2n of the scores is computed.

  Returns:
    `[B, T, N * H]` in the dtype of `v`.
  """
  if not causal:
    return attend_cached(
      q,
      k.swapaxes(1, 2),
      v.swapaxes(1, 2),
      attention_mask,
      scale=scale,
      softcap=softcap,
    )
  batch, length, heads, head_dim = q.shape
  kv_heads = k.shape[2]
  q = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)

  def weights(scores, mask):
    seen = mask[:, None, None]
    return _weights(scores, seen, scale, softcap).astype(v.dtype)

  out = attention_blocks.attend(q, k, v, attention_mask, weights)
  return out.reshape(batch, length, heads * head_dim)


def attend_cached(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  attention_mask: jax.Array,
  *,
  scale: float,
  softcap: float | None,
) -> jax.Array:
  """`attend` to the keys of a cache, `[B, K, S, H]`, read as they lie.

  Each head's keys and values are the right operand of a product whose rows are
  the queries of the head's group, so that no product needs a copy of them.
  """
  batch, length, heads, head_dim = q.shape
  kv_heads = k.shape[1]
  rows = length * heads // kv_heads
  # [B, K, T G, H]
  q = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
  q = q.swapaxes(1, 2).reshape(batch, kv_heads, rows, head_dim)
  scores = jnp.einsum("BKRH,BKSH->BKRS", q, k, preferred_element_type="float32")
  scores = scores.reshape(batch, kv_heads, length, -1, k.shape[2])
  seen = attention_mask[:, None, :, None]
  weights = _weights(scores, seen, scale, softcap).astype(v.dtype)
  out = matmul(weights.reshape(batch, kv_heads, rows, -1), v)
  out = out.reshape(batch, kv_heads, length, -1, head_dim).swapaxes(1, 2)
  return out.reshape(batch, length, heads * head_dim)


def _weights(scores, seen, scale, softcap):
  """Softmax of scores over the keys that are seen, in float32."""
  scores = scores * scale
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  # A large finite value, not -inf: a fully masked row must not become NaN.
  scores = jnp.where(seen, scores, -1e30)
  return jax.nn.softmax(scores, axis=-1)


def attend_cudnn(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  attention_mask: jax.Array,
  *,
  scale: float,
) -> jax.Array:
  """`attend` by cuDNN's fused kernel; bfloat16 only, without soft-cap.

  The mask `[B, 1, T, S]` is the largest array that exists.
  """
  out = jax.nn.dot_product_attention(
    q,
    k,
    v,
    mask=attention_mask[:, None],
    scale=scale,
    implementation="cudnn",
  )
  return out.reshape(*q.shape[:2], -1)


def attend_splash(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  segments: jax.Array,
  *,
  scale: float,
  softcap: float | None,
  window: int | None,
  windowed: jax.Array | None,
) -> jax.Array:
  """`attend` by Pallas' splash kernel, of contiguous segments.

  A token sees those of its segment in its own column and before; in a windowed
  layer only the latest `window` of them. Padding is a segment like the others:
  the output of its queries is finite and meaningless.

  On a mesh each device computes its rows and, where they divide, its heads. On
  platforms other than TPU the kernel is interpreted, which is slow and meant
  for tests.

  Args:
    q: Queries, `[B, T, N, H]`.
    k: Keys, `[B, T, K, H]`.
    v: Values, `[B, T, K, H]`.
    segments: Segment of each token, `[B, T]`, int32.
    scale: Factor on the scores.
    softcap: The bound c that tanh puts on the scores, or None.
    window: Number of tokens that a windowed layer sees; None if no layer is
      windowed.
    windowed: Whether this layer is windowed, scalar bool; None if all layers
      are alike.

  Returns:
    `[B, T, N * H]` in the dtype of `v`.

  Reference: Dao 2023, arXiv:2307.08691 (blocks that the mask hides are
  skipped).
  """
  batch, length, heads, head_dim = q.shape
  padding = -length % LANES

  def padded(x):
    return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

  def local(q, k, v, segments):
    def run(window):
      kernel = _splash_kernel(q.shape[1], q.shape[2], softcap, window)
      return jax.vmap(kernel)(
        *(x.swapaxes(1, 2) for x in (q, k, v)), _segment_ids(segments)
      )

    if windowed is None:
      out = run(window)
    else:
      out = jax.lax.cond(windowed, lambda: run(window), lambda: run(None))
    return out.swapaxes(1, 2)

  # The kernel has no scale of its own.
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  out = _over_mesh(local, batch, heads, k.shape[2])(
    *map(padded, (q, k, v, segments))
  )
  return out[:, :length].reshape(batch, length, heads * head_dim)


def _segment_ids(segments):
  # Imported late, like the kernel: Pallas takes a second to load.
  from jax.experimental.pallas.ops.tpu import splash_attention

  return splash_attention.SegmentIds(segments, segments)


def _splash_kernel(length, heads, softcap, window):
  """The kernel for `[heads, length, H]` queries of one row."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  shape = (length, length)
  if window is None:
    mask = splash.CausalMask(shape)
  else:
    mask = splash.LocalMask(shape, window_size=(window - 1, 0), offset=0)
  block = next(b for b in _BLOCKS if length % b == 0)
  names = ("block_q", "block_kv", "block_kv_compute")
  backward = ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
  sizes = dict.fromkeys((*names, *backward, "block_q_dq", "block_kv_dq"), block)
  return splash.make_splash_mha_single_device(
    splash.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(**sizes),
    attn_logits_soft_cap=softcap,
    interpret=platform()[0] != "tpu",
  )


def _over_mesh(local, batch, heads, kv_heads):
  """`local` under `shard_map`, on each device's part of the rows and heads.

  The compiler cannot partition a Pallas kernel by itself. A dimension that does
  not divide is replicated.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1:
    return local
  shared = kv_heads == 1
  # Fewer heads than devices: all heads on each.
  count = heads if shared else kv_heads
  rows, head = sharding.fitting(
    P(sharding.BATCH_AXES, sharding.HEAD_AXIS), (batch, count)
  )
  q = P(rows, None, head, None)
  kv = P(rows, None, None if shared else head, None)
  return jax.shard_map(
    local,
    in_specs=(q, kv, kv, P(rows, None)),
    out_specs=q,
    check_vma=False,
  )

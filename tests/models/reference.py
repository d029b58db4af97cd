"""The transformer again: NumPy, float64, one sequence, loops, no padding.

Written from the papers and the model cards, token by token and head by head,
to be compared with `perl_jax.models` and with everything that reads it.
"""

import numpy as np


def rms_norm(x, scale, *, eps, plus_one):
  out = np.empty_like(x)
  for i, row in enumerate(x.reshape(-1, x.shape[-1])):
    unit = row / np.sqrt(np.mean(row**2) + eps)
    weight = 1.0 + scale if plus_one else scale
    out.reshape(-1, x.shape[-1])[i] = unit * weight
  return out


def rope(vector, position, theta):
  """Turns the pair (x_i, x_{i + H/2}) by position * theta^(-2i/H)."""
  half = len(vector) // 2
  out = np.empty_like(vector)
  for i in range(half):
    turned = (vector[i] + 1j * vector[i + half]) * np.exp(
      1j * position * theta ** (-2.0 * i / len(vector))
    )
    out[i], out[i + half] = turned.real, turned.imag
  return out


def softmax(x):
  weights = np.exp(x - np.max(x))
  return weights / weights.sum()


def log_softmax(x):
  x = x - np.max(x)
  return x - np.log(np.exp(x).sum())


def soft_cap(x, cap):
  return x if cap is None else cap * np.tanh(x / cap)


def linear(x, leaves, lora_scale):
  y = x @ leaves["kernel"]
  if "lora_a" in leaves:
    y = y + lora_scale * (x @ leaves["lora_a"] @ leaves["lora_b"])
  return y + leaves["bias"] if "bias" in leaves else y


def attention(cfg, leaves, x, *, windowed, lora_scale):
  time, heads, width = len(x), cfg.num_heads, cfg.head_dim

  def split(name, count):
    out = linear(x, leaves[name], lora_scale).reshape(time, count, width)
    if cfg.qk_norm and name in "qk":
      out = rms_norm(
        out,
        leaves[f"{name}_norm"]["scale"],
        eps=cfg.norm_eps,
        plus_one=cfg.norm_plus_one,
      )
    return out

  q, k = split("q", heads), split("k", cfg.num_kv_heads)
  v = split("v", cfg.num_kv_heads)
  theta = cfg.rope_theta
  if windowed and cfg.rope_local_theta is not None:
    theta = cfg.rope_local_theta
  scale = cfg.query_scale or 1.0 / np.sqrt(width)
  out = np.empty((time, heads, width))
  for t in range(time):
    first = max(0, t + 1 - cfg.sliding_window) if windowed else 0
    seen = range(first, t + 1)
    for n in range(heads):
      shared = n * cfg.num_kv_heads // heads
      query = rope(q[t, n], t, theta)
      scores = [query @ rope(k[s, shared], s, theta) * scale for s in seen]
      weights = softmax(soft_cap(np.array(scores), cfg.attn_softcap))
      out[t, n] = sum(w * v[s, shared] for w, s in zip(weights, seen))
  return linear(out.reshape(time, -1), leaves["o"], lora_scale)


def mlp(cfg, leaves, x, *, lora_scale):
  gate = linear(x, leaves["gate"], lora_scale)
  if cfg.activation == "silu":
    gate = gate / (1.0 + np.exp(-gate))
  else:
    inner = np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)
    gate = 0.5 * gate * (1.0 + np.tanh(inner))
  up = linear(x, leaves["up"], lora_scale)
  return linear(gate * up, leaves["down"], lora_scale)


def float64(tree):
  """Nested dicts of arrays in float64."""
  if isinstance(tree, dict):
    return {name: float64(leaf) for name, leaf in tree.items()}
  return np.asarray(tree, np.float64)


def layer_of(tree, index):
  """One layer of a tree that has them stacked in front."""
  if isinstance(tree, dict):
    return {name: layer_of(leaf, index) for name, leaf in tree.items()}
  return tree[index]


def hidden_states(cfg, params, tokens, *, lora_scale=None):
  """Final hidden states `[T, D]` of one sequence `[T]`, float64."""
  params = float64(params)

  def norm(leaves, x):
    return rms_norm(
      x, leaves["scale"], eps=cfg.norm_eps, plus_one=cfg.norm_plus_one
    )

  x = params["embedding"][np.asarray(tokens)]
  if cfg.embed_scale:
    x = x * np.sqrt(cfg.width)
  for index, windowed in enumerate(cfg.layer_is_windowed):
    layer = layer_of(params["layers"], index)
    out = attention(
      cfg,
      layer["attention"],
      norm(layer["attention_norm"], x),
      windowed=windowed,
      lora_scale=lora_scale,
    )
    x = x + (norm(layer["post_attention_norm"], out) if cfg.post_norms else out)
    out = mlp(
      cfg, layer["mlp"], norm(layer["mlp_norm"], x), lora_scale=lora_scale
    )
    x = x + (norm(layer["post_mlp_norm"], out) if cfg.post_norms else out)
  return norm(params["final_norm"], x)


def logits(cfg, params, tokens, *, lora_scale=None):
  """Logits `[T, V]` of one sequence `[T]`; row t is about token t + 1."""
  hidden = hidden_states(cfg, params, tokens, lora_scale=lora_scale)
  kernel = float64(
    params["embedding"].T if cfg.tied_head else params["lm_head"]
  )
  return soft_cap(hidden @ kernel, cfg.final_softcap)

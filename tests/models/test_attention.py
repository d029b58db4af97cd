"""Kernels of the attention: equal results, and which one a pass gets.

Splash runs interpreted here, cuDNN is lowered and not run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import roles, sharding
from perl_jax.models import attention
from perl_jax.models.config import ModelConfig
from tests import toys

SAME = dict(rtol=2e-5, atol=2e-5)
LONG = 300  # three blocks of 128 after padding

# Segments of a row by the columns at which they start.
LAYOUTS = {
  "full": [(0, 1)],
  "left padded": [(0, 0), (37, 1)],
  "left and right padded": [(0, 0), (9, 1), (90, 0)],
  "packed": [(0, 1), (50, 2), (51, 3), (100, 4), (120, 0)],
}


def segments_of(name, time):
  row = np.zeros(time, np.int32)
  for start, segment in LAYOUTS[name]:
    row[start:] = segment
  return row


def visible(segments, window):
  """The mask by its definition, one pair of columns at a time."""
  rows, time = segments.shape
  mask = np.zeros((rows, time, time), bool)
  for b, t in np.ndindex(rows, time):
    for s in range(t + 1):
      mask[b, t, s] = segments[b, t] == segments[b, s] and (
        window is None or t - s < window
      )
  return mask


@pytest.mark.parametrize(
  ("time", "heads", "kv_heads", "window", "softcap", "layouts"),
  [
    (LONG, 2, 2, None, None, ("left padded", "packed")),
    (LONG, 4, 2, 40, 1.5, ("packed", "left padded")),
    (130, 4, 1, None, 1.5, ("full", "left and right padded")),
    (128, 2, 2, 1, None, ("full", "packed")),
  ],
)
def test_splash_equals_xla(
  rng, time, heads, kv_heads, window, softcap, layouts
):
  segments = np.stack([segments_of(name, time) for name in layouts])
  mask = visible(segments, window)
  q, out_weight = rng.normal(size=(2, 2, time, heads, 8)).astype(np.float32)
  k, v = rng.normal(size=(2, 2, time, kv_heads, 8)).astype(np.float32)
  # What padding gets is nobody's business.
  out_weight *= (segments > 0)[..., None, None]
  options = dict(scale=0.7, softcap=softcap)

  def splash(q, k, v):
    return attention.attend_splash(
      q, k, v, segments, window=window, windowed=None, **options
    )

  def xla(q, k, v):
    return attention.attend(q, k, v, mask, **options)

  def run(attend):
    def total(q, k, v):
      out = attend(q, k, v).reshape(q.shape)
      return jnp.sum(out * out_weight), out

    grad = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    (_, out), grads = jax.jit(grad)(q, k, v)
    return out, grads

  (found, found_grads), (expected, grads) = run(splash), run(xla)
  assert np.all(np.isfinite(found))
  real = segments > 0
  np.testing.assert_allclose(found[real], expected[real], **SAME)
  for name, mine, theirs in zip("qkv", found_grads, grads):
    np.testing.assert_allclose(mine, theirs, err_msg=name, **SAME)


MODEL = "gemma2_tiny"  # windows in every other layer, soft-cap, shared heads


def scores_and_gradient(attention_kernel, remat):
  """Log-probs of left-padded prompts with responses, and their gradient."""
  cfg = toys.config(
    MODEL, attention=attention_kernel, remat=remat, vocab_size=32
  )
  backbone = roles.Backbone(cfg, toys.NO_LORA)
  prompts = toys.random_tokens(3, 4, 8)
  responses = toys.random_tokens(4, 4, 6)
  lengths = np.array([8, 3, 5, 8], np.int32)
  mask = np.arange(6) < np.array([6, 6, 2, 1])[:, None]

  def total(params, prompts, lengths, responses, mask):
    scores = roles.response_logprobs(
      backbone,
      params,
      roles.with_response(prompts, lengths, responses, mask),
      response_len=6,
      temperature=1.0,
    )
    logprobs = jnp.where(mask, scores.logprobs, 0.0)
    return jnp.sum(logprobs), logprobs

  run = jax.jit(jax.value_and_grad(total, has_aux=True))
  return run, toys.random_params(cfg), (prompts, lengths, responses, mask)


@functools.cache
def expected():
  run, params, batch = scores_and_gradient("xla", "none")
  return jax.device_get(run(params, *batch))


def assert_expected(found):
  (_, logprobs), gradient = expected()
  (_, found_logprobs), found_gradient = jax.device_get(found)
  np.testing.assert_allclose(found_logprobs, logprobs, **SAME)
  scale = max(np.max(np.abs(g)) for g in jax.tree.leaves(gradient))
  for mine, theirs in zip(
    jax.tree.leaves(found_gradient), jax.tree.leaves(gradient)
  ):
    np.testing.assert_allclose(mine / scale, theirs / scale, **SAME)


def test_model_with_splash_equals_model_with_xla():
  run, params, batch = scores_and_gradient("splash", "full")
  assert "pallas_call" in str(jax.make_jaxpr(run)(params, *batch))
  assert_expected(run(params, *batch))


def test_splash_is_cut_over_the_mesh():
  """Rows over data and fsdp, heads over tensor."""
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  run, params, batch = scores_and_gradient("splash", "none")
  with jax.set_mesh(mesh):
    placed = sharding.place(mesh, params), *sharding.place_batch(mesh, batch)
    jaxpr = str(jax.make_jaxpr(run)(*placed))
    assert_expected(run(*placed))
  # One row and half of four query heads, 128 columns, on each device.
  assert "f32[1,128,2,8]" in jaxpr and "shard_map" in jaxpr


@pytest.mark.parametrize(
  ("heads", "kv_heads", "q", "kv"),
  [(4, 2, 2, 1), (4, 1, 2, 1), (3, 3, 3, 3), (6, 3, 6, 3)],
)
def test_heads_that_do_not_divide_are_not_cut(heads, kv_heads, q, kv):
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  run = functools.partial(
    attention.attend_splash, scale=1.0, softcap=None, window=None, windowed=None
  )
  with jax.set_mesh(mesh):
    jaxpr = jax.make_jaxpr(run)(
      jnp.zeros((3, 128, heads, 8)),
      jnp.zeros((3, 128, kv_heads, 8)),
      jnp.zeros((3, 128, kv_heads, 8)),
      jnp.zeros((3, 128), jnp.int32),
    )
  (part,) = [
    equation.params["jaxpr"]
    for equation in jaxpr.eqns
    if equation.primitive.name == "shard_map"
  ]
  # After the constants of the kernel q, k, v and segments of one device. Three
  # rows do not divide by four devices either.
  assert [variable.aval.shape for variable in part.invars[-4:]] == [
    (3, 128, q, 8), (3, 128, kv, 8), (3, 128, kv, 8), (3, 128)
  ]  # fmt: skip


BF16 = dict(dtype="bfloat16")
TPU, GPU, ROCM = (
  ("tpu", "TPU v5 lite"),
  ("gpu", "NVIDIA H100"),
  ("gpu", "AMD Instinct MI300X"),
)


@pytest.mark.parametrize(
  ("device", "fields", "call", "kernel"),
  [
    (("cpu", "cpu"), BF16, {}, "xla"),
    (TPU, {}, {}, "splash"),
    (TPU, BF16, {}, "splash"),
    (TPU, dict(attention="xla"), {}, "xla"),
    (TPU, {}, dict(queries=64, keys=64), "xla"),  # half a block
    (TPU, {}, dict(contiguous=False), "xla"),
    (TPU, {}, dict(queries=1), "xla"),  # decoding
    (TPU, {}, dict(queries=128), "xla"),  # prefill into a longer cache
    (GPU, BF16, {}, "cudnn"),
    (GPU, BF16, dict(contiguous=False), "cudnn"),  # it takes masks
    (GPU, BF16, dict(queries=128), "cudnn"),
    (GPU, BF16, dict(queries=1), "xla"),
    (GPU, BF16, dict(keys=255), "xla"),
    (GPU, {}, {}, "xla"),  # float32
    (GPU, BF16 | dict(attn_softcap=50.0), {}, "xla"),
    (GPU, BF16 | dict(head_dim=256), {}, "xla"),
    (GPU, BF16 | dict(head_dim=256, attention="cudnn"), {}, "cudnn"),
    (GPU, BF16 | dict(head_dim=12), {}, "xla"),
    (ROCM, BF16, {}, "xla"),
    (("cpu", "cpu"), dict(attention="splash"), {}, "splash"),
    (("cpu", "cpu"), dict(attention="splash"), dict(contiguous=False), "xla"),
  ],
)
def test_choice(device, fields, call, kernel):
  cfg = toys.config("tiny", **fields)
  call = dict(queries=256, keys=256, contiguous=True) | call
  with traced_for(device):
    assert attention.choose(cfg, **call) == kernel


def test_platform_is_that_of_the_mesh():
  assert attention.platform() == ("cpu", "cpu")
  for device in (TPU, GPU, ROCM):
    with traced_for(device):
      assert attention.platform() == device


def traced_for(device):
  """A mesh of four devices (platform, kind), none of which need be here."""
  platform, kind = device
  mesh = jax.sharding.AbstractMesh(
    (4, 1, 1),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    abstract_device=jax.sharding.AbstractDevice(kind, 1, platform),
  )
  return jax.sharding.use_abstract_mesh(mesh)


def lowered(name, platform, **fields):
  """StableHLO of a forward pass over four rows of 384 tokens."""
  cfg = toys.config(name, num_layers=2, **fields)
  backbone = roles.Backbone(cfg, toys.NO_LORA)
  sequence = roles.Sequence(*[jax.ShapeDtypeStruct((4, 384), jnp.int32)] * 3)

  def run(params, sequence):
    return roles.hidden_states(backbone, params, sequence, contiguous=True)

  traced = jax.jit(run).trace(toys.shapes(cfg), sequence)
  return traced.lower(lowering_platforms=(platform,)).as_text()


def test_tpu_gets_splash_when_lowered_on_a_cpu():
  with traced_for(TPU):
    text = lowered("gemma2_tiny", "tpu", num_heads=4, head_dim=128)
  # A windowed kernel and a global one; no scores or masks of all pairs.
  assert text.count("@tpu_custom_call") == 2
  assert "384x384x" not in text
  elsewhere = lowered("gemma2_tiny", "cpu")
  assert "384x384x" in elsewhere and "tpu_custom_call" not in elsewhere


def test_gpu_gets_cudnn_when_lowered_on_a_cpu(monkeypatch):
  # Without a GPU JAX cannot ask for cuDNN's version.
  from jax._src.cudnn import fused_attention_stablehlo

  monkeypatch.setattr(
    fused_attention_stablehlo, "check_cudnn_version", lambda: 91000
  )
  with traced_for(GPU):
    text = lowered("qwen3_tiny", "cuda", dtype="bfloat16")
    assert "__cudnn$fmhaScaleBiasSoftmax" in text
    assert "__cudnn" not in lowered("qwen3_tiny", "cuda")  # float32


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(attention="flash"), r"model\.attention='flash'.*splash"),
    (dict(attention="cudnn"), r"attention='cudnn' .* dtype='float32'.*'auto'"),
    (
      dict(attention="cudnn", dtype="bfloat16", attn_softcap=2.0),
      r"does not support attn_softcap=2\.0",
    ),
  ],
)
def test_kernels_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    toys.config("tiny", **changes)


def test_model_files_without_the_field_are_read():
  fields = toys.config("tiny").to_dict()
  del fields["attention"]
  assert ModelConfig.from_dict(fields).attention == "auto"

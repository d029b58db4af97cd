"""Prompts go into an empty cache with the kernel of a pass without one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from perl_jax import roles, sampling
from tests import toys
from tests.models.test_attention import MODEL, SAME, TPU, traced_for


def test_prompts_prefilled_with_splash_sample_the_same_responses():
  """Left-padded ones of 8 columns; and the later tokens read their cache."""
  prompts, lengths = toys.random_tokens(3, 4, 8), np.array([8, 3, 5, 8])
  spec = sampling.SamplingSpec(response_len=6, stop_ids=(2,))
  for spec_ in (
    dataclasses.replace(spec, group=2),
    dataclasses.replace(spec, slots=2, refill=1),
  ):
    found = {}
    for kernel in ("splash", "xla"):
      cfg = toys.config(MODEL, attention=kernel, vocab_size=32)
      backbone = roles.Backbone(cfg, toys.NO_LORA)
      sample = sampling.make_sampler(backbone, spec_)
      args = (
        toys.random_params(cfg), prompts, lengths, np.arange(4),
        jax.random.key(0),
      )  # fmt: skip
      assert ("pallas_call" in str(jax.make_jaxpr(sample)(*args))) == (
        kernel == "splash"
      )
      found[kernel] = jax.device_get(jax.jit(sample)(*args))
    mine, theirs = found["splash"], found["xla"]
    np.testing.assert_array_equal(mine.tokens, theirs.tokens)
    np.testing.assert_allclose(mine.logprobs, theirs.logprobs, **SAME)


def test_a_prefill_holds_no_scores_of_all_pairs_on_a_tpu():
  cfg = toys.config("gemma2_tiny", num_layers=2, num_heads=4, head_dim=128)
  sample = sampling.make_sampler(
    roles.Backbone(cfg, toys.NO_LORA),
    sampling.SamplingSpec(response_len=6, stop_ids=(2,)),
  )
  args = (
    toys.shapes(cfg),
    jax.ShapeDtypeStruct((4, 384), jnp.int32),
    *[jax.ShapeDtypeStruct((4,), jnp.int32)] * 2,
    jax.eval_shape(lambda: jax.random.key(0)),
  )

  def text(platform):
    traced = jax.jit(sample).trace(*args)
    return traced.lower(lowering_platforms=(platform,)).as_text()

  with traced_for(TPU):
    assert "384x384x" not in text("tpu")
  assert "384x384x" in text("cpu")

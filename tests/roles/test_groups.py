"""Several responses in one row: as if each had a row to itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles
from tests import toys
from tests.roles import cases

GROUP = 3
GROUP_LENGTHS = np.array([6, 2, 4, 0, 1, 6], np.int32)


def measure_group(backbone, params, prompts, lengths, responses, group):
  """Log-probs, entropies, values and scores of two prompts' responses."""
  mask = jnp.arange(cases.RESPONSE_LEN) < GROUP_LENGTHS[:, None]
  sequence = roles.with_response(prompts, lengths, responses, mask, group=group)
  sizes = dict(response_len=cases.RESPONSE_LEN, group=group)
  tokens = roles.response_logprobs(
    backbone, params, sequence, temperature=0.7, entropy=True, **sizes
  )
  values = roles.response_values(backbone, params, sequence, **sizes)
  prompt = jnp.zeros(prompts.shape, bool)
  scores = roles.response_scores(
    backbone,
    params,
    sequence,
    jnp.concatenate([prompt, mask.reshape(len(prompts), -1)], axis=1),
    max_response=cases.RESPONSE_LEN,
    group=group,
  )
  per_token = (tokens.logprobs, tokens.entropy, values)
  return [*(jnp.where(mask, x, 0.0) for x in per_token), scores]


@functools.partial(jax.jit, static_argnums=(0, 5))
def measure_and_differentiate(backbone, params, *args):
  rng = np.random.default_rng(3)
  rows = len(GROUP_LENGTHS)
  weights = [rng.normal(size=(rows, cases.RESPONSE_LEN)) for _ in range(3)]
  weights.append(rng.normal(size=rows))

  def loss(params):
    found = measure_group(backbone, params, *args)
    # Values are of the states that log-probs are of: no third backward pass.
    found[2] = jax.lax.stop_gradient(found[2])
    return sum(jnp.vdot(w, x) for w, x in zip(weights, found)), found

  (_, found), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return found, params_lib.flatten(grads)


@pytest.mark.parametrize(
  "name",
  [
    name
    if name == "gemma3_tiny"
    else pytest.param(name, marks=pytest.mark.slow)
    for name in toys.FAMILIES
  ],
)
def test_a_group_in_one_row_equals_a_row_for_each_response(name):
  """Also past the window, with an empty response, and all gradients."""
  cfg = toys.config(name)
  backbone = roles.Backbone(cfg, cases.SPEC)
  params = toys.random_params(cfg, cases.SPEC, head=True)
  likelihood = {"likelihood": np.array([0.5, -2.0], np.float32)}
  params = params | {"head": params["head"] | likelihood}
  prompts = toys.random_tokens(70, 2, cases.PROMPT_LEN)
  lengths = np.array([5, 3], np.int32)
  responses = toys.random_tokens(71, 6, cases.RESPONSE_LEN)
  found, grads = jax.device_get(
    measure_and_differentiate(
      backbone, params, prompts, lengths, responses, GROUP
    )
  )
  prompts, lengths = (np.repeat(x, GROUP, axis=0) for x in (prompts, lengths))
  expected, alone = jax.device_get(
    measure_and_differentiate(backbone, params, prompts, lengths, responses, 1)
  )
  for ours, theirs in zip(found, expected, strict=True):
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, **cases.REASSOCIATED)
  for path, grad in alone.items():
    size = np.abs(grad).max()
    assert size > 1e-3, path
    np.testing.assert_allclose(
      grads[path], grad, rtol=3e-5, atol=3e-5 * size, err_msg=path
    )

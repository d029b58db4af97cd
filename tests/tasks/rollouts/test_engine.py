"""What a policy is evaluated by: samples, and the log-probs of them."""

import jax
import numpy as np

from perl_jax import params, roles, sampling
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.rollouts import engine as engine_lib
from tests import toys
from tests.models import reference

SPEC = LoraSpec(rank=2, alpha=2.0)
BACKBONE = roles.Backbone(toys.config("tiny"), SPEC)
# Greedy decoding as it is asked for without a temperature.
GREEDY = sampling.SamplingSpec(
  response_len=6, stop_ids=(2, 5), temperature=0.0, greedy=True
)


def test_greedy_responses_without_a_temperature_are_scored_at_1():
  """By NumPy: the most likely tokens, and log-probs without a temperature."""
  tree = toys.random_params(BACKBONE.config, SPEC, seed=2)
  engine = engine_lib.Engine(BACKBONE, GREEDY)
  trees = params.partition(tree, "lora")
  prompts, lengths = toys.random_tokens(11, 3, 4), np.array([4, 4, 4], np.int32)
  rows, key = np.arange(3, dtype=np.int32), jax.random.key(0)
  samples = engine.sample(*trees, prompts, lengths, rows, key)
  found, _ = engine.logprobs(
    *trees, prompts, lengths, samples.tokens, samples.mask
  )
  for row, mask in enumerate(np.asarray(samples.mask)):
    ids = np.asarray(samples.tokens)[row, mask]
    logits = reference.logits(
      BACKBONE.config, tree, [*prompts[row], *ids], lora_scale=SPEC.scale
    )
    said = [reference.log_softmax(step) for step in logits[3:-1]]
    np.testing.assert_array_equal(ids, np.argmax(said, axis=1))
    expected = np.max(said, axis=1)
    for logprobs in (found, samples.logprobs):
      np.testing.assert_allclose(
        np.asarray(logprobs)[row, mask], expected, rtol=1e-4, atol=1e-4
      )

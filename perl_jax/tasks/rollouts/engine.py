"""Compiled sampling, log-probs and rewards: what an evaluation runs."""

import jax
import jax.numpy as jnp

from perl_jax import hosts, roles, sampling, scoring
from perl_jax import params as params_lib
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training.compiled import Compiled


class Engine:
  """The compiled functions that a policy is evaluated by.

  Policy and anchor go through the same compiled `logprobs` with different
  arguments, so that equal parameters give equal bits, and a KL of exactly 0.

  Attributes:
    backbone: Model and adapter shape of policy and anchor.
    spec: How responses are sampled.
    buckets: Lengths that responses are scored on, in ascending order; the last
      is `spec.response_len`.
    sample: `sample(trainable, frozen, prompts, lengths, row_ids, key)`.
    logprobs: `scoring.make_logprobs`.
    rewards: `scoring.make_rewards` of the reward model, or None without one.
  """

  def __init__(
    self,
    backbone: roles.Backbone,
    spec: sampling.SamplingSpec,
    reward: roles.Role | None = None,
  ):
    self.backbone, self.spec = backbone, spec
    self.buckets = shared.response_buckets(spec.response_len)
    self.sample = compiled_sampler(backbone, spec)
    self.logprobs = Compiled(
      # As the sampler says them: at 1 where greedy decoding has none.
      scoring.make_logprobs(backbone, temperature=spec.temperature or 1.0),
      name="logprobs",
    )
    self.rewards = None
    if reward is not None:
      self.rewards = Compiled(
        scoring.make_rewards(
          reward.backbone, members=reward.members, closing=reward.closing
        ),
        name="rewards",
      )

  def score_args(
    self, batch: PromptBatch, samples: sampling.Samples
  ) -> tuple[jax.Array, ...]:
    """What `logprobs` and `rewards` are given behind the trees of a role.

    The prompts, their lengths, and of the responses, tokens and mask `[B * G,
    T]`: `T` is the first of `buckets` with room for the longest. All processes
    have to call it.

    Args:
      batch: Prompts `[B, P]`, on the mesh; those that are not valid may have
        longer responses, which are cut.
      samples: Responses to them, `[B * G, response_len]`.
    """
    lengths = samples.mask.sum(axis=-1).reshape(-1, self.spec.group)
    # Read from an array of all rows: the same on every process.
    longest = int(
      hosts.to_host(jnp.max(lengths, where=batch.valid[:, None], initial=0))
    )
    room = next(n for n in self.buckets if n >= longest)
    responses = samples.tokens[:, :room], samples.mask[:, :room]
    return batch.tokens, batch.lengths, *responses

  @property
  def compiled(self) -> tuple[Compiled, ...]:
    """All compiled functions, for what they cost."""
    found = (self.sample, self.logprobs, self.rewards)
    return tuple(f for f in found if f is not None)


def compiled_sampler(
  backbone: roles.Backbone,
  spec: sampling.SamplingSpec,
  name: str = "sample",
) -> Compiled:
  """`sample(trainable, frozen, prompts, lengths, row_ids, key)`."""
  sampler = sampling.make_sampler(backbone, spec)

  def sample(trainable, frozen, prompts, lengths, row_ids, key):
    params = params_lib.combine(trainable, frozen)
    return sampler(params, prompts, lengths, row_ids, key)

  return Compiled(sample, name=name)

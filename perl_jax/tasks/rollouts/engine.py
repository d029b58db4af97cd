"""Compiled sampling, log-probs and rewards: what an evaluation runs."""

from perl_jax import params as params_lib
from perl_jax import roles, sampling, scoring
from perl_jax.tasks.training.compiled import Compiled


class Engine:
  """The compiled functions that a policy is evaluated by.

  Policy and anchor go through the same compiled `logprobs` with different
  arguments, so that equal parameters give equal bits, and a KL of exactly 0.

  Attributes:
    backbone: Model and adapter shape of policy and anchor.
    spec: How responses are sampled.
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

"""Compiled sampling, log-probs and rewards of one policy."""

import dataclasses

from perl_jax import params as params_lib
from perl_jax import roles, sampling, scoring
from perl_jax.tasks.training.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class Role:
  """What a compiled function is given of a role: two trees on the mesh."""

  trainable: params_lib.Params
  frozen: params_lib.Params


class Engine:
  """The compiled functions of one policy: sample, log-probs, rewards.

  Policy and anchor share `logprobs`: one executable, two sets of arguments.
  """

  def __init__(
    self,
    backbone: roles.Backbone,
    sampling_spec: sampling.SamplingSpec,
    reward_backbone: roles.Backbone | None,
    reward_members: int = 1,
  ):
    self.backbone, self.spec = backbone, sampling_spec
    self.sample = compiled_sampler(backbone, sampling_spec)
    self.logprobs = Compiled(
      scoring.make_logprobs(backbone, temperature=sampling_spec.temperature),
      name="logprobs",
    )
    self.rewards = None
    if reward_backbone is not None:
      self.rewards = Compiled(
        scoring.make_rewards(reward_backbone, members=reward_members),
        name="rewards",
      )

  @property
  def compiled(self) -> tuple[Compiled, ...]:
    """All compiled functions, for what they cost."""
    found = (self.sample, self.logprobs, self.rewards)
    return tuple(f for f in found if f is not None)


def compiled_sampler(
  backbone: roles.Backbone, spec: sampling.SamplingSpec
) -> Compiled:
  """`sample(trainable, frozen, prompts, lengths, row_ids, key)`."""
  sampler = sampling.make_sampler(backbone, spec)

  def sample(trainable, frozen, prompts, lengths, row_ids, key):
    params = params_lib.combine(trainable, frozen)
    return sampler(params, prompts, lengths, row_ids, key)

  return Compiled(sample, name="sample")

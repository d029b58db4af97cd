"""The one builder of an RL iteration.

Training, `plan`, the memory check, the benchmarks and the tests all build it
here: which functions there are, and with which arguments each is called. The
trees may be arrays or abstract arrays.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from perl_jax import params as params_lib
from perl_jax import roles, scoring, steps
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.models import kv_cache
from perl_jax.sampling import Samples
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.settings.rl import RLSettings
from perl_jax.tasks.training.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class IterationPrograms:
  """The compiled functions of an iteration, and the arguments of each.

  Attributes:
    settings: Settings of the run.
    anchor: The policy that the run started from; policy and value model share
      its backbone and its base.
    reward: The reward model, or None if the reward is a function alone.
    engine: What evaluations run; `sample` is shared where it is the same.
    sample: Samples responses, `engine.compiled_sampler`.
    score: Scores them with all roles, `scoring.make_scores`.
    prepare: Computes advantages, `steps.prepare`; None if the loss does it.
    learn: Updates the state, `steps.make_train_step` of `steps.policy_loss`.
  """

  settings: RLSettings
  anchor: roles.Role
  reward: roles.Role | None
  engine: engine_lib.Engine
  sample: Compiled
  score: Compiled
  prepare: Compiled | None
  learn: Compiled

  @property
  def compiled(self) -> tuple[Compiled, ...]:
    """All compiled functions, those of evaluations included."""
    own = (self.sample, self.score, self.prepare, self.learn)
    found = (*self.engine.compiled, *own)
    return tuple(dict.fromkeys(f for f in found if f is not None))

  @property
  def base(self) -> params_lib.Params:
    """What policy, value model and anchor run on; empty with full tuning."""
    return self.anchor.frozen

  def sample_args(
    self, trainable: params_lib.Params, batch: PromptBatch, key: jax.Array
  ) -> tuple[Any, ...]:
    """Arguments of `sample`.

    Args:
      trainable: Trees of the roles that are trained.
      batch: Prompts `[B, P]`, on the mesh.
      key: Key of the iteration.
    """
    prompts = batch.tokens, batch.lengths, batch.index
    return trainable["policy"], self.base, *prompts, key

  def responses(
    self, samples: Samples, longest: int | None = None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sampled tokens, mask and log-probs by prompt, `[B, G, T]` each.

    Args:
      samples: Responses, `[B * G, S]`.
      longest: Tokens of the longest one. `T` is the first of
        `settings.buckets` that has room for it; None is `S`, and so is any if
        each microbatch has its own.
    """
    room = samples.tokens.shape[-1]
    if longest is not None and not self.settings.by_length:
      room = next(n for n in self.settings.buckets if n >= longest)
    shape = (-1, self.settings.estimator.group, samples.tokens.shape[-1])
    return tuple(
      array.reshape(shape)[..., :room]
      for array in (samples.tokens, samples.mask, samples.logprobs)
    )

  def score_args(
    self,
    trainable: params_lib.Params,
    batch: PromptBatch,
    responses: tuple[jax.Array, ...],
  ) -> tuple[Any, ...]:
    """Arguments of `score`; `responses` as `responses` returns them."""
    estimator = self.settings.estimator
    trees, bases = {"anchor": self.anchor.trainable}, {"": self.base}
    if estimator.needs_measures:
      trees["policy"] = trainable["policy"]
      if estimator.uses_value:
        trees["value"] = trainable["value"]
    if self.reward is not None:
      trees["reward"] = self.reward.trainable
      if self.reward.frozen is not self.base:
        bases["reward"] = self.reward.frozen
    tokens, mask, _ = responses
    return trees, bases, batch.tokens, batch.lengths, tokens, mask

  def experience(
    self,
    batch: PromptBatch,
    responses: tuple[jax.Array, ...],
    scores: dict[str, jax.Array],
    rewards: jax.Array,
    beta: jax.Array,
  ) -> steps.Experience:
    """What is learned from, before `prepare`.

    Args:
      batch: Prompts `[B, P]`.
      responses: Tokens, mask and log-probs, `[B, G, T]` each.
      scores: Arrays by name, of the shapes in `scoring.make_scores`.
      rewards: Rewards of the responses, `[B * G]`, float32.
      beta: Weight of the KL, a float32 scalar.
    """
    tokens, mask, sampled = responses
    shape = tokens.shape[:2]
    return steps.Experience(
      batch.tokens,
      batch.lengths,
      tokens,
      mask,
      sampled_logprobs=sampled,
      anchor_logprobs=scores["anchor"],
      rewards=rewards.reshape(shape),
      # Sharded as the rows are, which a broadcast scalar would not be.
      beta=jnp.full_like(batch.lengths, beta, dtype=jnp.float32),
      policy_logprobs=scores.get("policy"),
      values=scores.get("value"),
    )

  def frozen(self) -> steps.Frozen:
    """What `learn` reads and does not change."""
    exact = self.settings.estimator.kl == "exact"
    return steps.Frozen(self.base, self.anchor.trainable if exact else {})

  def cache(self, prompts: int, prompt_len: int) -> Any:
    """The KV cache of `sample`, as abstract arrays.

    Args:
      prompts: Prompts in a batch, `B`.
      prompt_len: Tokens of a padded prompt, `P`.
    """
    spec = self.settings.rollout
    if 0 < spec.slots < prompts * spec.group:
      prompts = spec.slots // spec.group
    length = prompt_len + spec.group * spec.response_len
    config = self.anchor.backbone.config
    return jax.eval_shape(lambda: kv_cache.init_cache(config, prompts, length))


def build(
  settings: RLSettings,
  anchor: roles.Role,
  reward: roles.Role | None,
  learn: Compiled | None = None,
) -> IterationPrograms:
  """The functions of an iteration; each compiles when it is first called.

  Roles whose adapters run on one base, the reward model's included where it
  shares the policy's, go through it in one pass.

  Args:
    settings: Settings of the run.
    anchor: The policy that the run starts from.
    reward: The reward model, or None if the reward is a function alone.
    learn: The training step of several members; None makes that of one run.
  """
  backbone, estimator = anchor.backbone, settings.estimator
  temperature = settings.rollout.temperature
  engine = engine_lib.Engine(backbone, settings.sampling, reward)
  sample = engine.sample
  if settings.rollout != settings.sampling:
    sample = engine_lib.compiled_sampler(
      backbone, settings.rollout, name="rollout"
    )
  together = ()
  if anchor.frozen:
    together = ("anchor", "policy", "value")
    if reward is not None and reward.shares_pass(anchor):
      together += ("reward",)
  score = scoring.make_scores(
    backbone,
    temperature=temperature,
    together=together,
    reward_backbone=reward.backbone if reward else None,
    members=reward.members if reward else 1,
    closing=reward.closing if reward else None,
    microbatches=settings.score_microbatches,
    buckets=settings.buckets if settings.by_length else (),
  )
  prepare = None
  if estimator.needs_measures:
    prepare = Compiled(
      functools.partial(steps.prepare, estimator), name="advantages"
    )
  if learn is None:
    step = make_learn(settings, backbone)
    learn = Compiled(step, name="rl step", donate=(0,))
  return IterationPrograms(
    settings=settings,
    anchor=anchor,
    reward=reward,
    engine=engine,
    sample=sample,
    score=Compiled(score, name="scores"),
    prepare=prepare,
    learn=learn,
  )


def make_learn(
  settings: RLSettings,
  backbone: roles.Backbone,
  change: Callable[[steps.LossFn], steps.LossFn] = lambda loss: loss,
) -> Callable[..., Any]:
  """The training step, `step(state, frozen, experience, key)`.

  Args:
    settings: Settings of the run.
    backbone: Model and adapter shape.
    change: Makes of the loss what is minimised.
  """
  temperature = settings.rollout.temperature
  loss = steps.policy_loss(
    backbone, settings.estimator, temperature=temperature
  )
  return steps.make_train_step(
    change(loss),
    settings.optimizer.transformation,
    microbatches=settings.microbatches,
    lengths=steps.lengths_of(settings.buckets) if settings.by_length else None,
  )

"""Builds the compiled functions of an RL iteration."""

import dataclasses
import functools

import optax

from perl_jax import scoring, steps
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.rollouts import rewards
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class Functions:
  """The compiled functions of an iteration.

  Attributes:
    sample: Of `sampling.make_sampler`, with (trainable, frozen) for params.
    score: `rollout.make_scores`.
    prepare: `steps.prepare` with its estimator; None if the loss does it.
    learn: `steps.make_train_step` of `steps.policy_loss`.
  """

  sample: Compiled
  score: Compiled
  prepare: Compiled | None
  learn: Compiled

  @property
  def compiled(self) -> tuple[Compiled, ...]:
    """All of them, for what they cost."""
    found = (self.sample, self.score, self.prepare, self.learn)
    return tuple(f for f in found if f is not None)


def make_functions(
  config: shared.Config,
  estimator: steps.Estimator,
  optimizer: optax.GradientTransformation,
  engine: engine_lib.Engine,
  model: rewards.Model | None,
  *,
  on_base: bool,
) -> Functions:
  """Compiles, when first called, what an iteration runs.

  Args:
    config: Of the RL stage.
    estimator: What is learned by.
    optimizer: Of the roles that are trained.
    engine: Of the judge; what it has in common is compiled once.
    model: The reward model, if there is one.
    on_base: Whether the roles are adapters on one base, so that they go
      through it together.
  """
  backbone, spec = engine.backbone, engine.spec
  sample = engine.sample
  grown = rl_settings.rollout_spec(config, spec)
  if grown != spec:
    sample = engine_lib.compiled_sampler(backbone, grown)
  together = ()
  if on_base:
    together = ("anchor", "policy", "value")
    if model is not None and model.shares_pass(backbone):
      together += ("reward",)
  score = scoring.make_scores(
    backbone,
    temperature=spec.temperature,
    together=together,
    reward_backbone=model.backbone if model else None,
    members=model.members if model else 1,
    microbatches=config.score_microbatches,
  )
  prepare = None
  if estimator.needs_measures:
    prepare = Compiled(
      functools.partial(steps.prepare, estimator), name="advantages"
    )
  loss = steps.policy_loss(backbone, estimator, temperature=spec.temperature)
  learn = steps.make_train_step(
    loss, optimizer, microbatches=config.microbatches
  )
  return Functions(
    sample,
    Compiled(score, name="scores"),
    prepare,
    Compiled(learn, name="rl step", donate=(0,)),
  )

"""RL: the policy's adapter by policy gradient, with KL to the anchor.

The paper's estimator is REINFORCE with a learned LoRA value baseline; others
are one field away. One iteration: sample responses, score them (anchor, reward
model), learn. All four roles stand on one copy of the base.
"""

import time
from pathlib import Path

import jax
from absl import logging

from perl_jax import params as params_lib
from perl_jax import roles, sharding, steps
from perl_jax.data.sources import registry
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.initial import manifest
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.rollouts import build, iteration, rewards
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.settings import shared as shared_lib
from perl_jax.tasks.training import begin, inputs, loop
from perl_jax.tasks.training import workdir as workdir_lib


def run(config: shared_lib.Config, workdir: str | Path) -> dict[str, float]:
  """Trains to `config.steps`, resuming if need be; returns the summary."""
  started = time.perf_counter()
  mesh = shared_lib.make_mesh(config)
  rl_settings.check(config, mesh)
  estimator = rl_settings.estimator_of(config)
  optimizer = rl_settings.make_optimizer(config)
  with workdir_lib.preparing(config, workdir) as workdir:
    start = begin.start(config, "policy", workdir, "prompts", mesh)
    reward_cast = None
    if config.reward.init:
      reward_cast = initial_roles.load_reward(config, start, mesh)
      inputs.require_room(config, reward_cast.backbone.config.max_len)
    inputs.require_room(config, start.config.max_len)
    tokenization = begin.load_tokenizer(start)
    data = inputs.prompts(config, tokenization)
    function = rewards.function_of(config, data.rows)
    sampling_spec = shared_lib.sampling_spec(
      config, tokenization, **config.sampling.to_dict()
    )
    rl_settings.rollout_spec(config, sampling_spec)
    lora = shared_lib.lora_spec(config)
    policy, frozen = trainable_lib.trainable_of(
      start, lora=lora, tuning=config.tuning, seed=config.seed, head=""
    )
    trainable, trained = policy, ("policy",)
    if estimator.uses_value:
      value = initial_roles.initial_value(config, start, reward_cast, lora)
      trainable, trained = (
        {"policy": policy, "value": value},
        (*trained, "value"),
      )
    manifest.write_model(
      workdir,
      start,
      lora=lora,
      tuning=config.tuning,
      trained=trained,
      init=config.policy.to_dict(),
    )
  inputs.log_counts(data.counts)
  summary = shared_lib.share(policy, frozen)
  if estimator.uses_value:
    summary["value_parameters"] = params_lib.count(value)
  logging.info("rl: %s", summary)

  with jax.set_mesh(mesh):
    # With full tuning the reward model may still stand on the base: it is then
    # placed for it alone.
    shared = reward_cast is not None and reward_cast.shares_base
    base = sharding.place(
      mesh, start.base if frozen or shared else {}, share=True
    )
    model = rewards.place_model(mesh, reward_cast, base)
    frozen = base if frozen else {}
    anchor = engine_lib.Role(sharding.place(mesh, policy), frozen)
    backbone = roles.Backbone(start.config, lora)
    state = steps.init_state(
      sharding.place(mesh, trainable), optimizer, beta=config.beta
    )
    state = sharding.place(mesh, state)
    del start, policy, trainable
    key = jax.random.fold_in(jax.random.key(config.seed), 5)
    engine = engine_lib.Engine(
      backbone,
      sampling_spec,
      model.backbone if model else None,
      model.members if model else 1,
    )
    reward = rewards.Rewarder(
      model,
      engine.rewards,
      function,
      unstopped_penalty=config.unstopped_penalty,
      tokenization=tokenization,
      mesh=mesh,
      **rl_settings.reward_options(config),
    )
    judge = policy_evaluation.PolicyJudge(
      engine,
      mesh=mesh,
      batches=data.validation,
      rows=data.rows,
      tokenization=tokenization,
      checker=registry.checker(config.data.name),
      key=jax.random.fold_in(key, 0),
    )
    functions = build.make_functions(
      config, estimator, optimizer, engine, model, on_base=bool(frozen)
    )

    with loop.open_run(
      config,
      workdir,
      state,
      name="rl",
      best=("validation/reward", "max"),
      show=("rollout/reward", "rollout/kl", "validation/reward"),
    ) as opened:
      resumed, writer = opened.resumed, opened.writer

      def role_of(state):
        trained = steps.policy_of(estimator, state.trainable)
        return engine_lib.Role(trained, frozen)

      # A fresh policy is judged as itself, so that the KL proves something.
      first = anchor if resumed else role_of(opened.state)
      before, before_rows = judge(first, anchor, reward)
      if before["kl"] != 0.0:
        raise ValueError(
          f"KL of the policy to its own start is {before['kl']}, not 0."
        )
      reward.shift = before["reward"] if config.center_reward else 0.0
      iterate = iteration.Iteration(
        estimator,
        functions,
        mesh=mesh,
        base=frozen,
        anchor=anchor.trainable,
        reward=reward,
        rows=data.train_rows,
        key=key,
        control=iteration.Control(config.kl.target, config.kl.horizon),
      )
      if not resumed:
        writer.write(0, {f"validation/{k}": v for k, v in before.items()})

      def evaluate(state, step):
        found, rows = judge(role_of(state), anchor, reward)
        shown = policy_evaluation.side_by_side(before_rows, rows)
        writer.samples(step, shown[: config.eval.samples])
        return {f"validation/{k}": v for k, v in found.items()}

      _, evaluated = opened.train(
        batches=data.train, update=iterate, evaluate=evaluate
      )
      compiled = {*engine.compiled, *functions.compiled}
      summary |= policy_evaluation.compare(before, evaluated) | {
        "seconds": time.perf_counter() - started,
        "seconds_compiling": sum(f.compile_seconds for f in compiled),
        "peak_bytes": max(f.peak_bytes for f in compiled),
      }
      writer.summary(summary)
  return summary

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
from perl_jax.data import sources
from perl_jax.tasks import (
  casting,
  estimating,
  inputs,
  iteration,
  judging,
  loop,
  rewarding,
  setup,
  stage,
)
from perl_jax.tasks import start as start_lib


def run(config: setup.Config, workdir: str | Path) -> dict[str, float]:
  """Trains to `config.steps`, resuming if need be; returns the summary."""
  started = time.perf_counter()
  mesh = setup.make_mesh(config)
  estimating.check(config, mesh)
  estimator = estimating.estimator_of(config)
  optimizer = estimating.make_optimizer(config)
  with setup.preparing(config, workdir) as workdir:
    start = inputs.start(config, "policy", workdir, "prompts", mesh)
    reward_cast = None
    if config.reward.init:
      reward_cast = casting.load_reward(config, start, mesh)
      inputs.require_room(config, reward_cast.backbone.config.max_len)
    inputs.require_room(config, start.config.max_len)
    tokenization = inputs.load_tokenizer(start)
    data = inputs.prompts(config, tokenization)
    function = rewarding.function_of(config, data.rows)
    sampling_spec = casting.sampling_spec(
      config, tokenization, **config.sampling.to_dict()
    )
    estimating.rollout_spec(config, sampling_spec)
    lora = setup.lora_spec(config)
    policy, frozen = start_lib.trainable_of(
      start, lora=lora, tuning=config.tuning, seed=config.seed, head=""
    )
    trainable, trained = policy, ("policy",)
    if estimator.uses_value:
      value = estimating.initial_value(config, start, reward_cast, lora)
      trainable, trained = (
        {"policy": policy, "value": value},
        (*trained, "value"),
      )
    stage.write_model(
      workdir,
      start,
      lora=lora,
      tuning=config.tuning,
      trained=trained,
      init=config.policy.to_dict(),
    )
  inputs.log_counts(data.counts)
  summary = setup.share(policy, frozen)
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
    model = rewarding.place_model(mesh, reward_cast, base)
    frozen = base if frozen else {}
    anchor = judging.Role(sharding.place(mesh, policy), frozen)
    backbone = roles.Backbone(start.config, lora)
    state = steps.init_state(
      sharding.place(mesh, trainable), optimizer, beta=config.beta
    )
    state = sharding.place(mesh, state)
    del start, policy, trainable
    key = jax.random.fold_in(jax.random.key(config.seed), 5)
    engine = judging.Engine(
      backbone,
      sampling_spec,
      model.backbone if model else None,
      model.members if model else 1,
    )
    reward = rewarding.Rewarder(
      model,
      engine.rewards,
      function,
      unstopped_penalty=config.unstopped_penalty,
      tokenization=tokenization,
      mesh=mesh,
      **rewarding.options(config),
    )
    judge = judging.PolicyJudge(
      engine,
      mesh=mesh,
      batches=data.validation,
      rows=data.rows,
      tokenization=tokenization,
      checker=sources.checker(config.data.name),
      key=jax.random.fold_in(key, 0),
    )
    functions = iteration.make_functions(
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
        return judging.Role(trained, frozen)

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
        shown = judging.side_by_side(before_rows, rows)
        writer.samples(step, shown[: config.eval.samples])
        return {f"validation/{k}": v for k, v in found.items()}

      _, evaluated = opened.train(
        batches=data.train, update=iterate, evaluate=evaluate
      )
      compiled = {*engine.compiled, *functions.compiled}
      summary |= judging.compare(before, evaluated) | {
        "seconds": time.perf_counter() - started,
        "seconds_compiling": sum(f.compile_seconds for f in compiled),
        "peak_bytes": max(f.peak_bytes for f in compiled),
      }
      writer.summary(summary)
  return summary

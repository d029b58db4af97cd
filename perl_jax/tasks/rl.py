"""The paper's RL: REINFORCE with a learned LoRA value baseline, KL to anchor.

One iteration: sample responses, score them (policy and anchor log-probs, the
reward model), learn. All four roles stand on one copy of the base.
"""

import dataclasses
import time
from pathlib import Path

import jax
import optax
from absl import logging

from perl_jax import params as params_lib
from perl_jax import roles, sharding, steps
from perl_jax.data import sources
from perl_jax.tasks import (
  casting,
  inputs,
  iteration,
  judging,
  loop,
  rewarding,
  setup,
  stage,
)
from perl_jax.tasks import start as start_lib
from perl_jax.tasks.compiled import Compiled


def run(config: setup.Config, workdir: str | Path) -> dict[str, float]:
  """Trains to `config.steps`, resuming if need be; returns the summary."""
  started = time.perf_counter()
  mesh, optimizer = setup.make_mesh(config), make_optimizer(config)
  check(config, mesh)
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
    lora = setup.lora_spec(config)
    policy, frozen = start_lib.trainable_of(
      start, lora=lora, tuning=config.tuning, seed=config.seed, head=""
    )
    value = initial_value(config, start, reward_cast, lora)
    stage.write_model(
      workdir,
      start,
      lora=lora,
      tuning=config.tuning,
      trained=("policy", "value"),
      init=config.policy.to_dict(),
    )
  inputs.log_counts(data.counts)
  summary = setup.share(policy, frozen)
  summary["value_parameters"] = params_lib.count(value)
  logging.info("rl: %s", summary)

  with jax.set_mesh(mesh):
    # With full tuning the reward model may still stand on the base: it is then
    # placed for it alone.
    shared = reward_cast is not None and reward_cast.shares_base
    base = sharding.place(
      mesh, start.base if frozen or shared else {}, share=True
    )
    frozen = base if frozen else {}
    anchor = judging.Role(sharding.place(mesh, policy), frozen)
    model = rewarding.place_model(mesh, reward_cast, base)
    backbone = roles.Backbone(start.config, lora)
    state = steps.init_state(
      sharding.place(mesh, {"policy": policy, "value": value}), optimizer
    )
    state = sharding.place(mesh, state)
    del start, policy, value
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
    checker = sources.checker(config.data.name)
    judge = judging.PolicyJudge(
      engine,
      mesh=mesh,
      batches=data.validation,
      rows=data.rows,
      tokenization=tokenization,
      checker=checker,
      key=jax.random.fold_in(key, 0),
    )
    learn = Compiled(
      steps.make_train_step(
        steps.reinforce_loss(
          backbone,
          temperature=config.sampling.temperature,
          beta=config.beta,
          value_coef=config.value_coef,
          reduction=config.reduction,
        ),
        optimizer,
        microbatches=config.microbatches,
      ),
      name="rl step",
      donate=(0,),
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
      # A fresh policy is judged as itself, so that the KL proves something.
      first = judging.Role(opened.state.trainable["policy"], frozen)
      before, before_rows = judge(anchor if resumed else first, anchor, reward)
      if before["kl"] != 0.0:
        raise ValueError(
          f"KL of the policy to its own start is {before['kl']}, not 0."
        )
      reward.shift = before["reward"] if config.center_reward else 0.0
      iterate = iteration.make_iteration(
        mesh, engine, learn, anchor, reward, frozen, key, data.train_rows
      )
      if not resumed:
        writer.write(0, {f"validation/{k}": v for k, v in before.items()})

      def evaluate(state, step):
        role = judging.Role(state.trainable["policy"], frozen)
        found, rows = judge(role, anchor, reward)
        shown = judging.side_by_side(before_rows, rows)
        writer.samples(step, shown[: config.eval.samples])
        return {f"validation/{k}": v for k, v in found.items()}

      _, evaluated = opened.train(
        batches=data.train, update=iterate, evaluate=evaluate
      )
      summary |= compare(before, evaluated) | {
        "seconds": time.perf_counter() - started,
        "seconds_compiling": sum(
          f.compile_seconds for f in (*engine.compiled, learn)
        ),
        "peak_bytes": max(f.peak_bytes for f in (*engine.compiled, learn)),
      }
      writer.summary(summary)
  return summary


def check(config: setup.Config, mesh: jax.sharding.Mesh) -> None:
  """Checks what only RL asks for.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  setup.check_counts(config, mesh)
  rewarding.check(config)
  if not config.reward.init and not config.reward.fn:
    raise ValueError(
      "config.reward.init is empty, and config.reward.fn too: RL needs a reward"
      " model or function. Train one with configs/reward.py and give its"
      " workdir, or name a function 'package.module:function'."
    )
  if not 0.0 <= config.beta <= 1.0:
    raise ValueError(f"config.beta={config.beta} must be in [0, 1].")
  if config.sampling.top_k or config.sampling.top_p < 1.0:
    raise ValueError(
      f"config.sampling.top_k={config.sampling.top_k},"
      f" top_p={config.sampling.top_p}: the policy gradient is that of the"
      " sampled distribution, which these cut. Use top_k=0 and top_p=1; they"
      " are for evaluation."
    )
  if not 0 <= config.value.warmup_steps < config.steps:
    raise ValueError(
      f"config.value.warmup_steps={config.value.warmup_steps} must be in [0,"
      f" config.steps={config.steps}): the policy learns after them."
    )
  if config.reduction not in ("token", "sequence"):
    raise ValueError(
      f"config.reduction={config.reduction!r}: choose 'token' or 'sequence'."
    )


def make_optimizer(config: setup.Config) -> optax.GradientTransformation:
  """A chain for each of the two roles: one's gradient never clips the other's.

  The value model has a learning rate of its own, and `value.warmup_steps`
  updates before the first of the policy: until it explains something of the
  returns, the policy's gradient is mostly that of the prompts' difficulty.
  """
  value = config.value
  policy = setup.make_optimizer(config, delay_steps=value.warmup_steps)
  own = setup.make_optimizer(config, learning_rate=value.learning_rate)
  roles_ = {"policy": policy, "value": own}
  return optax.partition(roles_, {name: name for name in roles_})


def initial_value(config, start, reward_cast, lora):
  """Adapter and head that the value model starts from.

  "policy": the policy's start with a head of zeros, as in the paper.
  "reward": the reward model's adapter and head.
  """
  if config.value.init == "policy":
    trainable, _ = start_lib.trainable_of(
      dataclasses.replace(start, head=None),
      lora=lora,
      tuning=config.tuning,
      seed=config.seed + 1,
      head="scalar",
    )
    return trainable
  if config.value.init != "reward":
    raise ValueError(
      f"config.value.init={config.value.init!r}: choose 'policy' or 'reward'."
    )
  if reward_cast is None:
    raise ValueError(
      "config.value.init='reward' needs a reward model, but config.reward.init"
      " is empty. Set config.value.init='policy'."
    )
  if reward_cast.members > 1:
    raise ValueError(
      "config.value.init='reward' needs one reward model, but"
      f" config.reward.init holds {reward_cast.members}. Set"
      " config.value.init='policy'."
    )
  if config.tuning == "lora" and not reward_cast.shares_base:
    raise ValueError(
      "config.value.init='reward' needs a reward model on the policy's base,"
      " where the value model stands; config.reward.init has another. Set"
      " config.value.init='policy'."
    )
  if config.tuning == "lora" and not lora.fits(reward_cast.backbone.lora):
    raise ValueError(
      "config.value.init='reward' needs a reward model with the policy's"
      f" lora {lora}; it has {reward_cast.backbone.lora}."
    )
  head = dict(reward_cast.trainable[params_lib.HEAD])
  head.pop("likelihood", None)  # a state has no response to be likely
  return dict(reward_cast.trainable) | {params_lib.HEAD: head}


def compare(before, evaluated) -> dict[str, float]:
  """{"reward_before", "reward_after", ...}, KL once, and the KL at step 0."""
  after = {k.removeprefix("validation/"): v for k, v in evaluated.items()}
  summary = {
    "kl": after["kl"],
    "kl_per_token": after["kl_per_token"],
    "kl_at_step_0": before["kl"],
  }
  for name in after:
    if name not in summary:
      summary[f"{name}_before"] = before[name]
      summary[f"{name}_after"] = after[name]
  return summary

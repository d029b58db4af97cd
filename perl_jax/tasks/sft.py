"""Supervised fine-tuning: trains the anchor on demonstrations.

With tuning="full" what comes out is a base of its own; with tuning="lora" an
adapter, which the policy then starts from and the anchor keeps.
"""

import time
from pathlib import Path

import jax
import optax
from absl import logging

from perl_jax import hosts, roles, sharding, steps
from perl_jax.data.sources import registry
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.initial import manifest
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.rollouts import engine as engine_lib
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import begin, inputs, loop
from perl_jax.tasks.training import workdir as workdir_lib
from perl_jax.tasks.training.compiled import Compiled


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Trains to `config.steps`, resuming if need be; returns the summary."""
  started = time.perf_counter()
  mesh, optimizer = shared.make_mesh(config), shared.make_optimizer(config)
  shared.check_counts(config, mesh)
  with workdir_lib.preparing(config, workdir) as workdir:
    start = begin.start(config, "policy", workdir, "demonstrations", mesh)
    inputs.require_room(config, start.config.max_len)
    tokenization = begin.load_tokenizer(start)
    data = inputs.targets(config, tokenization)
    # Read now: what is wrong with them should not be said after the training.
    prompts = None
    if config.eval.rows:
      prompts = inputs.prompts(config, tokenization, train=False)
    sampling_spec = shared.sampling_spec(
      config,
      tokenization,
      temperature=config.eval.temperature,
      greedy=config.eval.greedy,
    )
    lora = shared.lora_spec(config)
    trainable, frozen = trainable_lib.trainable_of(
      start, lora=lora, tuning=config.tuning, seed=config.seed, head=""
    )
    manifest.write_model(
      workdir,
      start,
      lora=lora,
      tuning=config.tuning,
      trained=("policy",),
      init=config.policy.to_dict(),
    )
  inputs.log_counts(data.counts)
  summary = shared.share(trainable, frozen)
  logging.info("sft: %s", summary)

  with jax.set_mesh(mesh):
    backbone = roles.Backbone(start.config, lora)
    frozen = sharding.place(mesh, frozen, share=True)
    state = steps.init_state(sharding.place(mesh, trainable), optimizer)
    state = sharding.place(mesh, state)
    del start, trainable
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    train_step = make_train_step(config, backbone, optimizer, data.max_targets)
    eval_step = Compiled(
      steps.language_model_loss(backbone, max_targets=data.max_targets),
      name="sft evaluation",
    )

    def update(state, batch, step):
      batch = sharding.place_batch(mesh, batch)
      state, found = train_step(
        state, frozen, batch, jax.random.fold_in(key, step)
      )
      return state, {f"train/{k}": v for k, v in found.items()}

    with loop.open_run(
      config,
      workdir,
      state,
      name="sft",
      best=("validation/loss", "min"),
      show=("train/loss", "validation/loss", "train/accuracy"),
    ) as opened:

      def evaluate(state, step):
        found = evaluate_loss(
          eval_step, state.trainable, frozen, data.validation(), mesh
        )
        if prompts is not None and step == config.steps:
          role = engine_lib.Role(state.trainable, frozen)
          engine = engine_lib.Engine(backbone, sampling_spec, None)
          judged, samples = judge(
            config, engine, role, tokenization, prompts, mesh
          )
          opened.writer.samples(step, samples)
          found |= {f"validation/{k}": v for k, v in judged.items()}
        return found

      _, evaluated = opened.train(
        batches=data.train, update=update, evaluate=evaluate
      )
      summary |= _plain(evaluated) | {
        "seconds": time.perf_counter() - started,
        "seconds_compiling": train_step.compile_seconds,
        "peak_bytes": train_step.peak_bytes,
      }
      opened.writer.summary(summary)
  return summary


def make_train_step(
  config: shared.Config,
  backbone: roles.Backbone,
  optimizer: optax.GradientTransformation,
  max_targets: int,
) -> Compiled:
  """The step that is trained by: `step(state, frozen, batch, key)`."""
  loss = steps.language_model_loss(backbone, max_targets=max_targets)
  step = steps.make_train_step(
    loss, optimizer, microbatches=config.microbatches
  )
  return Compiled(step, name="sft step", donate=(0,))


def evaluate_loss(eval_step, trainable, frozen, batches, mesh):
  """Loss and token accuracy over all validation targets."""
  totals: dict[str, list[float]] = {}
  key = None
  for batch in batches:
    batch = sharding.place_batch(mesh, batch)
    sums = hosts.to_host(eval_step(trainable, frozen, batch, key))
    for name, (total, count) in sums.items():
      entry = totals.setdefault(name, [0.0, 0.0])
      entry[0] += float(total)
      entry[1] += float(count)
  return {
    f"validation/{name}": total / max(count, 1.0)
    for name, (total, count) in totals.items()
  }


def judge(config, engine, role, tokenization, prompts, mesh):
  """Samples the trained model on held-out prompts, against itself as anchor."""
  judge_policy = policy_evaluation.PolicyJudge(
    engine,
    mesh=mesh,
    batches=prompts.validation,
    rows=prompts.rows,
    tokenization=tokenization,
    checker=registry.checker(config.data.name),
    key=jax.random.fold_in(jax.random.key(config.seed), 3),
  )
  found, rows = judge_policy(role, role, None)
  for name in ("kl", "kl_per_token"):
    del found[name]
  samples = [
    {k: row[k] for k in ("prompt", "reference", "response")} for row in rows
  ]
  return found, samples[: config.eval.samples]


def _plain(metrics):
  return {k.removeprefix("validation/"): v for k, v in metrics.items()}

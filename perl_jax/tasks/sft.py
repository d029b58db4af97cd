"""Supervised fine-tuning: trains the anchor on demonstrations.

With tuning="full" what comes out is a base of its own; with tuning="lora" an
adapter, which the policy then starts from and the anchor keeps.
"""

import time
from pathlib import Path

import jax

from perl_jax import hosts, roles, sharding, steps
from perl_jax.data.batches import demonstrations
from perl_jax.tasks.dry_run.abstract import AbstractStage
from perl_jax.tasks.dry_run.programs import StagePrograms
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.rollouts.engine import Engine
from perl_jax.tasks.settings import members, shared, streams
from perl_jax.tasks.training import begin, inputs, loop, standing, together
from perl_jax.tasks.training import workdir as workdir_lib
from perl_jax.tasks.training.compiled import Compiled


def stage(
  config: shared.Config,
  workdir: str | Path,
  member: together.Member = together.ALONE,
) -> together.Requests[dict[str, float]]:
  """Trains to `config.steps`, resuming if need be; see `together`."""
  started = time.perf_counter()
  mesh, optimizer = shared.make_mesh(config), shared.make_optimizer(config)
  shared.check_counts(config, mesh)
  shared.require_backbone(config, "policy")
  with workdir_lib.preparing(config, workdir) as workdir:
    start, tokenization = begin.start(
      config, "policy", workdir, "demonstrations", mesh, member
    )
    data = begin.read(
      config, member, lambda: inputs.targets(config, tokenization)
    )
    # Read now: what is wrong with them should not be said after the training.
    prompts = None
    if config.eval.rows and inputs.have_prompts(data.rows):
      prompts = inputs.read(config, tokenization, "prompts", train=False)
    spec = shared.evaluation_spec(config, tokenization)
    read = [data] if prompts is None else [data, prompts]
    stands_on = standing.of_run(config, start, tokenization, read)
    prepared = begin.prepare(config, workdir, start, "policy", stands_on)
  inputs.log_counts(data.counts)
  max_targets = yield together.Most(data.max_targets)

  with jax.set_mesh(mesh):
    backbone, summary = prepared.role.backbone, prepared.summary
    frozen = prepared.base(mesh, member)
    state = prepared.state(mesh, optimizer)
    del start, prepared
    key = streams.key_of(config.seed, streams.Stream.SFT)
    train_step = make_train_step(config, backbone, max_targets, member)
    eval_step = member.once(
      ("evaluation", backbone),
      lambda: Compiled(
        steps.language_model_loss(backbone, max_targets=max_targets),
        name="sft evaluation",
      ),
    )
    engine = member.once(("engine", backbone), lambda: Engine(backbone, spec))

    with loop.open_run(
      config,
      workdir,
      mesh,
      state,
      started=started,
      stands_on=stands_on.digests,
      best=("validation/loss", "min"),
      show=("train/loss", "validation/loss", "train/accuracy"),
      member=member,
    ) as opened:

      def evaluate(state, step):
        held_out = data.held_out("scoring held-out dialogues")
        found = evaluate_loss(
          eval_step, state.trainable, frozen, held_out, mesh
        )
        if prompts is not None and step == config.steps:
          policy = roles.Role(backbone, state.trainable["policy"], frozen)
          evaluated, samples = sample_policy(
            config, engine, policy, tokenization, prompts, mesh
          )
          opened.writer.samples(step, samples)
          found |= {f"validation/{k}": v for k, v in evaluated.items()}
        return found

      _, evaluated = yield from opened.train(
        batches=data.train,
        update=loop.make_update(mesh, train_step, frozen, key),
        evaluate=evaluate,
        optimizer=optimizer,
        compiled=(train_step, eval_step, *engine.compiled),
        flops_of=(train_step,),
        costs_of=(train_step,),
      )
      summary |= {
        k.removeprefix("validation/"): v for k, v in evaluated.items()
      }
      summary = opened.finish(summary)
  return summary


def programs(abstract: AbstractStage) -> StagePrograms:
  """The program of a training step, from abstract arrays."""
  config, optimizer = abstract.config, shared.make_optimizer(abstract.config)
  policy = abstract.role()
  length = config.data.max_len
  batch = abstract.host_batch(
    demonstrations.collate_targets([], length, config.batch_size)
  )
  step = make_train_step(
    config,
    policy.backbone,
    abstract.max_targets or length,
    abstract.member(),
  )
  return abstract.one_step("policy", policy, optimizer, step, batch)


def make_train_step(
  config: shared.Config,
  backbone: roles.Backbone,
  max_targets: int,
  member: together.Member = together.ALONE,
) -> Compiled:
  """The training step, `step(state, frozen, batch, key)`; see `Member.step`.

  `max_targets` is at least the number of targets of any packed row.
  """

  def make(values):
    loss = steps.language_model_loss(backbone, max_targets=max_targets)
    return steps.make_train_step(
      members.with_alpha(config, values, loss),
      shared.make_optimizer(config, values=values).transformation,
      microbatches=config.microbatches,
    )

  return member.step(make, name="sft step")


def evaluate_loss(eval_step, trainable, frozen, batches, mesh):
  """Loss in nats per token and token accuracy over all validation targets."""
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


def sample_policy(config, engine, policy, tokenization, prompts, mesh):
  """(metrics, samples) of the trained model on held-out prompts."""
  evaluate = policy_evaluation.evaluator(
    config,
    engine,
    mesh=mesh,
    data=prompts,
    tokenization=tokenization,
    key=streams.key_of(config.seed, streams.Stream.SFT_EVALUATION),
  )
  found, rows = evaluate(policy, policy, None)
  for name in ("kl", "kl_per_token"):  # it has no anchor
    del found[name]
  samples = [
    {k: row[k] for k in ("prompt", "reference", "response")} for row in rows
  ]
  return found, samples[: config.eval.samples]

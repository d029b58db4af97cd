"""Direct preference optimisation: the policy learns from pairs, without RL.

Policy and anchor share one copy of the base, as in RL; there is no reward
model and no value model. The trained policy is evaluated on the held-out
prompts of RL, sampled with the same keys, so that the two can be compared.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from perl_jax import classification, roles, steps
from perl_jax import params as params_lib
from perl_jax.objectives import preference
from perl_jax.tasks.dry_run import abstract as abstract_lib
from perl_jax.tasks.dry_run.programs import Program, StagePrograms
from perl_jax.tasks.evaluation import anchor_rows, warnings
from perl_jax.tasks.evaluation import anchored as anchored_lib
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.evaluation import shown as shown_lib
from perl_jax.tasks.rollouts.engine import Engine
from perl_jax.tasks.settings import members, shared, streams
from perl_jax.tasks.training import (
  batching,
  begin,
  inputs,
  loop,
  standing,
  together,
)
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
  check(config, mesh)
  shared.require_backbone(config, "policy")
  with workdir_lib.preparing(config, workdir) as workdir:
    start, tokenization = begin.start(
      config, "policy", workdir, "preferences", mesh, member
    )
    packing = batching.Packing.of(start.config, targets=True)
    data = begin.read(
      config,
      member,
      lambda: inputs.read(config, tokenization, "preferences", packing=packing),
    )
    prompts = inputs.read(config, tokenization, "prompts", train=False)
    spec = shared.evaluation_spec(config, tokenization)
    stands_on = standing.of_run(config, start, tokenization, (data, prompts))
    prepared = begin.prepare(config, workdir, start, "policy", stands_on)
  inputs.log_counts(data.counts)
  max_response = yield together.Most(data.max_targets)

  with jax.set_mesh(mesh):
    summary = prepared.summary
    # With LoRA the anchor is another adapter; with full tuning, a whole copy.
    anchor = prepared.placed(mesh, member)
    frozen, backbone = anchor.frozen, anchor.backbone
    state = prepared.state(mesh, optimizer)
    del start, prepared
    engine = member.once(("engine", backbone), lambda: Engine(backbone, spec))
    evaluate_policy = policy_evaluation.evaluator(
      config,
      engine,
      mesh=mesh,
      data=prompts,
      tokenization=tokenization,
      key=streams.policy_evaluation_key(config.seed),
    )
    logprobs, learn = make_functions(config, backbone, max_response, member)
    compiled = (*engine.compiled, logprobs, learn)
    key = streams.key_of(config.seed, streams.Stream.DPO)

    def policy_of(state):
      return roles.Role(backbone, state.trainable["policy"], frozen)

    with loop.open_run(
      config,
      workdir,
      mesh,
      state,
      started=started,
      stands_on=stands_on.digests,
      best=("validation/loss", "min"),
      show=("train/loss", "validation/accuracy", "validation/kl"),
      member=member,
    ) as opened:
      resumed, writer = opened.resumed, opened.writer
      first = anchor if resumed else policy_of(opened.state)
      with anchor_rows.kept(config, workdir, stands_on) as part:
        of = anchored_lib.Scoring(logprobs, anchor, data, mesh, member, part)
        with_anchor = anchored_lib.make_with_anchor(config, of)
        anchored = anchored_lib.score_anchor(of)
        before, before_rows = policy_evaluation.of_anchor(
          *(member, config.seed, evaluate_policy, first, anchor, None),
          part(anchor_rows.RESPONSES),
        )
      if not resumed:
        # The policy is its anchor, as was just seen: no pair is scored again.
        found = before | quality(anchored, anchored, config)
        writer.write(0, warnings.first_line(found, before_rows))

      def evaluate(state, step):
        found, rows = evaluate_policy(policy_of(state), anchor, None)
        shown = policy_evaluation.side_by_side(before_rows, rows)
        writer.samples(step, shown[: config.eval.samples])
        shown_lib.show_samples(config, shown, step)
        scored = anchored_lib.score_pairs(
          logprobs, policy_of(state), data, mesh
        )
        found |= quality(scored, anchored, config)
        return {f"validation/{k}": v for k, v in found.items()}

      _, evaluated = yield from opened.train(
        batches=data.train,
        update=loop.make_update(mesh, learn, frozen, key, with_anchor),
        evaluate=warnings.warned(evaluate, workdir, len(before_rows)),
        optimizer=optimizer,
        compiled=compiled,
        flops_of=(logprobs, learn),
      )
      summary |= summarise(before, evaluated)
      summary["best_step"] = opened.checkpointer.best_step
      summary = opened.finish(summary)
  return summary


def summarise(
  before: Mapping[str, float], evaluated: Mapping[str, float]
) -> dict[str, float]:
  """Metrics of the policy before and after, and of the pairs after.

  Args:
    before: Metrics of the policy at step 0 on held-out prompts.
    evaluated: Last evaluation, by "validation/...", that of pairs included.
  """
  after = {k.removeprefix("validation/"): v for k, v in evaluated.items()}
  found = policy_evaluation.compare(before, {k: after[k] for k in before})
  return found | {k: v for k, v in after.items() if k not in before}


def programs(abstract: abstract_lib.AbstractStage) -> StagePrograms:
  """The programs of a training step, from abstract arrays."""
  config, optimizer = abstract.config, shared.make_optimizer(abstract.config)
  policy = abstract.role()
  state = abstract.state({"policy": policy.trainable}, optimizer)
  logprobs, step = make_functions(
    config,
    policy.backbone,
    abstract.max_targets or config.data.response_len,
    abstract.member(),
  )
  held = abstract_lib.held_by(state, policy.frozen)
  held = abstract.of_all(held | {"anchor": policy.trainable})

  def programs():
    batch = abstract.responses("preferences", targets=True)
    args = policy.trainable, policy.frozen, batch
    pairs = steps.AnchoredPairs(batch, abstract.rows(logprobs.shapes(*args)))
    return [
      Program(
        "score", logprobs, args, abstract.uses("base", "anchor"), abstract.count
      ),
      Program(
        "learn",
        step,
        abstract.step_args(state, policy.frozen, pairs),
        ("base", "policy", "optimizer"),
      ),
    ]

  return StagePrograms("dpo", abstract.mesh, held, programs)


def make_functions(
  config: shared.Config,
  backbone: roles.Backbone,
  max_response: int,
  member: together.Member = together.ALONE,
) -> tuple[Compiled, Compiled]:
  """(`logprobs(trainable, frozen, pairs)`, the training step).

  `max_response` is at least the number of tokens of any response. See
  `Member.step` for the step.
  """

  def make(values):
    loss = steps.dpo_loss(
      backbone,
      max_response=max_response,
      beta=values.get("beta", config.beta),
      label_smoothing=config.label_smoothing,
      kind=config.loss,
    )
    return steps.make_train_step(
      members.with_alpha(config, values, loss),
      shared.make_optimizer(config, values=values).transformation,
      microbatches=config.microbatches,
    )

  logprobs = member.once(
    ("log-probs", backbone),
    lambda: Compiled(
      make_logprobs(backbone, max_response), name="dpo log-probs"
    ),
  )
  return logprobs, member.step(make, name="dpo step")


def check(config: shared.Config, mesh: jax.sharding.Mesh) -> None:
  """Checks the fields that only DPO has.

  Raises:
    ValueError: Names the field, the value and the way out.
  """
  shared.check_counts(config, mesh)
  if config.loss not in preference.DPO_KINDS:
    raise ValueError(
      f"config.loss={config.loss!r}: choose one of"
      f" {', '.join(preference.DPO_KINDS)}."
    )
  try:
    preference.require_dpo(
      beta=config.beta,
      label_smoothing=config.label_smoothing,
      kind=config.loss,
    )
  except ValueError as error:
    raise ValueError(f"config.{error}.") from error


def make_logprobs(backbone: roles.Backbone, max_response: int):
  """Returns `logprobs(trainable, frozen, pairs)`, for policy and anchor alike.

  One executable serves both, so that equal parameters give equal bits.
  """

  def logprobs(trainable, frozen, pairs):
    return roles.packed_logprobs(
      backbone,
      params_lib.combine(trainable, frozen),
      pairs,
      max_response=max_response,
    )

  return logprobs


def quality(
  policy: np.ndarray, anchor: np.ndarray, config: shared.Config
) -> dict[str, float]:
  """Means over held-out pairs, with the policy as an implicit reward model.

  `loss` is what is minimised, in nats per pair; the rest is of the implicit
  rewards, see `classification.preference_metrics`. Where `chosen_reward` falls,
  the chosen responses too have become less likely.

  Args:
    policy: Log-probs of the policy, `[2, n]`; from `anchored.score_pairs`.
    anchor: Log-probs of the anchor, `[2, n]`.
    config: Config of the stage.
  """
  loss, chosen, rejected = preference.dpo_loss(
    chosen_logprobs=policy[0],
    rejected_logprobs=policy[1],
    anchor_chosen_logprobs=anchor[0],
    anchor_rejected_logprobs=anchor[1],
    beta=config.beta,
    label_smoothing=config.label_smoothing,
    kind=config.loss,
  )
  loss, chosen, rejected = (np.asarray(x) for x in (loss, chosen, rejected))
  return classification.preference_metrics(chosen, rejected) | {
    "loss": float(loss.mean()),
    "chosen_reward": float(chosen.mean()),
    "rejected_reward": float(rejected.mean()),
  }

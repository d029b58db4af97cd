"""Direct preference optimisation: the policy learns from pairs, without RL.

Policy and anchor stand on one copy of the base, as in RL; there is no reward
model and no value model. What comes out is a policy like that of RL, judged on
the same held-out prompts with the same draws, so that the two can be compared.
"""

import time
from pathlib import Path

import jax
import numpy as np
import optax
from absl import logging

from perl_jax import classification, hosts, roles, sharding, steps
from perl_jax import params as params_lib
from perl_jax.data.sources import registry
from perl_jax.objectives import preference
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
  check(config, mesh)
  with workdir_lib.preparing(config, workdir) as workdir:
    start = begin.start(config, "policy", workdir, "preferences", mesh)
    inputs.require_room(config, start.config.max_len)
    tokenization = begin.load_tokenizer(start)
    data = inputs.preferences(config, tokenization)
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
  logging.info("dpo: %s", summary)

  with jax.set_mesh(mesh):
    frozen = sharding.place(mesh, frozen, share=True)
    # With LoRA the anchor is another adapter; with full tuning, a whole copy.
    anchor = engine_lib.Role(sharding.place(mesh, trainable), frozen)
    backbone = roles.Backbone(start.config, lora)
    state = steps.init_state(sharding.place(mesh, trainable), optimizer)
    state = sharding.place(mesh, state)
    del start, trainable
    engine = engine_lib.Engine(backbone, sampling_spec, None)
    judge = policy_evaluation.PolicyJudge(
      engine,
      mesh=mesh,
      batches=prompts.validation,
      rows=prompts.rows,
      tokenization=tokenization,
      checker=registry.checker(config.data.name),
      key=draws_of_rl(config.seed),
    )
    logprobs, learn = make_functions(
      config, backbone, optimizer, data.max_targets
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 7)

    def update(state, batch, step):
      batch = sharding.place_batch(mesh, batch)
      told = logprobs(anchor.trainable, anchor.frozen, batch)
      state, found = learn(
        state,
        frozen,
        steps.AnchoredPairs(batch, *told),
        jax.random.fold_in(key, step),
      )
      return state, {f"train/{k}": v for k, v in found.items()}

    with loop.open_run(
      config,
      workdir,
      state,
      name="dpo",
      best=("validation/loss", "min"),
      show=("train/loss", "validation/accuracy", "validation/kl"),
    ) as opened:
      resumed, writer = opened.resumed, opened.writer
      anchored = score_pairs(logprobs, anchor, data, mesh)
      # A fresh policy is judged as itself, so that the KL proves something.
      first = engine_lib.Role(opened.state.trainable, frozen)
      before, before_rows = judge(anchor if resumed else first, anchor, None)
      if before["kl"] != 0.0:
        raise ValueError(
          f"KL of the policy to its own start is {before['kl']}, not 0."
        )

      def on_pairs(role):
        scored = score_pairs(logprobs, role, data, mesh)
        return quality(scored, anchored, config)

      if not resumed:
        found = before | on_pairs(first)
        writer.write(0, {f"validation/{k}": v for k, v in found.items()})

      def evaluate(state, step):
        role = engine_lib.Role(state.trainable, frozen)
        judged, rows = judge(role, anchor, None)
        shown = policy_evaluation.side_by_side(before_rows, rows)
        writer.samples(step, shown[: config.eval.samples])
        found = judged | on_pairs(role)
        return {f"validation/{k}": v for k, v in found.items()}

      _, evaluated = opened.train(
        batches=data.train, update=update, evaluate=evaluate
      )
      after = {k.removeprefix("validation/"): v for k, v in evaluated.items()}
      summary |= policy_evaluation.compare(
        before, {k: after[k] for k in before}
      )
      summary |= {k: v for k, v in after.items() if k not in before}
      compiled = (*engine.compiled, logprobs, learn)
      summary |= {
        "best_step": opened.checkpointer.best_step,
        "seconds": time.perf_counter() - started,
        "seconds_compiling": sum(f.compile_seconds for f in compiled),
        "peak_bytes": max(f.peak_bytes for f in compiled),
      }
      writer.summary(summary)
  return summary


def make_functions(
  config: shared.Config,
  backbone: roles.Backbone,
  optimizer: optax.GradientTransformation,
  max_response: int,
) -> tuple[Compiled, Compiled]:
  """(`logprobs(trainable, frozen, pairs)`, the step that is trained by)."""
  loss = steps.dpo_loss(
    backbone,
    max_response=max_response,
    beta=config.beta,
    label_smoothing=config.label_smoothing,
    kind=config.loss,
  )
  step = steps.make_train_step(
    loss, optimizer, microbatches=config.microbatches
  )
  return (
    Compiled(make_logprobs(backbone, max_response), name="dpo log-probs"),
    Compiled(step, name="dpo step", donate=(0,)),
  )


def check(config: shared.Config, mesh: jax.sharding.Mesh) -> None:
  """Checks what only DPO asks for.

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


def draws_of_rl(seed: int) -> jax.Array:
  """The key with which an RL run of that seed judges its policy."""
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 5), 0)


def make_logprobs(backbone: roles.Backbone, max_response: int):
  """Returns `logprobs(trainable, frozen, pairs)`, of either role.

  One executable for both, so that equal parameters give equal bits.
  """

  def logprobs(trainable, frozen, pairs):
    return steps.pair_logprobs(
      backbone,
      params_lib.combine(trainable, frozen),
      pairs,
      max_response=max_response,
    )

  return logprobs


def score_pairs(logprobs, role, data, mesh) -> np.ndarray:
  """Log-probs of the held-out pairs, `[2, n]`: chosen, rejected."""
  found = {}
  for batch in data.validation():
    device = sharding.place_batch(mesh, batch)
    told = logprobs(role.trainable, role.frozen, device)
    batch, told = hosts.to_host((device, told))
    both = np.stack(told)
    for row in np.flatnonzero(batch.valid):
      found[int(batch.index[row])] = both[:, row]
  return np.stack([found[i] for i in sorted(found)], axis=1)


def quality(
  policy: np.ndarray, anchor: np.ndarray, config: shared.Config
) -> dict[str, float]:
  """The policy as a reward model of its own: of held-out pairs, means.

  `loss` is what is minimised; the rest is of the implicit rewards, see
  `classification.preference_metrics`. Where `chosen_reward` falls, the chosen
  responses too have become less likely.
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

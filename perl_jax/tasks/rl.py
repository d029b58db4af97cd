"""RL: the policy's adapter by policy gradient, with KL to the anchor.

The paper's estimator is REINFORCE with a learned LoRA value baseline; others
are one field away. One iteration: sample responses, score them (anchor, reward
model), learn. All four roles share one copy of the base.
"""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from perl_jax import params as params_lib
from perl_jax import roles, sharding, steps
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks.dry_run import abstract as abstract_lib
from perl_jax.tasks.dry_run.programs import Program, StagePrograms
from perl_jax.tasks.evaluation import anchor_rows, warnings
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.evaluation import shown as shown_lib
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.judging import beside
from perl_jax.tasks.rollouts import build, iteration, rewards
from perl_jax.tasks.settings import members, shared, streams
from perl_jax.tasks.settings import rl as rl_settings
from perl_jax.tasks.training import (
  batching,
  begin,
  inputs,
  loop,
  standing,
  timing,
  together,
)
from perl_jax.tasks.training import workdir as workdir_lib


class Read(NamedTuple):
  """All that a run is made from, before anything is put on the devices.

  Attributes:
    tokenization: The policy's tokenizer.
    data: Prompts.
    functions: The user's reward functions.
    reward: The reward model; None without one.
    value: What the value model starts from; None without one.
    prepared: What is trained.
    stands_on: What all of it is.
  """

  tokenization: tokenization_lib.Tokenization
  data: batching.Inputs
  functions: tuple[rewards.Weighted, ...]
  reward: Start | None
  value: params_lib.Params | None
  prepared: begin.Prepared
  stands_on: standing.Standing


def read(
  config: shared.Config,
  workdir: Path,
  mesh: Mesh,
  settings: rl_settings.RLSettings,
  judge: beside.Beside,
  member: together.Member,
) -> Read:
  """Reads and checks all that a run is made from."""
  start, tokenization = begin.start(
    config, "policy", workdir, "prompts", mesh, member
  )
  reward = member.once(
    "reward", lambda: read_reward(config, start, tokenization, mesh)
  )
  data = begin.read(
    config, member, lambda: inputs.read(config, tokenization, "prompts")
  )
  functions = rewards.functions_of(config, data.rows)
  judge.read(mesh, start, data.rows)
  value = None
  if settings.estimator.uses_value:
    value = initial_roles.initial_value(config, start, reward)
  stands_on = standing.of_run(
    config, start, tokenization, [data], reward, judge.stands_on
  )
  values = {} if value is None else {"value": value}
  prepared = begin.prepare(
    config, workdir, start, "policy", stands_on, beside=values
  )
  return Read(tokenization, data, functions, reward, value, prepared, stands_on)


def stage(
  config: shared.Config,
  workdir: str | Path,
  member: together.Member = together.ALONE,
) -> together.Requests[dict[str, float]]:
  """Trains to `config.steps`, resuming if need be; see `together`."""
  started = time.perf_counter()
  mesh, settings = shared.make_mesh(config), rl_settings.read(config)
  rl_settings.check(config, settings, mesh)
  shared.require_backbone(config, "policy")
  with workdir_lib.preparing(config, workdir) as workdir:
    judge = beside.Beside(config, workdir)
    found = read(config, workdir, mesh, settings, judge, member)
  tokenization, data = found.tokenization, found.data
  settings = settings.with_stops(tokenization)
  inputs.log_counts(data.counts)
  yield together.Most()  # all have read what they share

  with jax.set_mesh(mesh):
    summary, stands_on = found.prepared.summary, found.stands_on
    if found.value is not None:
      summary["value_parameters"] = params_lib.count(found.value)
    anchor, model = place(mesh, found, judge, member)
    state = found.prepared.state(mesh, settings.optimizer, beta=settings.beta)
    built = build_for(config, settings, anchor, model, member)
    rewarder = rewards.make_rewarder(
      *(config, mesh, tokenization, built.engine, model, found.functions),
      unstopped_penalty=config.unstopped_penalty,
    )
    del found
    evaluate_policy = policy_evaluation.evaluator(
      config,
      built.engine,
      mesh=mesh,
      data=data,
      tokenization=tokenization,
      key=streams.policy_evaluation_key(config.seed),
    )
    iterate = iteration.Iteration(
      built,
      rewarder,
      mesh=mesh,
      rows=data.train_rows,
      key=streams.key_of(config.seed, streams.Stream.RL),
      peak_flops=timing.peak_flops(mesh),
      member=member,
    )

    def policy_of(state):
      return dataclasses.replace(anchor, trainable=state.trainable["policy"])

    opening = loop.open_run(
      config,
      workdir,
      mesh,
      state,
      started=started,
      stands_on=stands_on.digests,
      best=judge.best,
      show=("rollout/reward", "rollout/kl", "validation/reward"),
      member=member,
    )
    with judge.keeping(), opening as opened:
      resumed, writer = opened.resumed, opened.writer
      first = anchor if resumed else policy_of(opened.state)
      with anchor_rows.kept(config, workdir, stands_on) as part:
        before, before_rows = policy_evaluation.of_anchor(
          *(member, config.seed, evaluate_policy, first, anchor, rewarder),
          part(anchor_rows.RESPONSES),
        )
      before = before | judge(before_rows, before_rows)
      rewarder.shift = before["reward"] if config.center_reward else 0.0
      if not resumed:
        writer.write(0, warnings.first_line(before, before_rows))

      def evaluate(state, step):
        found, rows = evaluate_policy(policy_of(state), anchor, rewarder)
        # Without a single checkpoint that was judged there is no best one.
        last = step == config.steps and not opened.checkpointer.best_step
        found |= judge(before_rows, rows, last=last)
        shown = policy_evaluation.side_by_side(before_rows, rows)
        writer.samples(step, shown[: config.eval.samples])
        shown_lib.show_samples(config, shown, step)
        return {f"validation/{k}": v for k, v in found.items()}

      _, evaluated = yield from opened.train(
        batches=data.train,
        update=iterate.requests,
        evaluate=warnings.warned(evaluate, workdir, len(before_rows)),
        optimizer=settings.optimizer,
        compiled=built.compiled,
        updates=settings.estimator.updates,
        is_score=judge.is_score,
      )
      summary |= policy_evaluation.compare(before, evaluated)
      summary = opened.finish(summary)
  return summary


def place(
  mesh: Mesh, found: Read, judge: beside.Beside, member: together.Member
) -> tuple[roles.Role, roles.Role | None]:
  """(anchor, reward model) on the mesh; with what judges beside them.

  Members of a run have anchors of their own, and share the rest.
  """

  def rest():
    given = judge.given | {"anchor": found.prepared.role}
    given |= {"reward": found.reward.role} if found.reward else {}
    return initial_roles.place(mesh, given)

  placed = member.once("placed", rest)
  judge.place(placed, mesh)
  anchor = placed["anchor"]
  if member.shared is not None:
    own = sharding.place(mesh, found.prepared.role.trainable)
    backbone = found.prepared.role.backbone
    anchor = dataclasses.replace(anchor, trainable=own, backbone=backbone)
  return anchor, placed.get("reward")


def build_for(
  config: shared.Config,
  settings: rl_settings.RLSettings,
  anchor: roles.Role,
  reward: roles.Role | None,
  member: together.Member,
) -> build.IterationPrograms:
  """The programs of an iteration, compiled once for all members of a run."""

  def make(values):
    own = rl_settings.optimizer_of(config, settings.estimator, values)
    changed = dataclasses.replace(settings, optimizer=own)
    return build.make_learn(
      changed,
      anchor.backbone,
      lambda loss: members.with_alpha(config, values, loss),
    )

  learn = member.step(make, name="rl step")
  built = member.once(
    ("programs", anchor.backbone),
    lambda: build.build(settings, anchor, reward, learn),
  )
  return dataclasses.replace(built, settings=settings, anchor=anchor)


def read_reward(
  config: shared.Config,
  policy: Start,
  tokenization: tokenization_lib.Tokenization,
  mesh: Mesh,
) -> Start | None:
  """The reward model that scores the policy's responses; None without one."""
  if not config.reward.init:
    return None
  reward = initial_roles.load_reward(config, policy, mesh)
  reward = initial_roles.read_at(reward, config, tokenization)
  closing = reward.role.closing
  longest = closing.longest if closing else 0
  inputs.require_room(config, reward.config.max_len, longest)
  return reward


def programs(abstract: abstract_lib.AbstractStage) -> StagePrograms:
  """The programs of an iteration, from abstract arrays."""
  config, settings = abstract.config, rl_settings.read(abstract.config)
  policy, reward = abstract.role(), None
  trainable = {"policy": policy.trainable}
  if settings.estimator.uses_value:
    trainable["value"] = abstract.role("scalar").trainable
  state = abstract.state(trainable, settings.optimizer, beta=settings.beta)
  held = abstract_lib.held_by(state, policy.frozen)
  held = abstract.of_all(held | {"anchor": policy.trainable})
  if not config.reward.fn:
    reward = abstract.role("scalar", abstract.reward_members)
    if config.reward.score_at != "turn":
      # What most chat templates write after a response has room in this.
      reward = dataclasses.replace(reward, closing=roles.Closing((), (0,)))
    held["reward"] = reward.trainable
  member = abstract.member()
  built = build_for(config, settings, policy, reward, member)
  return StagePrograms(
    name="rl",
    mesh=abstract.mesh,
    held=held,
    make_programs=lambda: _programs(abstract, built, state),
    cache=built.cache(config.batch_size, config.data.prompt_len),
  )


def _programs(
  abstract: abstract_lib.AbstractStage,
  built: build.IterationPrograms,
  state: steps.TrainState,
) -> list[Program]:
  """sample, score, prepare and learn, as `Iteration` calls them."""
  estimator, batch = built.settings.estimator, abstract.prompts()
  args = built.sample_args(state.trainable, batch, abstract.key())
  count, uses = abstract.count, abstract.uses("base", "policy")
  found = [Program("sample", built.sample, args, uses, count)]
  samples = abstract.rows(built.sample.shapes(*args))
  responses = abstract.rows(jax.eval_shape(built.responses, samples))
  args = built.score_args(state.trainable, batch, responses)
  uses = abstract.uses("base", *args[0])
  found.append(Program("score", built.score, args, uses, count))
  scores = abstract.rows(built.score.shapes(*args))
  rewards_ = abstract.array(estimator.group, dtype=jnp.float32)
  beta = state.controls["beta"]
  experience = abstract.rows(
    jax.eval_shape(built.experience, batch, responses, scores, rewards_, beta)
  )
  if built.prepare is not None:
    args = (experience,)
    found.append(Program("prepare", built.prepare, args, (), count))
    experience = abstract.rows(built.prepare.shapes(experience))
  part = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (x.shape[0] // estimator.minibatches, *x.shape[1:]), x.dtype
    ),
    experience,
  )
  frozen = built.frozen()
  args = abstract.step_args(state, frozen, abstract.rows(part))
  uses = ("base", *state.trainable, "optimizer")
  uses += ("anchor",) if frozen.anchor else ()
  found.append(Program("learn", built.learn, args, uses, estimator.updates))
  return found

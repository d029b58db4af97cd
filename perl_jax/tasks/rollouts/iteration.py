"""One iteration of RL: sample, score, learn."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perl_jax import hosts, sharding, steps
from perl_jax.data import records
from perl_jax.objectives import kl as kl_lib
from perl_jax.tasks.rollouts import metrics as metrics_lib
from perl_jax.tasks.rollouts import rewards as rewards_lib
from perl_jax.tasks.rollouts.build import IterationPrograms
from perl_jax.tasks.training import nonfinite, profile, together
from perl_jax.tasks.training import watch as watch_lib
from perl_jax.tasks.training.timing import Clock, Stopwatch

PHASES = ("sample", "score", "learn")
# Row ids are int32, and -1 in rows of padding, which is 2^32 - 1.
_ORDER = 2**31


class Iteration:
  """`iterate(state, batch, step) -> (state, metrics)`, an update of the loop.

  The loop is given `requests`, where members of a run meet.
  """

  def __init__(
    self,
    programs: IterationPrograms,
    reward: rewards_lib.Rewarder,
    *,
    mesh: Mesh,
    rows: Sequence[records.Prompt],
    key: jax.Array,
    peak_flops: float | None = None,
    clock: Clock = time.perf_counter,
    member: together.Member = together.ALONE,
  ):
    """Binds what no iteration changes.

    Args:
      programs: From `build.build`, with arrays on the mesh.
      reward: Computes the rewards of the run.
      mesh: Mesh that batches are placed on.
      rows: Training records, which a batch's `index` points into.
      key: Key of the run; each iteration folds in its number.
      peak_flops: FLOP/s of all devices together, or None if it is not known.
      clock: Returns seconds.
      member: The member of a run whose iterations these are.
    """
    self._member = member
    self._programs, self._settings = programs, programs.settings
    self._reward, self._mesh = reward, mesh
    self._rows, self._key = rows, key
    self._peak_flops, self._clock = peak_flops, clock

  def __call__(
    self, state: steps.TrainState, batch: Any, step: int
  ) -> tuple[steps.TrainState, dict[str, Any]]:
    """`requests` of a run of its own."""
    return together.alone(self.requests(state, batch, step))

  def requests(
    self, state: steps.TrainState, batch: Any, step: int
  ) -> together.Requests[tuple[steps.TrainState, dict[str, Any]]]:
    """One iteration.

    A run that is told to stop while it samples or scores abandons that; the
    state is as it was, and the iteration has to be made anew.

    Args:
      state: Trained roles, optimiser, weight of the KL.
      batch: A `PromptBatch` of this process, on the host.
      step: Number of the iteration, from 1.

    Returns:
      (state, metrics by "train/...", "rollout/...", "seconds/<phase>" without
      compilation, and "rate/<phase>", response tokens per second). Of a member,
      "seconds/learn" is that of all, and the others are its own.

    Raises:
      watch.Stop: The run is to stop before it has learned.
    """
    key = jax.random.fold_in(self._key, step)
    device = sharding.place_batch(self._mesh, batch)
    watch = Stopwatch(self._programs.compiled, self._clock)
    with profile.named(profile.ROLLOUT):
      samples = self._programs.sample(
        *self._programs.sample_args(state.trainable, device, key)
      )
      watch_lib.wait(samples)
    laps = [watch.lap()]
    with profile.named(profile.SCORING):
      scored = self._score(state, batch, device, samples, watch)
      experience, parts = yield from scored
      watch_lib.wait((experience, parts))
    laps.append(watch.lap())
    flops = self._learn_flops()
    with profile.named(profile.LEARNING):
      learned = self._learn(state, experience, key, watch)
      state, found, faults = yield from learned
      jax.block_until_ready(state)
    laps.append(watch.lap())
    flops = self._learn_flops() - flops
    device, samples, parts, found, faults = hosts.to_host(
      (device, samples, parts, found, faults)
    )
    with np.errstate(over="ignore", invalid="ignore"):  # the loop looks at them
      metrics = metrics_lib.update_metrics(found)
      metrics |= metrics_lib.rollout_metrics(samples, parts)
    metrics["train/beta"] = found["beta"]
    tokens = int(samples.mask.sum())
    metrics["rollout/tokens"] = tokens + device.num_tokens
    for phase, lap in zip(PHASES, laps, strict=True):
      metrics[f"seconds/{phase}"] = lap.running
      metrics[f"rate/{phase}"] = tokens / lap.running
    if self._peak_flops:
      metrics["rate/mfu"] = flops / laps[-1].running / self._peak_flops
    if any(faults) or not np.isfinite(list(metrics.values())).all():
      evidence = self._evidence(experience)
      metrics[nonfinite.KEY] = nonfinite.Faults(faults, lambda: evidence)
    else:
      metrics[nonfinite.KEY] = nonfinite.Faults(faults)
    return state, metrics

  def _evidence(self, experience: steps.Experience) -> dict[str, Any]:
    """What was learned from, by phase; 0 in place of what is masked out."""
    found = hosts.to_host(experience)._asdict()
    mask = found.pop("response_mask")
    measured = {
      name: np.where(mask, value, 0)
      for name, value in found.items()
      if np.shape(value) == mask.shape
    }
    rewards = np.where(mask.any(axis=-1), found["rewards"], 0)
    sampled = ("responses", "sampled_logprobs")
    programs = self._programs
    frozen = {"base": programs.base, "anchor": programs.anchor.trainable}
    if programs.reward is not None:
      frozen["reward"] = programs.reward.trainable
    return {
      nonfinite.FROZEN: frozen,
      "sample": {"mask": mask} | {n: measured.pop(n) for n in sampled},
      "score": {"rewards": rewards, "beta": found["beta"]} | measured,
    }

  def _learn_flops(self) -> float:
    """FLOPs of all updates so far; 0 where nobody needs them."""
    return self._programs.learn.flops_run() if self._peak_flops else 0.0

  def _score(self, state, batch, device, samples, watch):
    """(experience, parts of the reward) of sampled responses."""
    programs = self._programs
    longest = hosts.to_host(jnp.max(samples.mask.sum(axis=-1)))
    request = together.Most(int(longest))
    longest = yield from self._member.meet(watch, request)
    responses = programs.responses(samples, longest)
    scores = programs.score(
      *programs.score_args(state.trainable, device, responses)
    )
    with watch_lib.interrupted():
      measured = self._reward.measure(
        (device.tokens, device.lengths, samples.tokens, samples.mask),
        np.repeat(batch.index, self._settings.estimator.group),
        self._rows,
        scores=_flat(scores.get("reward")),
      )
    parts = self._reward.parts(measured)
    experience = programs.experience(
      device,
      responses,
      scores,
      self._reward.training_reward(parts["reward"], samples.stopped),
      state.controls["beta"],
    )
    if programs.prepare is not None:
      experience = programs.prepare(experience)
    return experience, parts

  def _learn(self, state, experience, key, watch):
    """All updates on a rollout: (state, mean of their metrics, faults)."""
    estimator, found, faults = self._settings.estimator, [], []
    # Copies: the first update donates the state.
    following, beta = state.step + 1, state.controls["beta"] + 0.0
    waits = state.step < self._settings.kl_waits
    frozen = self._programs.frozen()
    with contextlib.ExitStack() as begun:
      for epoch in range(estimator.epochs):
        parts = [experience]
        if estimator.minibatches > 1:
          # Rows draw from smaller numbers: see `sampling.make_sampler`.
          order = jax.random.permutation(
            jax.random.fold_in(key, _ORDER + epoch), experience.rewards.shape[0]
          )
          parts = [
            _take(experience, rows)
            for rows in np.split(np.asarray(order), estimator.minibatches)
          ]
        for part in parts:
          request = together.Call(
            self._programs.learn, (state, frozen, part, key), timed=True
          )
          state, measured = yield from self._member.meet(watch, request)
          if not found:
            # The state that could be saved is gone; there is a whole one again
            # after the last update.
            begun.enter_context(watch_lib.unbroken())
          faults.append(measured.pop("fault"))
          found.append(measured)
    mean = jax.tree.map(lambda *values: sum(values) / len(values), *found)
    mean["beta"] = beta
    if self._settings.kl_target:
      adapted = kl_lib.adapt_beta(
        beta,
        mean["kl"],
        target=self._settings.kl_target,
        horizon=self._settings.kl_horizon,
        batch_size=experience.rewards.size,
      )
      # An update that was left out moves nothing, the weight included.
      beta = jnp.where(jnp.stack(faults).any() | waits, beta, adapted)
    # A step of the loop is an iteration, however many updates it has.
    state = state._replace(step=following, controls={"beta": beta})
    return state, mean, tuple(faults)


def _flat(scores: jax.Array | None) -> jax.Array | None:
  """`[..., B, G]` as `[..., B * G]`."""
  return None if scores is None else scores.reshape(*scores.shape[:-2], -1)


def _take(experience: steps.Experience, rows: np.ndarray) -> steps.Experience:
  """Some prompts of an experience, with the shardings of the whole."""

  def take(array):
    return jax.device_put(array[rows], array.sharding)

  return jax.tree.map(take, experience)

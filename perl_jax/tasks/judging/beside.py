"""A judge beside the reward of an RL run: does somebody else like it better?

At each evaluation the policy's responses to the first `judge.rows` held-out
prompts are compared with the anchor's to the same prompts, as the task `judge`
does it: in both orders, and a win has to hold in both. The anchor's responses
are drawn before the first step and kept, so that they are the same when a run
goes on.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from perl_jax import roles
from perl_jax.data import records
from perl_jax.reporting import phases
from perl_jax.tasks.initial import saved
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.judging import answers_file, asking, statistics
from perl_jax.tasks.judging.pairs import Judge, Pair
from perl_jax.tasks.settings import judge as settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import undone, watch

# As the task `judge` has them if it is not told otherwise.
BOOTSTRAP = statistics.Bootstrap(draws=1000, seed=0)
WIN_RATE = "win_rate"


class Beside:
  """The judge of an RL run, from its config to its numbers; or none."""

  def __init__(self, config: shared.Config, workdir: Path):
    """Reads and checks what needs no model.

    Args:
      config: Config of the RL stage.
      workdir: Its workdir. Functions are tried in a fresh one: a run that goes
        on does not depend on a judge that is away.

    Raises:
      ValueError: The judge cannot be used; names the field.
    """
    self._config, self._workdir = config, workdir
    self._known = answers_file.read(workdir)
    self._answered = answers_file.Later()
    named = settings.beside_reward(config)
    self._judges = asking.Judges(
      config,
      () if named is None else (named,),
      again=True,
      known=self._known,
      on_answer=self._answered,
    )
    self._asked: Judge | None = None
    self._rows: Sequence[records.Prompt] = ()

  def read(
    self,
    mesh: jax.sharding.Mesh,
    policy: Start,
    rows: Sequence[records.Prompt],
  ) -> None:
    """Reads the judge.

    Args:
      mesh: Mesh that a base is read to.
      policy: What the policy starts from; a judge on its base shares that.
      rows: The held-out prompts.
    """
    self._rows = rows
    fresh = not saved.checkpoints(self._workdir)
    self._judges.read(mesh, policy, rows if fresh else [])
    for named in self._judges.named if fresh else ():
      if named.kind == "endpoint":
        asked = self._judges.ready(named, {}, mesh)
        try:
          asking.ask(asked, [Pair(rows[0], rows[0].reference or "Yes.", "No.")])
        except asking.CannotJudge as error:
          raise ValueError(
            f"config.judge.by={named.name!r}: {error}"
          ) from error

  @property
  def stands_on(self) -> dict[str, tuple[str, str]]:
    """(SHA-256, place) of the judge; all processes have to call it."""
    found = {}
    for name, said in self._judges.stands_on.items():
      found[f"{name.partition(' ')[0]} of the judge"] = said
    return found | self._judges.models_stand_on(lambda label: "judge")

  @property
  def given(self) -> dict[str, roles.Role]:
    """The roles of the judge, to be placed."""
    return self._judges.given

  @property
  def best(self) -> tuple[str, str]:
    """(metric, "max") that the best checkpoint is kept by."""
    by_judge = self._config.best == "judge"
    return f"validation/{WIN_RATE if by_judge else 'reward'}", "max"

  def is_score(self, evaluated: Mapping[str, float]) -> bool:
    """Whether an evaluation says how good a checkpoint is."""
    return self.best[0] in evaluated

  def place(
    self, placed: Mapping[str, roles.Role], mesh: jax.sharding.Mesh
  ) -> None:
    """Takes the model of the judge on the mesh, and forgets it on the host."""
    for named in self._judges.named:
      self._asked = self._judges.ready(named, placed, mesh)
    self._judges.models.clear()

  @contextlib.contextmanager
  def keeping(self):
    """In the block the answers of an endpoint are written to the workdir."""
    if not any(named.kind == "endpoint" for named in self._judges.named):
      yield
      return
    with answers_file.kept(self._workdir, self._known) as self._answered.add:
      yield

  def __call__(
    self,
    anchor: Sequence[Mapping[str, Any]],
    policy: Sequence[Mapping[str, Any]],
    *,
    last: bool = False,
  ) -> dict[str, float]:
    """What the judge says of the policy's responses, in numbers.

    `win_rate` is the share of wins and half of the ties among the pairs that
    have an outcome, with `win_rate_low` and `win_rate_high` (95 %, bootstrap
    over the prompts); `tie_rate`; and `judged`, the number of these pairs.

    Args:
      anchor: Records of the anchor's responses, from a `PolicyEvaluator`.
      policy: Records of the policy's responses to the same prompts.
      last: Whether it is the last evaluation, and none before was judged.

    Returns:
      The numbers; {} without a judge. Without a single outcome, as where an
      endpoint is away, there is only `judged`, and the log says why.

    Raises:
      undone.UndoneStepError: It is the last, there is no outcome, and the best
        checkpoint is kept by the judge.
    """
    if self._asked is None:
      return {}
    count = self._config.judge.rows or len(policy)
    pairs = [
      Pair(self._rows[mine["row"]], mine["response"], theirs["response"])
      for mine, theirs in zip(policy[:count], anchor[:count], strict=True)
    ]
    why = "no answer of it was a verdict"
    try:
      judging = phases.phase(f"judging by {self._asked.label}")
      with judging, watch.interrupted():
        opinions = asking.ask(self._asked, pairs)
    except asking.CannotJudge as error:
      opinions, why = [], str(error)
    verdicts = asking.verdicts_of(opinions)
    lengths = [len(p.policy) - len(p.against) for p in pairs][: len(opinions)]
    found = statistics.rates(verdicts, np.array(lengths), BOOTSTRAP)
    if found["judged"]:
      rate = f"{WIN_RATE}_ties_half"
      return {
        WIN_RATE: found[rate],
        f"{WIN_RATE}_low": found[f"{rate}_low"],
        f"{WIN_RATE}_high": found[f"{rate}_high"],
        "tie_rate": found["tie_rate"],
        "judged": found["judged"],
      }
    text = (
      f"config.judge.by={self._config.judge.by!r} has judged nothing: {why}"
    )
    if last and self._config.best == "judge":
      raise undone.UndoneStepError(
        f"{text}\nNo evaluation of this run has been judged, so that"
        " config.best='judge' has no checkpoint to keep. What was learned is"
        " saved: the same command makes this evaluation again, and asks again."
      )
    logging.warning("%s\nThe run goes on without its win rate.", text)
    return {"judged": 0}

"""The judges that a config names: read and checked, and asked by all processes.

They are read in two parts. What needs no model comes first: a wrong name or a
key that is not set is said before gigabytes are read.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import logging

from perl_jax import hosts, roles
from perl_jax.data import records
from perl_jax.endpoints import Answer
from perl_jax.tasks.initial.model import Start
from perl_jax.tasks.judging import chat, functions, reward_models, seen
from perl_jax.tasks.judging import pairs as pairs_lib
from perl_jax.tasks.judging.pairs import Both, Judge, Pair
from perl_jax.tasks.rollouts import reward_function
from perl_jax.tasks.settings import config_files, reward_functions, shared
from perl_jax.tasks.settings import judge as settings
from perl_jax.tasks.training import standing


class CannotJudge(ValueError):
  """A judge that process 0 asks has failed: a function, or a server."""


class Judges:
  """The judges of a config.

  Attributes:
    named: The judges as the config names them.
    models: The reward models among them, by label.
    rows: By label, whether a reward model has seen the rows that the policy's
      own was trained on; see `seen`.
    stands_on: (SHA-256, place) of what is read beside models, by name.
  """

  def __init__(
    self,
    config: shared.Config,
    named: Sequence[settings.Judge],
    *,
    trial: bool = True,
    again: bool = False,
    known: Mapping[str, Answer] | None = None,
    on_answer: Callable[[str, Answer], None] = lambda key, answer: None,
  ):
    """Reads and checks what needs no model.

    Args:
      config: Config of the task `judge`, or of RL.
      named: The judges.
      trial: Whether functions are tried on a few rows, and keys are looked for,
        as soon as they are read; else when `try_all` is called, and until then
        only what all of it is can be asked.
      again: Whether they are asked again and again, of new responses beside the
        same ones of an anchor.
      known: Answers of an endpoint to an earlier start of this command.
      on_answer: Keeps its new answers.

    Raises:
      FileNotFoundError: A file is missing.
      ValueError: A judge cannot be used; names the field.
    """
    self.named, self._config, self._trial = tuple(named), config, trial
    self._again = again
    self.models: dict[str, Start] = {}
    self.rows: dict[str, str] = {}
    self.stands_on: dict[str, tuple[str, str]] = {}
    self._others: dict[str, Judge] = {}
    self._rows: Sequence[records.Prompt] = ()
    self._known, self._on_answer = known or {}, on_answer
    section = settings.section_of(config)
    for judge in self.named:
      if judge.kind == "endpoint":
        if trial:
          self._load(judge)
        place = section.fields.endpoint.template
        template = chat.template_of(place, f"{section.path}.endpoint")
        self.stands_on["template"] = template.digest, place
      elif judge.kind == "check":
        self._others[judge.label] = functions.CheckJudge(
          judge.label, judge.of, config.data.name
        )
      elif judge.kind == "reward":
        self.rows[judge.label] = rows_of(config, judge)

  def read(
    self,
    mesh: jax.sharding.Mesh,
    policy: Start,
    rows: Sequence[records.Prompt],
  ) -> None:
    """Reads the reward models, and tries the functions.

    Args:
      mesh: Mesh that bases are read to.
      policy: A model whose base is shared by judges that were trained on it.
      rows: Prompts to try functions on.

    Raises:
      FileNotFoundError: A workdir is missing.
      ValueError: A judge cannot be used; names the field.
    """
    self._rows = rows
    for judge in self.named:
      if judge.kind == "function":
        self._load(judge)
        self._warn_of_own(judge)
        code = standing.of_function(judge.of)
        self.stands_on[f"code of {judge.label}"] = code, judge.of
      elif judge.kind == "reward":
        self.models[judge.label] = reward_models.load(
          judge, self._config, mesh, policy
        )

  def _warn_of_own(self, judge: settings.Judge) -> None:
    """Says that a policy is judged by what has rewarded it."""
    found = {}
    for workdir in settings.judged(self._config):
      found |= seen.rewarded_by(workdir)
    if self._config.task != "judge":
      own = reward_functions.terms_of(self._config.reward.fn)
      found |= {seen.function(term.name): "the policy" for term in own}
    place = found.get(seen.function(judge.of))
    if place is not None:
      logging.warning(
        "judge %s: %s is trained by this very function: what exploits it wins."
        " It is no independent judge.",
        judge.label,
        place,
      )

  def models_stand_on(
    self, called: Callable[[str], str]
  ) -> dict[str, tuple[str, str]]:
    """(SHA-256, place) of the reward models; all processes have to call it.

    Args:
      called: What the names call a judge with this label.
    """
    found = {}
    for judge in self.named:
      if judge.label in self.models:
        start = self.models[judge.label]
        found |= standing.of_model(called(judge.label), start, judge.of)
    return found

  def try_all(self) -> None:
    """Tries functions and looks for keys, where that has not been done.

    Raises:
      ValueError: A judge cannot be used; names the field.
    """
    if self._trial:
      return
    self._trial = True
    for judge in self.named:
      if judge.kind in ("endpoint", "function"):
        self._load(judge)

  def _load(self, judge: settings.Judge) -> None:
    section = settings.section_of(self._config)
    if judge.kind == "endpoint":
      self._others[judge.label] = chat.load(
        judge, self._config, self._known, self._on_answer
      )
      return
    fields = reward_function.Fields(section.field, f"{section.path}.timeout")
    rows = self._rows if self._trial else []
    self._others[judge.label] = functions.load(
      judge, rows, section.fields.timeout, fields
    )

  @property
  def given(self) -> dict[str, roles.Role]:
    """The roles of the reward models, to be placed: "judge LABEL"."""
    return {f"judge {k}": start.role for k, start in self.models.items()}

  def ready(
    self,
    judge: settings.Judge,
    placed: Mapping[str, roles.Role],
    mesh: jax.sharding.Mesh,
  ) -> Judge:
    """A judge that can be asked.

    Args:
      judge: One of `named`.
      placed: `given` on the mesh.
      mesh: Mesh that batches are placed on.
    """
    if judge.label in self._others:
      return self._others[judge.label]
    role = placed[f"judge {judge.label}"]
    start = dataclasses.replace(self.models[judge.label], role=role)
    return reward_models.RewardJudge(
      judge.label, start, role, self._config, mesh, again=self._again
    )


def rows_of(config: shared.Config, judge: settings.Judge) -> str:
  """Whether a reward model has seen the rows of the policy's own one.

  Raises:
    ValueError: It has, and `same_rows` refuses that.
  """
  section = settings.section_of(config)
  judged = seen.Rated({}, ())
  for workdir in settings.judged(config):
    judged = seen.both(judged, seen.rated(workdir))
  found, why = seen.compare(seen.rated(judge.of), judged)
  if found == seen.SAME:
    text = (
      f"{section.field}: {judge.name!r} has seen the rows by which the policy"
      f" has learned: {why}. It makes the same errors, and takes what exploits"
      " them for better."
    )
    if section.fields.same_rows == "refuse":
      raise ValueError(
        f"{text} Train a judge on other rows (another data.path or"
        f" data.train_folds of {config_files.called('reward')}; another seed"
        " for coffee_bar) and name its workdir, or judge with this one all the"
        " same:"
        f" --{section.path}.same_rows=warn."
      )
    logging.warning("%s", text)
  else:
    logging.info("judge %s: %s rows; %s.", judge.label, found, why)
  return found


def ask(judge: Judge, pairs: Sequence[Pair]) -> list[Both]:
  """The opinions of a judge, on all processes.

  Of a judge that process 0 alone asks, the others know no reasons.

  Raises:
    CannotJudge: It failed there; on all processes.
  """
  if judge.everywhere:
    return pairs_lib.judge(judge, pairs)
  found: list[Both] = []
  failed: list[ValueError] = []

  def fill():
    try:
      found.extend(pairs_lib.judge(judge, pairs))
    except ValueError as error:
      failed.append(error)

  hosts.on_primary(f"judging by {judge.label}", fill)
  message = hosts.first_message(str(failed[0]) if failed else "")
  if message:
    raise CannotJudge(message) from (failed[0] if failed else None)
  if jax.process_count() == 1:
    return found
  codes = np.zeros((2, len(pairs), 2), np.float32)
  for i, opinions in enumerate(found):
    codes[0, i] = [o.verdict for o in opinions]
    codes[1, i] = [pairs_lib.FAULTS.index(o.fault) for o in opinions]
  codes = hosts.from_primary(codes)
  if found:
    return found
  faults = [[pairs_lib.FAULTS[int(c)] for c in row] for row in codes[1]]
  return [
    tuple(
      pairs_lib.Opinion(float(v), "", f)
      for v, f in zip(row, fault, strict=True)
    )
    for row, fault in zip(codes[0], faults, strict=True)
  ]


def verdicts_of(opinions: Sequence[Both]) -> np.ndarray:
  """Verdicts in both orders, `[n, 2]`; see `statistics.outcomes`."""
  verdicts = [[o.verdict for o in both] for both in opinions]
  return np.array(verdicts, np.float64).reshape(len(opinions), 2)

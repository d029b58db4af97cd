"""Judges say which of two models answers held-out prompts better.

A policy is compared with its anchor, with another run or with the responses in
the data. Each pair of responses is judged in both orders; a win has to hold in
both (PERL, arXiv:2403.10704, judges so), everything else is a tie.
"""

import itertools
import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from perl_jax import files, hosts, tasks
from perl_jax import metrics as metrics_lib
from perl_jax.hosts import signals
from perl_jax.reporting import phases, terminal
from perl_jax.tasks.evaluation import again
from perl_jax.tasks.evaluation.so_far import SoFar
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.judging import (
  answers_file,
  asking,
  seen,
  sides,
  statistics,
)
from perl_jax.tasks.judging import pairs as pairs_lib
from perl_jax.tasks.judging.pairs import Both, Pair
from perl_jax.tasks.settings import judge as settings
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import batching, inputs, reported, standing

VERDICTS = "verdicts.jsonl"
_OUTCOMES = {1.0: "win", 0.0: "tie", -1.0: "loss"}


class Prepared(NamedTuple):
  """All that is read and checked before anything is computed.

  Attributes:
    sides: The two that are compared.
    judges: The judges.
    prompts: The held-out prompts, by the policy's tokenizer.
    stands_on: What all of it is.
    of_judges: Names in it of what the responses do not depend on.
  """

  sides: sides.Sides
  judges: asking.Judges
  prompts: batching.Inputs
  stands_on: standing.Standing
  of_judges: Collection[str]


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Writes verdicts.jsonl and the summary, which it returns.

  Where they are there, made from the same models and rows, nothing is changed
  and nobody is asked.
  """
  settings.check(config)
  named = settings.judges_of(config)
  mesh, workdir = shared.make_mesh(config), Path(workdir).absolute()
  started = time.perf_counter()
  known, answered = answers_file.read(workdir), answers_file.Later()
  trial = not again.has_result(workdir)

  def make(found: Prepared, so_far: SoFar) -> dict[str, float]:
    with answers_file.kept(workdir, known) as answered.add:
      pairs, summary, opinions = compare(config, mesh, named, found, so_far)
    summary |= numbers(config, pairs, opinions, found)
    summary["seconds"] = time.perf_counter() - started
    again.note(workdir, found.stands_on)
    write(workdir, summary, as_json(found.sides.name, pairs, opinions))
    return summary

  with jax.set_mesh(mesh):
    return again.made_once(
      config,
      workdir,
      lambda: prepare(config, mesh, named, known, answered, trial),
      make,
      ready=lambda found: found.judges.try_all(),
      computed_from=lambda found: found.stands_on.without(found.of_judges),
    )


def prepare(
  config: shared.Config,
  mesh: jax.sharding.Mesh,
  named: Sequence[settings.Judge],
  known: dict,
  answered: answers_file.Later,
  trial: bool,
) -> Prepared:
  """Reads both sides and the judges, and checks what can be checked.

  Args:
    config: Config of the task.
    mesh: Mesh of the run.
    named: The judges of the config.
    known: Answers of an endpoint to an earlier start of this command.
    answered: Takes its new answers.
    trial: Whether functions are tried at once; see `asking.Judges`.

  Raises:
    FileNotFoundError: A workdir or a file is missing.
    ValueError: A judge or a model cannot be used; names the field.
  """
  judges = asking.Judges(
    config, named, trial=trial, known=known, on_answer=answered
  )
  both = sides.load(config, mesh)
  tokenization = both.policy.load_tokenizer()
  data = inputs.read(config, tokenization, "prompts", train=False, notes=True)
  if both.name == settings.REFERENCE:
    sides.require_references(config, data)
  starts = {"policy": both.policy, "anchor": both.anchor}
  judges.read(mesh, both.policy, data.rows)
  of_judges = judges.stands_on | judges.models_stand_on("judge {}".format)
  more = dict(of_judges)
  if both.other is not None:
    more |= standing.of_model(sides.OTHER, both.other, config.against.init)
  stands_on = standing.of_evaluation(config, starts, [data], more)
  return Prepared(both, judges, data, stands_on, of_judges.keys())


def compare(
  config: shared.Config,
  mesh: jax.sharding.Mesh,
  named: Sequence[settings.Judge],
  prepared: Prepared,
  so_far: SoFar,
) -> tuple[list[Pair], dict[str, float], dict[str, list[Both]]]:
  """(pairs of responses, what was measured of them, opinions by label)."""
  both = prepared.sides
  given = {"policy": both.policy.role, "anchor": both.anchor.role}
  if both.other is not None:
    given[sides.OTHER] = both.other.role
  placed = initial_roles.place(mesh, given | prepared.judges.given)
  answered = sides.answers(config, mesh, both, placed, prepared.prompts, so_far)
  if not answered.pairs:
    raise ValueError(
      "There is no prompt that both have answered: the tokenizers leave out"
      " other prompts as too long. Raise config.data.prompt_len."
    )
  so_far.begin()  # answers of an endpoint stay, whatever comes
  opinions = {}
  for judge in named:
    with phases.phase(f"judging by {judge.label}"):
      opinions[judge.label] = asking.ask(
        prepared.judges.ready(judge, placed, mesh), answered.pairs
      )
  summary = answered.metrics | {
    "n": len(answered.pairs),
    "unpaired": answered.missing,
  }
  summary |= sides.characters(answered.pairs, both.name)
  return answered.pairs, summary, opinions


def numbers(
  config: shared.Config,
  pairs: Sequence[Pair],
  opinions: dict[str, list[Both]],
  prepared: Prepared,
) -> dict[str, float]:
  """What the judges said, in numbers: "by.LABEL.win_rate"."""
  bootstrap = statistics.Bootstrap(
    config.bootstrap.draws, config.bootstrap.seed
  )
  differences = np.array([len(p.policy) - len(p.against) for p in pairs])
  summary, outcomes = {}, {}
  for label, said in opinions.items():
    verdicts = asking.verdicts_of(said)
    outcomes[label] = statistics.outcomes(verdicts)
    found = statistics.rates(verdicts, differences, bootstrap)
    faults = [opinion.fault for both in said for opinion in both]
    found |= {name: faults.count(name) for name in pairs_lib.FAULTS if name}
    if label in prepared.judges.rows:
      found["same_rows"] = {seen.SAME: 1.0, seen.OTHER: 0.0}.get(
        prepared.judges.rows[label], math.nan
      )
    summary |= {f"by.{label}.{name}": value for name, value in found.items()}
    if found["judged"] < len(pairs):
      missing = [name for name in pairs_lib.FAULTS if name and found[name]]
      logging.warning(
        "%s: %d of %d pairs have no outcome, and are left out (%s). See the"
        " reasons in %s; another template, model or max_tokens of an endpoint"
        " may do better.",
        label,
        len(pairs) - found["judged"],
        len(pairs),
        ", ".join(f"{name} {found[name]}" for name in missing),
        VERDICTS,
      )
  for first, second in itertools.combinations(outcomes, 2):
    found = statistics.agreement(outcomes[first], outcomes[second])
    summary |= {f"by.{first}_and_{second}.{k}": v for k, v in found.items()}
  return summary | reported.steps_of(prepared.sides.checkpoints)


def as_json(
  name: str, pairs: Sequence[Pair], opinions: dict[str, list[Both]]
) -> list[dict]:
  """Rows of verdicts.jsonl: each pair with what each judge said of it.

  Args:
    name: What the policy is compared with.
    pairs: The pairs.
    opinions: Opinions by label of the judge.
  """
  words = {1.0: "policy", 0.0: "tie", -1.0: name}
  rows = []
  for i, pair in enumerate(pairs):
    judges = {}
    for label, said in opinions.items():
      outcome = statistics.outcomes(asking.verdicts_of(said[i : i + 1]))[0]
      first, last = said[i]
      judges[label] = {
        "outcome": _OUTCOMES.get(outcome),
        "policy_first": words.get(first.verdict) or first.fault,
        "policy_last": words.get(last.verdict) or last.fault,
        "reasons": [first.reason, last.reason],
      }
    rows.append(sides.as_json(pair, name) | {"judges": judges})
  return rows


def write(workdir: Path, summary: dict, rows: list[dict]) -> None:
  """Writes the verdicts, and the summary last of all; prints what came out."""
  with metrics_lib.Writer(
    workdir, total_steps=1, name="judge", enabled=hosts.is_primary()
  ) as writer:
    known = {k: v for k, v in summary.items() if not math.isnan(v)}
    writer.write(1, known)
  if not hosts.is_primary():
    return
  with signals.deferred():
    files.write_jsonl(workdir / VERDICTS, rows)
    files.write_json(workdir / metrics_lib.SUMMARY, summary)
    sealed.write(workdir)
  task = tasks.TASKS["judge"]
  flat = {f"{task.name}.{key}": value for key, value in summary.items()}
  places = {name: workdir / name for name in (VERDICTS, metrics_lib.SUMMARY)}
  terminal.achieved_table(
    flat, places, results={task.name: task.result}, title=task.title
  )

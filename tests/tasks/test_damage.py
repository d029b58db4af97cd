"""Each kind of file of a workdir cut, emptied, removed, or with a bit flipped.

Nothing may happen silently: a damaged file is refused by its name, said in a
warning, written anew, or was not needed. docs/damage.md has the outcomes, and
is compared with what comes out here; with -s the test prints the tables.
"""

import dataclasses
import functools
import json
import logging
import pathlib
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from perl_jax import checkpoint, main, metrics, params, tasks
from perl_jax.tasks import evaluate, pipeline, sft
from perl_jax.tasks.dry_run import memory_check
from perl_jax.tasks.initial import model, restore
from perl_jax.tasks.training import facts, finished, lock, loop
from tests.tasks import tiny

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "damage.md"
STEPS = {"steps": 6, "eval_every": 2}
# Kind of file -> where one lies; the newest checkpoint is that of {last}.
SMALL = {
  "config.json": "config.json",
  "model.json": "model.json",
  "tokenizer/tokenizer.json": "tokenizer/tokenizer.json",
  "tokenizer/tokenizer_config.json": "tokenizer/tokenizer_config.json",
  "sha256.txt": "sha256.txt",
  "summary.json": "summary.json",
  "metrics.jsonl": "metrics.jsonl",
  "samples.jsonl": "samples.jsonl",
  "command.txt": "command.txt",
  "tensorboard/": "tensorboard/*",
}
CHECKPOINT = {
  "checkpoints/N/sha256.txt": "checkpoints/{last}/sha256.txt",
  "checkpoints/N/meta/": "checkpoints/{last}/meta/metadata",
  "checkpoints/N/trainable/": "checkpoints/{last}/trainable/d/*",
  "checkpoints/N/optimizer/": "checkpoints/{last}/optimizer/d/*",
  "checkpoints/N/metrics/": "checkpoints/{last}/metrics/metrics",
}
LOCK = {"lock.json": "lock.json"}
EVALUATED = {"stands_on.json": "stands_on.json", "scores.jsonl": "scores.jsonl"}
DAMAGES = ("cut", "emptied", "removed", "bit flipped")
# Nobody reads these: people do.
FOR_PEOPLE = ("command.txt", "tensorboard/")


class Reached(BaseException):
  """What would be computed next is known; nothing is computed."""


def damage(path, how):
  whole = path.read_bytes()
  if how == "removed":
    path.unlink()
  elif how == "emptied":
    path.write_bytes(b"")
  elif how == "cut":
    path.write_bytes(whole[: len(whole) // 2])
  else:
    at = len(whole) // 2
    if path.name == lock.LOCK_FILE:
      at = whole.index(b'"host": "') + len(b'"host": "')
    while not chr(whole[at]).isalnum() and len(whole) > at + 1:
      at += 1
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


def bits(tree):
  leaves = map(str, range(len(jax.tree.leaves(tree))))
  named = dict(zip(leaves, jax.tree.leaves(tree), strict=True))
  return params.fingerprint(named, np.asarray)


def export(workdir):
  """Reads the model; its card; and what a finished command says it achieved."""
  start = restore.load(workdir, "last", "policy", "policy.init")
  start.load_tokenizer()
  read = start.fingerprint, start.config, bits(start.role.frozen)
  found = facts.training_facts(workdir, "last")
  done = finished.summary_of(tiny.config("sft", **STEPS), workdir, trains=True)
  return read, found, done


def resume(workdir):
  """Everything that the first step after the resume is made from."""
  found = []

  def train(run, **_):
    meta = {k: v for k, v in run.resumed.meta.items() if k != "costs"}
    found.append((bits(run.state), meta, run.writer.written))
    raise Reached

  with pytest.MonkeyPatch.context() as patches:
    patches.setattr(loop.Run, "train", train)
    patches.setattr(memory_check, "check", lambda *_: None)
    patches.setattr(model, "random_base", random_base)  # it compiles
    with pytest.raises(Reached):
      tasks.run(tiny.config("sft", **STEPS), workdir)
  lines = [tiny.lines(workdir, f"{name}.jsonl") for name in LINES]
  kept = {k: v for k, v in tiny.tree(workdir).items() if k in KEPT}
  return found, lines, kept


random_base = functools.cache(model.random_base)
LINES = ("metrics", "samples")
KEPT = ("config.json", "model.json", "tokenizer/tokenizer.json")


def evaluation(workdir):
  """Everything that an evaluation of the stage is made from."""
  found = []

  def measure(config, mesh, place, read, so_far, started):
    del config, mesh, place, so_far, started
    found.append((read.steps, read.stands_on.digests))
    raise Reached

  config = tiny.config("evaluate", policy__init=str(workdir))
  with pytest.MonkeyPatch.context() as patches:
    patches.setattr(evaluate, "_evaluate", measure)
    with pytest.raises(Reached):
      tasks.run(config, workdir.with_name("judged"))
  return found


def going_on(workdir):
  """What a pipeline goes on with after this stage, which has finished."""
  found = []
  shutil.rmtree(workdir.parent / "pipe", ignore_errors=True)
  shutil.move(workdir, workdir.parent / "pipe" / "sft")

  again = tasks.run

  def run(config, place):
    if config.task == "sft":  # it is not taken as finished
      return again(config, place)
    start = restore.load(config.reward.init, "last", "reward", "reward.init")
    start.load_tokenizer()
    read = start.fingerprint, start.config, bits(start.role.frozen)
    found.append((read, bits(start.role.trainable)))
    raise Reached

  try:
    with pytest.MonkeyPatch.context() as patches:
      patches.setattr(tasks, "run", run)
      with pytest.raises(Reached):
        pipeline.run(in_pipeline(), workdir.parent / "pipe")
  finally:
    shutil.move(workdir.parent / "pipe" / "sft", workdir)
  return found


def in_pipeline():
  """A pipeline whose first stage is that of these tests."""
  return tiny.pipeline(sft__steps=6, sft__eval_every=2)


def evaluated_again(workdir):
  """The same evaluation once more: its result, or that it would be made."""
  made = []

  def measure(config, mesh, place, read, so_far, started):
    del config, mesh, place, so_far, started
    made.append(read.stands_on.digests)
    raise Reached

  config = of_the_run(workdir.parent)
  with pytest.MonkeyPatch.context() as patches:
    patches.setattr(evaluate, "_evaluate", measure)
    try:
      return tasks.run(config, workdir)
    except Reached:
      return "made anew"


def of_the_run(root):
  """An evaluation of a copy of the finished stage."""
  return tiny.config("evaluate", policy__init=str(root / "of"))


@dataclasses.dataclass(frozen=True)
class Reader:
  """Somebody who reads a workdir.

  Attributes:
    what: Sentence about what it reads, for the page.
    of: Which of the runs it reads: "finished", "stopped" or "evaluated".
    read: `(workdir) -> what it has found`.
    kinds: Files that are damaged.
  """

  what: str
  of: str
  read: Callable[[pathlib.Path], Any]
  kinds: dict[str, str]


def without(kinds, *starts):
  return {k: v for k, v in kinds.items() if not k.startswith(starts)}


READERS = {
  "Export": Reader(
    "An export of a finished stage, its card, and the same command again.",
    "finished",
    export,
    SMALL | CHECKPOINT,
  ),
  "Resume": Reader(
    "A run that was killed between two checkpoints goes on.",
    "stopped",
    resume,
    without(SMALL, "summary.json") | CHECKPOINT | LOCK,
  ),
  "Evaluation": Reader(
    "An evaluation of a finished stage.",
    "finished",
    evaluation,
    without(SMALL, *FOR_PEOPLE) | CHECKPOINT,
  ),
  "Pipeline": Reader(
    "A pipeline goes on with the stage after this one.",
    "finished",
    going_on,
    without(SMALL, *FOR_PEOPLE) | CHECKPOINT,
  ),
  "Evaluated again": Reader(
    "The command of a finished evaluation, given again.",
    "evaluated",
    evaluated_again,
    without(SMALL, "model.json", "tokenizer/") | EVALUATED | LOCK,
  ),
}


def outcome(reader, expected, whole, kind, how, caplog):
  """What happens, in the words of the table; "silent" is not among them."""
  copy = fresh(whole)
  (path, *_) = sorted(copy.glob(reader.kinds[kind].format(last=last_of(copy))))
  before = path.read_bytes()
  damage(path, how)
  caplog.clear()
  try:
    with caplog.at_level(logging.WARNING, "absl"):
      found = reader.read(copy)
  except main.USER_ERRORS as error:
    text, place = str(error), path.relative_to(copy).parent
    named = path.name in text or (place.name and f"/{place}" in text)
    return "refused" if named else f"raw: {text[:300]}"
  except Exception as error:  # a raw error of a library is what is looked for
    return f"raw: {type(error).__name__}: {error}"[:300]
  said = [m for m in caplog.messages if path.name in m or "step 4 is" in m]
  same = found == expected
  if same and kind in FOR_PEOPLE:
    return "not read"
  anew = path.exists() and path.read_bytes() == before
  if same and anew:
    return "said, made anew" if said else "made anew"
  if same:
    return "said, goes on" if said else "goes on as before"
  if said and (copy / checkpoint.DAMAGED).exists():
    return "said, goes on from the one before"
  if found == "made anew" and (said or how == "removed"):
    return f"said, {found}" if said else found
  return "said, goes on" if said else f"silent: {found!r:.300}"


def fresh(whole):
  shutil.rmtree(whole.with_name("run"), ignore_errors=True)
  return shutil.copytree(whole, whole.with_name("run"))


def last_of(workdir):
  return max(tiny.kept(workdir), default=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """{"finished", "stopped", "evaluated"}: workdirs from one short training."""
  return make(tmp_path_factory.mktemp("damage"))


def make(root):
  """The only thing that is computed is six steps; samples are made up."""
  found = {name: root / name for name in ("finished", "stopped", "evaluated")}
  save = checkpoint.Checkpointer.save
  write = metrics.Writer.write
  samples = [{"prompt": "a", "response": letter} for letter in "bcdefgh"]

  def copied(self, step, *args):
    if step == 6:
      self.wait()
      shutil.copytree(found["finished"], found["stopped"])
    return save(self, step, *args)

  def with_samples(self, step, row):
    write(self, step, row)
    if "validation/loss" in row:
      self.samples(step, samples)

  with pytest.MonkeyPatch.context() as patches:
    patches.setattr(checkpoint.Checkpointer, "save", copied)
    patches.setattr(metrics.Writer, "write", with_samples)
    patches.setattr(sft, "sample_policy", lambda *_: ({"gold": 0.5}, []))
    tasks.run(tiny.config("sft", **STEPS), found["finished"])
  dead = subprocess.Popen(["true"])
  dead.wait()
  theirs = lock.myself() | {"pid": dead.pid, "started": "1"}
  (found["stopped"] / lock.LOCK_FILE).write_text(json.dumps(theirs) + "\n")
  shutil.copytree(found["finished"], root / "of")
  with pytest.MonkeyPatch.context() as patches:
    patches.setattr(
      evaluate, "evaluate_policy", lambda *_: ({"policy.kl": 0.5}, samples)
    )
    tasks.run(of_the_run(root), found["evaluated"])
  (found["evaluated"] / "scores.jsonl").write_text('{"id": "0", "chosen": 1}\n')
  shutil.copy(found["stopped"] / lock.LOCK_FILE, found["evaluated"])
  return found


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_nothing_happens_silently(runs, name, caplog):
  reader = READERS[name]
  whole = runs[reader.of]
  expected = reader.read(fresh(whole))
  rows = [f"| file | {' | '.join(DAMAGES)} |", "| --- " * 5 + "|"]
  wrong = []
  for kind in reader.kinds:
    found = [
      outcome(reader, expected, whole, kind, how, caplog) for how in DAMAGES
    ]
    rows.append(f"| `{kind}` | {' | '.join(found)} |")
    wrong += [text for text in found if text.startswith(("raw", "silent"))]
  table = f"## {name}\n\n{reader.what}\n\n" + "\n".join(rows) + "\n"
  print(table)
  assert not wrong
  assert table in PAGE.read_text()

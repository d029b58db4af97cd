"""A run whose starts are too short for its anchor's passes makes steps.

Before the first step, and at each start, the anchor answers the held-out
prompts, and scores pairs in DPO. Each start continues these passes, and a run
that goes on from a checkpoint makes none of them.
"""

import signal

import pytest

from perl_jax.tasks.evaluation import anchor_rows
from perl_jax.tasks.training import stepping
from perl_jax.tasks.training.compiled import Compiled
from tests import test_main
from tests.tasks import test_resume, tiny
from tests.tasks.test_resume import Killed

pytestmark = pytest.mark.slow

# Eight prompts and as many pairs are held out, and there are 48 to learn from.
PASSES = ("sample", "logprobs", "scores", "rewards", "dpo log-probs")
# Notes the responses that it was asked about.
MINE = """
import os

def letters(prompts, responses, rows):
  with open(os.environ["ASKED"], "a") as file:
    print(len(rows), file=file)
  return [len(text) / 3 for text in responses]
"""


class Reached(BaseException):
  """The loop has begun."""


def fields_of(task, finished):
  found = {
    "policy__init": str(finished / "sft"),
    "eval__batch_size": 2,
    "steps": 12,
    "eval_every": 6,
  }
  if task == "rl":
    found |= {
      "reward__init": str(finished / "reward"),
      "center_reward": True,
      "steps": 3,
      "eval_every": 1,
    }
  return found


@pytest.fixture
def before_the_loop(monkeypatch):
  """begin(workdir, task, fields, most): computes before the first step.

  Returns the calls that were made, and whether the loop was reached before one
  more than `most`.
  """

  def begin(workdir, task, fields, most=None):
    calls, real = [], Compiled.__call__

    def call(self, *args):
      if self.name in PASSES:
        if len(calls) == most:
          raise Killed
        calls.append(self.name)
      return real(self, *args)

    def requests(self):
      raise Reached

    with monkeypatch.context() as patches:
      patches.setattr(Compiled, "__call__", call)
      patches.setattr(stepping.Loop, "requests", requests)
      try:
        tiny.run(workdir, task, **fields)
      except Reached:
        return calls, True
      except Killed:
        return calls, False

  return begin


@pytest.mark.parametrize("task", ["dpo", "rl"])
def test_short_starts_get_to_the_first_step(
  tmp_path, monkeypatch, finished, before_the_loop, task
):
  fields = fields_of(task, finished)
  workdir, whole = tmp_path / "run", tmp_path / "whole"
  undisturbed, reached = before_the_loop(whole, task, fields)
  # What a batch needs at once: its responses, scored by all who score them.
  most, calls, starts = 4, [], 0
  assert reached and len(undisturbed) > 3 * most
  reached = False
  while not reached:
    found, reached = before_the_loop(workdir, task, fields, most)
    calls += found
    starts += 1
    assert starts < len(undisturbed)  # each start has computed something new
  assert starts > 3
  file = anchor_rows.NAME
  assert (workdir / file).read_bytes() == (whole / file).read_bytes()
  tiny.run(whole, task, **fields)

  with monkeypatch.context() as patches:
    test_resume.kill_before_batch(patches, fields["eval_every"] + 2)
    with pytest.raises(Killed):
      tiny.run(workdir, task, **fields)
  assert tiny.kept(workdir)
  assert before_the_loop(workdir, task, fields) == ([], True)
  tiny.run(workdir, task, **fields)
  test_resume.same(whole, workdir)
  assert (workdir / file).read_bytes() == (whole / file).read_bytes()


def test_a_reward_function_that_was_mended_is_asked_anew(
  tmp_path, monkeypatch, finished, before_the_loop
):
  mine, asked = tmp_path / "mine.py", tmp_path / "asked"
  monkeypatch.setenv("ASKED", str(asked))
  mine.write_text(MINE)
  fields = fields_of("rl", finished) | {"reward__fn": f"{mine}:letters"}

  def begin():
    asked.unlink(missing_ok=True)
    assert before_the_loop(tmp_path / "run", "rl", fields)[1]
    return asked.read_text().splitlines().count("2")

  tried = begin() - 4  # four batches, and once on two rows if it is tried so
  assert begin() == tried
  mine.write_text(MINE.replace("/ 3", "/ 4"))
  assert begin() == tried + 4


def test_told_to_stop_in_a_pass(tmp_path, finished):
  """One line says what is kept, and the same command goes on from there."""
  (tmp_path / "mine.py").write_text(
    "import os, signal\n"
    "calls = []\n"
    "def stops(prompts, responses, rows):\n"
    "  calls.append(1)\n"
    f"  if len(calls) == 5: os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
    "  return [1.0 for _ in rows]\n"
  )
  fields = fields_of("rl", finished)
  fields |= {"reward__fn": f"{tmp_path}/mine.py:stops"}
  flags = tiny.fields("rl") | tiny.dotted(fields)
  process = test_main.start(
    "--config=configs/rl.py",
    *(f"--config.{name}={value}" for name, value in flags.items()),
    f"--workdir={tmp_path / 'run'}",
  )
  _, said = process.communicate(timeout=500)
  assert process.returncode == 75, said
  (line,) = [x for x in said.splitlines() if x.startswith("Stopped by")]
  kept = tmp_path / "run" / anchor_rows.NAME
  assert f"what the anchor has computed so far is kept in {kept}" in line
  assert len(kept.read_bytes().splitlines()) > 1

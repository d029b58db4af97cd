"""A killed evaluation of any kind goes on: the same bits, nothing twice.

What it leaves is compared with what a command leaves that nobody disturbed,
file by file, but for times.
"""

import collections
import signal

import pytest

from perl_jax import files
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.evaluation import reward_model, so_far
from perl_jax.tasks.judging import answers_file
from tests import test_main
from tests.endpoints.server import serving
from tests.tasks import tiny
from tests.tasks.judging import test_chat as judging_chat
from tests.tasks.test_resume import Killed

pytestmark = pytest.mark.slow

# Of several lengths, so that the order of the batches is not that of the rows.
ROWS = [
  {
    "id": i,
    "prompt": "A mocha? " * (1 + 5 * i % 7),
    "chosen": "Yes, a mocha." * (1 + i % 3),
    "rejected": "A stone.",
  }
  for i in range(14)
]
COMPUTES = {
  "generate": (policy_evaluation.PolicyEvaluator, "_evaluate_batch"),
  "score": (reward_model, "_score_batch"),
  "judge": (policy_evaluation.PolicyEvaluator, "_evaluate_batch"),
}
RESULTS = ("responses.jsonl", "scores.jsonl", "verdicts.jsonl")
# A reward that notes what it was asked, and may end its process.
LETTERS = """
import os

def letters(prompts, responses, rows):
  if len(rows) > 2:  # not where it is tried
    with open(os.environ["ASKED"], "a+") as file:
      print(*(row["id"] for row in rows), file=file, flush=True)
      file.seek(0)
      if len(file.readlines()) == int(os.environ.get("KILLED_AT", 0)):
        os.kill(os.getpid(), int(os.environ["KILLED_BY"]))
  return [len(text) / 3 for text in responses]
"""


@pytest.fixture
def given(finished, tmp_path):
  """Returns the overrides of a command; `generate` looks for the best of 2."""

  def of(task):
    if not (path := tmp_path / "rows.jsonl").exists():
      files.write_jsonl(path, ROWS)
    found = {"eval__batch_size": 4, "data__path": str(path)}
    found["reward__init"] = str(finished / "reward")
    if task == "generate":
      found |= {"policy__init": str(finished / "rl"), "samples_per_prompt": 2}
    return found

  return of


def dies(patches, owner, name, when):
  """Makes a call for which `when` holds the last; returns those before."""
  calls, real = [], getattr(owner, name)

  def call(*args, **options):
    if when(calls, *args):
      raise Killed
    calls.append(args)
    return real(*args, **options)

  patches.setattr(owner, name, call)
  return calls


def left(workdir):
  """What a command has left, without times."""
  found = tiny.tree(workdir)
  for name in ("summary.json", "metrics.jsonl", "sha256.txt"):
    del found[name]
  found["summary"] = tiny.untimed(tiny.summary(workdir))
  found["metrics"] = tiny.lines(workdir)
  return {k: v for k, v in found.items() if not k.startswith("tensorboard/")}


@pytest.mark.parametrize("task", ["generate", "score"])
def test_killed_at_every_turn(tmp_path, monkeypatch, given, task):
  """Before, between and after the batches, and when there is a summary."""
  workdir, whole = tmp_path / "run", tmp_path / "whole"

  def run(to):
    tiny.run(to, task, "jsonl", **given(task))

  def run_until(owner, name, when):
    with monkeypatch.context() as patches:
      calls = dies(patches, *COMPUTES[task], lambda *_: False)
      with pytest.raises(Killed):
        dies(patches, owner, name, when)
        run(workdir)
    return len(calls)

  def before(batch):
    return *COMPUTES[task], lambda calls, *_: len(calls) == batch

  with monkeypatch.context() as patches:
    every = dies(patches, *COMPUTES[task], lambda *_: False)
    run(whole)
  assert run_until(*before(0)) == 0 and not workdir.exists()
  assert run_until(*before(1)) == 1
  kept = workdir / so_far.NAME
  assert len(files.read_jsonl(kept)) == 2
  with kept.open("a") as file:
    file.write('{"of": "torn')
  assert run_until(*before(2)) == 2
  is_result = lambda _, path, *__: path.name in RESULTS  # noqa: E731
  assert run_until(files, "write_jsonl", is_result) == len(every) - 3
  is_last = lambda _, to: (to / "summary.json").exists()  # noqa: E731
  assert run_until(so_far.sealed, "write", is_last) == 0
  assert kept.exists()
  run(workdir)
  assert left(workdir) == left(whole)
  assert so_far.NAME not in left(workdir)


def test_an_evaluation_goes_on(tmp_path, monkeypatch, finished):
  """Killed while rows are scored, while the anchor answers, and the policy."""
  fields = {"eval__rows": 8, "eval__batch_size": 2}
  for role, stage in (("policy", "rl"), ("reward", "reward")):
    fields[f"{role}__init"] = str(finished / stage)
  workdir, whole = tmp_path / "run", tmp_path / "whole"

  def computed(to, answers=None, scores=None):
    """Batches that are answered and scored, until this many have been."""
    with monkeypatch.context() as patches:
      found = [
        dies(
          patches, *COMPUTES[task], lambda calls, *_, at=at: len(calls) == at
        )
        for task, at in (("generate", answers), ("score", scores))
      ]
      if answers is None and scores is None:
        tiny.run(to, "evaluate", **fields)
      else:
        with pytest.raises(Killed):
          tiny.run(to, "evaluate", **fields)
    return tuple(map(len, found))

  answers, scores = computed(whole)
  assert answers == 8 and scores > 2  # four batches of either side
  assert computed(workdir, scores=2) == (0, 2)
  assert computed(workdir, answers=3) == (3, scores - 2)
  assert computed(workdir, answers=3) == (3, 0)
  assert computed(workdir) == (answers - 6, 0)
  assert left(workdir) == left(whole)


def test_killed_and_told_to_stop_by_signals(
  tmp_path, monkeypatch, given, finished
):
  """SIGKILL, SIGTERM, and what may not change in between."""
  (tmp_path / "mine.py").write_text(LETTERS)
  fields = given("generate") | {"reward__fn": f"{tmp_path}/mine.py:letters"}
  workdir, whole = tmp_path / "run", tmp_path / "whole"
  flags = tiny.fields("generate", "jsonl") | tiny.dotted(fields)
  command = [
    "--config=configs/generate.py:jsonl",
    *(f"--config.{name}={value}" for name, value in flags.items()),
    f"--workdir={workdir}",
  ]

  def asked(name):
    return (tmp_path / name).read_text().splitlines()

  def run_until(line, by):
    monkeypatch.setenv("KILLED_AT", str(line))
    monkeypatch.setenv("KILLED_BY", str(int(by)))
    process = test_main.start(*command)
    _, said = process.communicate(timeout=300)
    monkeypatch.delenv("KILLED_AT")
    return process.returncode, said

  monkeypatch.setenv("ASKED", str(tmp_path / "by_whole"))
  tiny.run(whole, "generate", "jsonl", **fields)
  monkeypatch.setenv("ASKED", str(tmp_path / "by_run"))
  status, said = run_until(2, signal.SIGKILL)
  assert status == -signal.SIGKILL, said
  before = tiny.tree(workdir)
  with pytest.raises(ValueError, match="belongs to a run with another config"):
    tiny.run(workdir, "generate", "jsonl", **fields | {"seed": 1})
  rows = tmp_path / "rows.jsonl"
  files.write_jsonl(rows, ROWS[::-1])
  with pytest.raises(ValueError, match=r"(?s)so_far\.jsonl was.*prompts.* -> "):
    tiny.run(workdir, "generate", "jsonl", **fields)
  files.write_jsonl(rows, ROWS)
  now = tiny.tree(workdir)
  assert now.pop("lock.json", None) or before.pop("lock.json")
  before.pop("lock.json", None)
  assert now == before
  status, said = run_until(4, signal.SIGTERM)
  assert status == 75 and "Traceback" not in said, said
  (line,) = [x for x in said.splitlines() if x.startswith("Stopped by")]
  assert f"SIGTERM, what has been computed so far is kept in {workdir}" in line
  tiny.run(workdir, "generate", "jsonl", **fields)
  first, second, third, fourth = asked("by_whole")
  assert asked("by_run") == [first, second, second, third, third, fourth]
  assert left(workdir) == left(whole)


def test_a_judge_asks_for_the_rest(tmp_path, monkeypatch, finished):
  """Killed while the second side answers, then while the endpoint does."""
  monkeypatch.setenv("PERL_JAX_ENDPOINT_KEY", "sesame-open-up")
  mine, code = tmp_path / "mine.py", "def first(prompts, a, b, rows): return "
  mended = f"{code}list('a' * len(a))\n"
  mine.write_text(mended)
  workdir, whole = tmp_path / "run", tmp_path / "whole"
  with serving() as server:
    server.answer = judging_chat.shorter
    given = {
      "policy__init": str(finished / "rl"),
      "against__init": str(finished / "sft"),
      "judges": f'("{mine}:first", "endpoint")',
      "endpoint__url": server.url,
      "endpoint__model": "small",
      "endpoint__parallel": 1,
      "eval__batch_size": 4,
    }
    tiny.run(whole, "judge", **given)
    questions = len(server.asked)
    assert questions > 2
    server.asked.clear()
    mine.write_text(f"{code}['a'] * len(a)\n")
    with monkeypatch.context() as patches, pytest.raises(Killed):
      dies(patches, *COMPUTES["judge"], lambda calls, *_: len(calls) == 3)
      tiny.run(workdir, "judge", **given)
    assert not server.asked
    mine.write_text(mended)  # which is no reason to sample anew
    with monkeypatch.context() as patches:
      calls = dies(patches, *COMPUTES["judge"], lambda *_: False)
      with monkeypatch.context() as inner, pytest.raises(Killed):
        dies(inner, answers_file.files, "append", is_third_answer)
        tiny.run(workdir, "judge", **given)
      assert len(calls) == 1  # of four batches
      assert len(answers_file.read(workdir)) == 2
      assert not any(
        b"sesame-open-up" in content for content in tiny.tree(workdir).values()
      )
      tiny.run(workdir, "judge", **given)
      assert len(calls) == 1
  times = collections.Counter(map(str, server.asked))
  assert len(times) == questions
  assert sorted(times.values()) == [1] * (questions - 1) + [2]
  assert left(workdir) == left(whole)


def is_third_answer(calls, file, rows):
  """Answered and not written down, which has to be asked again."""
  del calls
  number = len(answers_file.files.read_jsonl(file.name))
  return "key" in rows[0] and number == 2

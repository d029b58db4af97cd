"""What can be seen of a policy while it is trained."""

import contextlib
import io

import pytest

from tests.tasks import tiny
from tests.tasks.rollouts.test_reward_runs import GOLD, SHORT
from tests.tasks.training.test_profile import names_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory, sft_run):
  """(workdir, what was printed) of a run with a trace and samples."""
  workdir = tmp_path_factory.mktemp("seen") / "rl"
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    tiny.run(
      workdir, "rl", policy__init=str(sft_run), reward__fn=GOLD,
      show_samples=2, profile__steps=(1, 2), **SHORT,
    )  # fmt: skip
  return workdir, printed.getvalue()


def test_a_trace_has_the_phases_of_an_iteration(seen):
  workdir, _ = seen
  assert {"rollout", "scoring", "learning"} <= names_in(workdir / "profile")


def test_the_same_prompts_are_shown_at_each_evaluation(seen):
  workdir, printed = seen
  rows = tiny.lines(workdir, "samples.jsonl")
  for step in (1, 2):
    _, _, shown = printed.partition(f"Step {step}: held-out prompts")
    first, second = [row for row in rows if row["step"] == step][:2]
    assert "  1 of 2\n" in shown and "  2 of 2\n" in shown
    place = shown.index(first["prompt"].split("\n")[0])
    assert place < shown.index(second["prompt"].split("\n")[0])
    assert f"policy (reward {second['policy_reward']:.2f})" in shown


def test_dpo_shows_them_too(tmp_path, sft_run):
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    tiny.run(tmp_path / "dpo", "dpo", policy__init=str(sft_run), show_samples=1)
  rows = tiny.lines(tmp_path / "dpo", "samples.jsonl")
  for step in {row["step"] for row in rows}:
    _, _, shown = printed.getvalue().partition(f"Step {step}: held-out")
    first = next(row for row in rows if row["step"] == step)
    assert "  1 of 1\n" in shown and first["prompt"].split("\n")[0] in shown

"""An evaluation is made once, as long as what it stands on is the same."""

import json
import logging
import os
import subprocess

import pytest

from perl_jax import checksums, tasks
from perl_jax.tasks.evaluation import again
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.training import lock
from perl_jax.tasks.training import workdir as workdir_lib
from perl_jax.tasks.training.standing import Standing
from tests.tasks import tiny
from tests.tasks.training.test_finished import stamps

DIGESTS = {"base of the policy": "a" * 64, "validation rows": "b" * 64}
NOW = Standing(DIGESTS, dict.fromkeys(DIGESTS, "here"))


def config(**overrides):
  made = tiny.config("evaluate", policy__init="sft", **overrides)
  return tasks.resolved(made, "nowhere")


@pytest.fixture
def made(tmp_path):
  """The workdir of an evaluation, as one leaves it."""
  workdir = tmp_path / "run"
  with workdir_lib.preparing(config(), workdir):
    again.note(workdir, NOW)
    (workdir / "samples.jsonl").write_text('{"step": 0}\n')
    (workdir / "summary.json").write_text('{"policy.kl": 1.5}')
  return workdir


def test_the_same_again_is_the_same_result(made, caplog):
  before, when = tiny.tree(made), stamps(made)
  with caplog.at_level(logging.INFO, "absl"):
    assert again.summary_of(config(), made, NOW) == {"policy.kl": 1.5}
  assert "has finished: nothing is left to do" in caplog.text
  assert tiny.tree(made) == before and stamps(made) == when


def test_what_has_changed_is_said(made, caplog):
  digests = DIGESTS | {"base of the policy": "c" * 64}
  now = Standing(digests, NOW.places)
  before = tiny.tree(made)
  assert again.summary_of(config(), made, now) is None
  line = f"base of the policy: {'a' * 12} -> {'c' * 12} (here)"
  assert "is made anew" in caplog.text and line in caplog.text
  assert "validation rows" not in caplog.text
  caplog.clear()
  more = DIGESTS | {"reward function": "d" * 64}
  now = Standing(more, dict.fromkeys(more, "here"))
  assert again.summary_of(config(), made, now) is None
  assert f"reward function: (none) -> {'d' * 12} (here)" in caplog.text
  assert tiny.tree(made) == before


def test_a_field_that_may_change_changes_what_is_written(made, caplog):
  assert again.summary_of(config(eval__samples=1), made, NOW) is None
  assert "config.eval.samples: 64 -> 1" in caplog.text
  with pytest.raises(ValueError, match=r"config\.seed: 0 -> 3"):
    again.summary_of(config(seed=3), made, NOW)


@pytest.mark.parametrize("text", [None, "", "[1]", '{"base of'])
def test_without_a_note_it_is_made_anew(made, caplog, text):
  (made / again.STANDS_ON).unlink()
  if text is not None:
    (made / again.STANDS_ON).write_text(text)
  assert again.summary_of(config(), made, NOW) is None
  assert again.STANDS_ON in caplog.text


def test_a_damaged_result_is_refused(made):
  (made / "summary.json").write_text('{"policy.kl": 1.6}')
  with pytest.raises(ValueError, match=r"summary\.json is not as it was"):
    again.summary_of(config(), made, NOW)
  again.remove(made)
  assert not again.has_result(made)
  assert sorted(p.name for p in made.iterdir()) == [
    "command.txt", "config.json", "samples.jsonl",
  ]  # fmt: skip


def test_a_kill_at_any_moment_of_making_it_anew_is_seen(made):
  """Of what says that it is done, the summary goes first and comes last."""
  now = Standing(DIGESTS | {"base of the policy": "c" * 64}, NOW.places)
  again.remove(made)
  assert not again.has_result(made)  # it would be made, whatever is noted
  again.note(made, now)
  assert not again.has_result(made)
  (made / "summary.json").write_text('{"policy.kl": 1.7}')
  assert not (made / checksums.LISTING).exists()
  assert again.summary_of(config(), made, now) == {"policy.kl": 1.7}
  sealed.write(made)
  assert again.summary_of(config(), made, now) == {"policy.kl": 1.7}


def test_one_killed_after_its_summary_leaves_no_lock(made):
  where = made / lock.LOCK_FILE
  dead = subprocess.Popen(["true"])
  dead.wait()
  for pid, left in ((dead.pid, False), (os.getppid(), True)):
    theirs = lock.myself() | {"pid": pid, "started": lock._started(pid)}
    where.write_text(json.dumps(theirs))
    assert again.summary_of(config(), made, NOW) == {"policy.kl": 1.5}
    assert where.exists() == left

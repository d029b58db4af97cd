"""Several processes give what one gives: metrics, rows, scores, checkpoints.

Run by `main`, as on several hosts, and compared with one process on as many
devices. Float32 sums that go over the network are taken in another order, so
numbers may differ by rounding; the tolerances are stated below.
"""

import json

import pytest

from perl_jax import tasks
from tests.endpoints.server import serving
from tests.hosts.group import assert_same_lines
from tests.tasks import tiny

pytestmark = pytest.mark.slow

# What one and two processes differ by on the same two devices: nothing that
# was seen, but a reduction over the network may round otherwise.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
# Four parts of a batch, not two: other sums of float32, four updates long.
CLOSE_BY_FOUR = {"rtol": 1e-4, "atol": 2e-5}


def alone(task, workdir, **overrides):
  """The same run by this process on two devices."""
  overrides = {"mesh__data": 2} | overrides
  tasks.run(tiny.config(task, **overrides), workdir)
  return workdir


def assert_one_writer(workdir, count):
  """Text is written once: no second line of a step, no torn one."""
  steps = [row["step"] for row in tiny.lines(workdir)]
  assert steps == sorted(steps)
  assert len(list((workdir / "tensorboard").iterdir())) == 1
  command = (workdir / "command.txt").read_text()
  assert f"--num_processes={count} --process_id=0" in command


@pytest.mark.nightly
def test_reward_model_by_two_and_by_four(tmp_path, sft_run, run_together):
  given = {"reward__init": str(sft_run), "probe_rows": 2048}
  expected = alone("reward", tmp_path / "alone", **given)
  for count, close in ((2, CLOSE), (4, CLOSE_BY_FOUR)):
    found = run_together("reward", count, **given)
    assert_same_lines(tiny.lines(found), tiny.lines(expected), **close)
    rows, wanted = (tiny.lines(d, "scores.jsonl") for d in (found, expected))
    assert [row["id"] for row in rows] == [row["id"] for row in wanted]
    for row, other in zip(rows, wanted):
      for side in ("chosen", "rejected"):
        assert row[side] == pytest.approx(other[side], abs=1e-5)
    assert_one_writer(found, count)
    assert (
      json.loads((found / "model.json").read_text())["fingerprint"]
      == json.loads((expected / "model.json").read_text())["fingerprint"]
    )


def test_rl_with_a_function_on_the_process_that_holds_the_rows(
  tmp_path, monkeypatch, sft_run, run_together
):
  given = {
    "policy__init": str(sft_run),
    "reward__fn": "tests.hosts.rewards:seen_rows",
    "estimator": "ppo",
    "ppo__minibatches": 2,
    "microbatches": 1,
    "samples_per_prompt": 2,
    "steps": 2,
    "eval__rows": 3,  # a batch of eight: the second process has none of them
  }
  monkeypatch.setenv("PERL_JAX_SEEN", str(tmp_path / "asked_alone"))
  expected = alone("rl", tmp_path / "alone", **given)
  found = run_together(
    "rl", 2, {"PERL_JAX_SEEN": str(tmp_path / "asked")}, **given
  )
  assert_same_lines(tiny.lines(found), tiny.lines(expected), **CLOSE)
  assert tiny.lines(found, "samples.jsonl") == tiny.lines(
    expected, "samples.jsonl"
  )
  (everything,) = asked(tmp_path, "asked_alone.*")
  mine, theirs = asked(tmp_path, "asked.*")
  # Each tries the function twice on the same two rows first.
  assert mine[:4] == theirs[:4] == everything[:4]
  assert mine[4:] and theirs[4:]
  assert sorted(mine[4:] + theirs[4:]) == sorted(everything[4:])


def test_rl_with_a_server_that_process_0_alone_asks(
  tmp_path, sft_run, run_together
):
  with serving() as server:
    given = {
      "policy__init": str(sft_run), "reward__fn": server.url,
      "estimator": "rloo", "samples_per_prompt": 2, "steps": 2,
      "eval__rows": 3,
    }  # fmt: skip
    expected = alone("rl", tmp_path / "alone", **given)
    wanted = sorted(map(json.dumps, server.asked))
    server.asked.clear()
    found = run_together("rl", 2, **given)
    assert sorted(map(json.dumps, server.asked)) == wanted
  assert_same_lines(tiny.lines(found), tiny.lines(expected), **CLOSE)


def asked(directory, pattern):
  return [p.read_text().split() for p in sorted(directory.glob(pattern))]


@pytest.mark.nightly
def test_dpo_where_the_processes_split_widths_not_rows(
  tmp_path, sft_run, run_together
):
  """Both hold all rows then, and each a part of every kernel."""
  given = {
    "policy__init": str(sft_run),
    "mesh__data": 1,
    "mesh__tensor": 2,
    "steps": 2,
    "eval__rows": 3,  # a batch that padding fills up
  }
  expected = alone("dpo", tmp_path / "alone", **given)
  found = run_together("dpo", 2, **given)
  assert_same_lines(tiny.lines(found), tiny.lines(expected), **CLOSE)
  assert tiny.lines(found, "samples.jsonl") == tiny.lines(
    expected, "samples.jsonl"
  )

"""The speed comparison: what is read, how it is pooled, and a toy run."""

import dataclasses
import json
import os
import pathlib
import sys

import pytest

from benchmarks import process, rl_speed, speed_arms

MODEL = {
  "vocab_size": 30,
  "num_layers": 2,
  "width": 16,
  "mlp_width": 32,
  "num_heads": 2,
  "num_kv_heads": 1,
  "head_dim": 8,
  "scan_unroll": 2,
}


def measured(cpu, peak=100e6, **phases):
  return rl_speed.Measured(cpu / 2, cpu, phases, peak)


def step(cpu, clean=True):
  spent = {"all": [cpu / 2, cpu], "sample": [0.1, cpu / 4]}
  return {"spent": spent, "clean": clean}


def test_steps_with_a_busy_machine_count_only_if_there_are_no_others():
  found = {
    "steps": [step(4.0), step(400.0, clean=False), step(8.0)],
    "peak_bytes": 7,
  }
  ours = rl_speed.of_ours(found)
  assert (ours.cpu, ours.wall, ours.peak_bytes) == (6.0, 3.0, 7)
  assert ours.phases == {"sample": 1.5}
  found["steps"] = [step(400.0, clean=False)]
  assert rl_speed.of_ours(found).cpu == 400.0


def test_what_the_peers_print_is_read():
  trl = rl_speed.of_peer(
    {
      "median_s_per_iteration": 10.0,
      "cpu_s_per_iteration": 19.0,
      "phases_cpu_s": {
        "generate": 5.0,
        "logps_nograd": 4.0,
        "reward": 2.0,
        "rest": 8.0,
      },
      "peak_rss_mb": 3.0,
    }
  )
  assert trl == rl_speed.Measured(
    10.0, 19.0, {"sample": 5.0, "learn": 8.0, "score": 6.0}, 3 * 2**20
  )
  tunix = rl_speed.of_peer(
    {
      "iteration_s": 8.0,
      "iteration_cpu_s": 15.0,
      "sampler_cpu_s": 5.0,
      "peak_rss_mb": 1.0,
    }
  )
  assert (tunix.cpu, tunix.phases) == (15.0, {"sample": 5.0})
  reward = rl_speed.of_peer(
    {"median_s_per_step": 3.0, "cpu_s_per_step": 5.0, "peak_rss_mb": 1.0}
  )
  assert (reward.wall, reward.cpu, reward.phases) == (3.0, 5.0, {})


def test_rounds_are_pooled():
  rounds = [
    measured(1.0, 5, learn=1.0),
    measured(9.0, 3, learn=3.0),
    measured(2.0, 4, learn=2.0),
  ]
  pooled = rl_speed.pooled(rounds)
  assert (pooled.cpu, pooled.wall, pooled.peak_bytes) == (2.0, 1.0, 5)
  assert pooled.phases == {"learn": 2.0}


def test_a_ratio_is_ours_by_theirs():
  found = {
    "rloo": measured(6.0, 50e6, sample=1.0, learn=4.0),
    "TRL RLOO": measured(20.0, 200e6),
    "rloo, full": measured(12.0, 100e6),
  }
  lines = rl_speed.table(found).splitlines()
  assert lines[2:] == [
    "| **rloo** | 6.00 | 1.00 |  | 4.00 | 3.00 | 50 |  |  |",
    "| TRL RLOO | 20.00 |  |  |  | 10.00 | 200 | 0.30 | 0.25 |",
    "| **rloo, full** | 12.00 |  |  |  | 6.00 | 100 |  |  |",
  ]
  assert len({line.count("|") for line in lines}) == 1
  assert rl_speed.tunings(found).splitlines()[2:] == [
    "| rloo | 0.50 | 0.50 | 0.50 |"
  ]


def test_configurations_take_turns_and_a_peer_runs_once_a_round(monkeypatch):
  ran = []

  def ours(arm, count, changes):
    ran.append(arm)
    return measured(1.0)

  def theirs(peer, count, folder, model):
    ran.append(peer.script)
    return measured(2.0)

  monkeypatch.setattr(rl_speed, "run_ours", ours)
  monkeypatch.setattr(rl_speed, "run_peer", theirs)
  monkeypatch.setattr(
    sys,
    "argv",
    [
      "x",
      "--peers=p",
      "--model=m",
      "--rounds=2",
      "--only=reinforce;reinforce 32 x 1;reward",
    ],
  )
  found = rl_speed.run(rl_speed.flags())
  once = {"reinforce", "reinforce 32 x 1", "reward"}
  once |= {"trl_rl.py", "tunix_rl.py", "trl_rm.py"}
  assert len(ran) == 12 and set(ran[:6]) == set(ran[6:]) == once
  assert [len(rounds) for rounds in found.values()] == [2] * 6


def test_a_file_keeps_what_other_commands_measured(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.setattr(rl_speed, "run_ours", lambda *args: measured(3.0))
  path = tmp_path / "new" / "found.json"
  for arm in ("rloo", "rloo, full"):
    argv = ["x", f"--only={arm}", f"--json={path}"]
    monkeypatch.setattr(sys, "argv", argv)
    rl_speed.main()
  assert set(json.loads(path.read_text())) == {"rloo", "rloo, full"}
  assert "| rloo | 1.00 | 1.00 | 1.00 |" in capsys.readouterr().out


def test_arms_and_peers_are_known():
  assert set(rl_speed.GROUPS) == set(speed_arms.ARMS)
  named = {name for peers in rl_speed.GROUPS.values() for name in peers}
  assert named == set(rl_speed.PEERS)


def test_a_command_that_fails_says_why():
  code = "import sys; print('{}'); sys.exit('no model')"
  with pytest.raises(ValueError, match=r"exit 1.*\n.*no model"):
    process.last_json([sys.executable, "-c", code])
  with pytest.raises(ValueError, match="gave no result"):
    process.last_json([sys.executable, "-c", "print('hello')"])
  code = "print('noise'); print('{\"a\": 1}')"
  assert process.last_json([sys.executable, "-c", code]) == {"a": 1}


def test_an_unknown_arm_is_refused(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["x", "--only=roo"])
  with pytest.raises(ValueError, match=r"--only=\['roo'\]"):
    rl_speed.run(rl_speed.flags())


def test_peers_need_a_model(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["x", "--peers=p"])
  with pytest.raises(SystemExit):
    rl_speed.flags()
  assert "--model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "phases"),
  [
    ("rloo", {"sample", "score", "learn", "all"}),
    ("reinforce, full", {"sample", "score", "learn", "all"}),
    ("reward", {"learn", "all"}),
  ],
)
def test_an_arm_runs(name, phases):
  arm = dataclasses.replace(
    speed_arms.ARMS[name],
    prompts=2,
    microbatches=2,
    prompt_len=4,
    response_len=3,
    model=MODEL,
  )
  if arm.estimator:
    arm = dataclasses.replace(arm, group=2, score_microbatches=1)
  found = speed_arms.measure(arm, warmup=1, count=2)
  assert len(found["steps"]) == 2
  for step in found["steps"]:
    assert set(step["spent"]) == phases
    parts = [v for k, v in step["spent"].items() if k != "all"]
    # The clock of the processor ticks coarsely; that of the wall does not.
    assert 0 < sum(wall for wall, _ in parts) <= step["spent"]["all"][0]
  assert found["peak_bytes"] > 2**20
  assert set(found["flops"]) == phases - {"all"}
  assert all(found["flops"].values())
  assert (found["device"], found["device_peak_bytes"]) == ("cpu", None)
  assert rl_speed.of_ours(found).wall > 0


def test_the_arms_are_of_one_size():
  rollouts = {
    arm.prompts * arm.group for arm in speed_arms.ARMS.values() if arm.estimator
  }
  assert rollouts == {32}
  tokens = {
    arm.prompt_len + arm.response_len
    for arm in (speed_arms.ARMS["reward"], speed_arms.ARMS["reward, full"])
  }
  assert tokens == {256}


def test_ours_asks_for_large_pages_and_a_peer_for_its_package(monkeypatch):
  given = []

  def last_json(command, *, cwd=None, env=None):
    given.append(env)
    raise ValueError

  monkeypatch.setattr(process, "last_json", last_json)
  with pytest.raises(ValueError):
    rl_speed.run_ours("rloo", 1, "{}")
  for name in ("TRL PPO", "TRL RLOO"):
    with pytest.raises(ValueError):
      rl_speed.run_peer(rl_speed.PEERS[name], 1, pathlib.Path("p"), "model")
  path = str(pathlib.Path("p", "trl112"))
  assert given == [rl_speed.LARGE_PAGES, {"PYTHONPATH": path}, {}]


def test_a_process_has_the_rest_of_the_environment_too():
  code = "import json, os; print(json.dumps(dict(os.environ)))"
  found = process.last_json([sys.executable, "-c", code], env={"A": "b"})
  assert (found["A"], found["PATH"]) == ("b", os.environ["PATH"])

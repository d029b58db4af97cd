"""The speed comparison on a given model: who runs on it, who needs a copy."""

import dataclasses
import json
import sys

import pytest

from benchmarks import process, rl_speed, speed_arms, speed_peers
from perl_jax import params
from tests.interop import tiny

MEASURED = rl_speed.Measured(wall=0.5, cpu=1.0, phases={}, peak_bytes=1e8)


def flags(monkeypatch, *given):
  monkeypatch.setattr(sys, "argv", ["x", *given])
  return rl_speed.flags()


def test_a_checkpoint_is_the_model_of_both_sides(monkeypatch):
  ran = []

  def ours(arm, count, changes):
    ran.append((arm, json.loads(changes)))
    return MEASURED

  def theirs(peer, count, folder, model):
    ran.append((peer.script, model))
    return MEASURED

  monkeypatch.setattr(rl_speed, "run_ours", ours)
  monkeypatch.setattr(rl_speed, "run_peer", theirs)
  given = ["--peers=p", "--only=rloo", '--set={"group": 2}']
  path = tiny.REFERENCES / "llama3" / "checkpoint"
  monkeypatch.setattr(
    process, "last_json", lambda *a, **k: {"directory": str(path)}
  )
  with rl_speed.models(
    flags(monkeypatch, *given, f"--checkpoint={path}", "--beside=TRL RLOO")
  ) as found:
    rl_speed.run(found)
  fields = {"group": 2, "checkpoint": str(path)}
  assert ran == [("rloo", fields), ("trl_rl.py", path)]
  ran.clear()
  with rl_speed.models(
    flags(monkeypatch, *given, f"--checkpoint={path}")
  ) as found:
    rl_speed.run(found)
  # Tunix makes a model of its own.
  assert [name for name, _ in ran] == ["rloo", "trl_rl.py", "trl_rl.py"]


def test_a_file_that_peers_cannot_read_is_copied_for_them(monkeypatch):
  commands = []

  def last_json(command, *, cwd=None, env=None):
    commands.append(command)
    return {"directory": command[-1]}

  monkeypatch.setattr(process, "last_json", last_json)
  given = flags(monkeypatch, "--peers=p", "--checkpoint=a/model.gguf")
  with rl_speed.models(given) as found:
    assert commands[0][2:] == [
      "benchmarks.hugging_face_copy", "a/model.gguf", str(found.model)
    ]  # fmt: skip
    assert found.model.is_dir()
  assert not found.model.exists()
  with rl_speed.models(flags(monkeypatch, "--checkpoint=a/model.gguf")):
    assert len(commands) == 1  # nobody needs a copy


@pytest.mark.parametrize(
  "given",
  [
    ["--peers=p", "--checkpoint=c", "--model=m"],
    ["--model=m", "--beside=TRL"],
    ["--checkpoint=c", "--beside=Tunix PPO"],
  ],
)
def test_flags_that_do_not_go_together(monkeypatch, given):
  with pytest.raises((SystemExit, ValueError)):
    found = flags(monkeypatch, "--peers=p", "--only=rloo", *given)
    speed_peers.chosen(found.beside, bool(found.checkpoint))


@pytest.mark.nightly
def test_an_arm_runs_on_a_checkpoint():
  arm = dataclasses.replace(
    speed_arms.ARMS["rloo"],
    prompts=2,
    group=2,
    microbatches=2,
    score_microbatches=1,
    prompt_len=4,
    response_len=3,
    checkpoint=str(tiny.REFERENCES / "llama3" / "checkpoint"),
  )
  found = speed_arms.measure(arm, warmup=1, count=1)
  assert rl_speed.of_ours(found).phases.keys() == {"sample", "score", "learn"}
  base = tiny.load(arm.checkpoint).frozen
  assert found["policy_bytes"] > params.nbytes(base)
  assert found["policy_bytes"] < 2 * params.nbytes(base)

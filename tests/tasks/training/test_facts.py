"""What a model card says of a stage, and a workdir whose files are damaged."""

import json

import pytest

from perl_jax.tasks.initial import manifest
from perl_jax.tasks.training import facts, workdir


def write(root, config):
  (root / manifest.MODEL_FILE).write_text("{}")
  (root / workdir.CONFIG_FILE).write_text(json.dumps(config))


CONFIG = {
  "task": "sft",
  "steps": 4,
  "data": {"name": "coffee_bar"},
  "optimizer": {"learning_rate": 0.5},
}


def test_facts(tmp_path):
  assert facts.training_facts(tmp_path, "last") == {}
  write(tmp_path, CONFIG)
  # What was measured belongs to a checkpoint, and there is none.
  (tmp_path / "summary.json").write_text('{"kl": 0.25, "seconds": 3}')
  assert facts.training_facts(tmp_path, "last") == {
    "task": "sft",
    "steps": 4,
    "data": "coffee_bar",
    "learning_rate": 0.5,
  }


RL = {
  **CONFIG,
  "task": "rl",
  "seed": 3,
  "beta": 0.05,
  "estimator": "rloo",
  "samples_per_prompt": 4,
  "kl": {"estimator": "k1", "place": "loss"},
  "reward": {"init": "/home/me/secret/runs/reward/", "fn": ""},
}


def test_facts_of_rl(tmp_path):
  write(tmp_path, RL)
  assert facts.settings(tmp_path) == {
    "task": "rl",
    "steps": 4,
    "seed": 3,
    "estimator": "rloo",
    "samples_per_prompt": 4,
    "beta": 0.05,
    "kl.place": "loss",
    "reward model": "reward",
    "data": "coffee_bar",
    "learning_rate": 0.5,
  }
  # A stage that trains a reward model began with what it calls so.
  write(tmp_path, RL | {"task": "reward"})
  assert "reward model" not in facts.settings(tmp_path)


@pytest.mark.parametrize(
  "reward, shown",
  [
    ({"init": "gs://mine/runs/reward"}, {"reward model": "reward"}),
    (
      {"init": "/c/models--org--judge/snapshots/0a"},
      {"reward model": "org/judge"},
    ),
    ({"init": "", "fn": "pkg.mod:ok"}, {"reward function": "pkg.mod:ok"}),
    (
      {"fn": "/home/me/secret/mine.py:length=0.5"},
      {"reward function": "mine.py:length=0.5"},
    ),
    (
      {"fn": '("mine:a", "http://me:secret@inside:8000/score")'},
      {"reward function": "mine:a, a server"},
    ),
    ("damaged", {}),
  ],
)
def test_a_reward_has_a_name_and_no_place(tmp_path, reward, shown):
  write(tmp_path, RL | {"reward": reward})
  found = facts.settings(tmp_path)
  assert {k: v for k, v in found.items() if "reward" in k} == shown


@pytest.mark.parametrize(
  "config, said",
  [
    ({**CONFIG, "data": 5}, "no data.name"),
    ({**CONFIG, "optimizer": {}}, "no optimizer.learning_rate"),
    ([], "not a JSON object"),
  ],
)
def test_damage_is_named(tmp_path, config, said):
  write(tmp_path, config)
  with pytest.raises(ValueError) as caught:
    facts.training_facts(tmp_path, "last")
  assert str(tmp_path / workdir.CONFIG_FILE) in str(caught.value)
  assert said in str(caught.value)

"""What members of a run there are, and what is refused."""

import pytest

from perl_jax.tasks.settings import members
from tests.tasks import tiny

LORA = {"tuning": "lora", "optimizer__learning_rate": 0.5}


def configs(task, **fields):
  return members.configs_of(tiny.config(task, **LORA | fields))


def test_seeds_count_from_that_of_the_run():
  found = configs("reward", members=3, seed=5)
  assert [own.seed for own in found] == [5, 6, 7]
  assert [own.optimizer.learning_rate for own in found] == [0.5] * 3
  assert not members.values_of(found)


def test_a_member_has_the_config_of_a_run_of_its_own():
  found = configs("sft", members=2, seed=5, profile__steps=(1, 2))
  assert found[0] == tiny.config("sft", **LORA, seed=5, profile__steps=(1, 2))
  # One trace is made of what all do.
  assert found[1] == tiny.config("sft", **LORA, seed=6)
  assert not any(map(members.asked, found)) and found[0].is_locked


def test_lists_are_read_side_by_side():
  found = configs(
    "dpo", vary="beta=0.1,0.1,0.3 --config.optimizer.learning_rate=1e-4,2e-4,1"
  )
  assert [own.seed for own in found] == [0, 0, 0]
  assert not any(map(members.asked, found))
  assert [own.beta for own in found] == [0.1, 0.1, 0.3]
  values = members.values_of(found)
  assert {k: list(map(float, v)) for k, v in values.items()} == {
    "beta": pytest.approx([0.1, 0.1, 0.3]),
    "optimizer.learning_rate": pytest.approx([1e-4, 2e-4, 1.0]),
  }


def test_the_number_may_be_said_beside_the_lists():
  assert len(configs("reward", members=2, vary="seed=1,4")) == 2


@pytest.mark.parametrize(
  "task, fields, said",
  [
    ("sft", {"tuning": "full", "members": 2}, "config.tuning='lora'"),
    ("reward", {"ensemble": 2, "members": 2}, "config.ensemble=2"),
    ("sft", {"trackers": ("wandb",), "members": 2}, "config.trackers=()"),
    ("rl", {"judge__by": "length", "members": 2}, "configs/judge.py"),
    ("sft", {"vary": "seed=0,1 lora.alpha=1,2,3"}, "lora.alpha has 3"),
    ("sft", {"members": 3, "vary": "seed=0,1"}, "config.members=3: seed has"),
    ("sft", {"vary": "lora.rank=2,4"}, "not in 'lora.rank'"),
    ("sft", {"vary": "lora.rank=2,4"}, "launch/sweep.py"),
    ("sft", {"vary": "beta=0.1,0.2"}, "not in 'beta'"),
    ("sft", {"vary": "lora.alfa=2,4"}, "Did you mean 'lora.alpha'?"),
    (
      "rl",
      {"members": 2, "rollouts__by_length": True},
      "compute all buckets",
    ),
    ("sft", {"vary": "seed=0,1 seed=2,3"}, "has seed twice"),
    ("sft", {"vary": "seed"}, "'seed' is not FIELD=VALUE,VALUE"),
    ("sft", {"vary": "seed=0,,1"}, "is not FIELD=VALUE,VALUE"),
    ("sft", {"vary": "seed=0,1.5"}, "seed='1.5' is not a whole number"),
    ("sft", {"vary": "lora.alpha=1,x"}, "lora.alpha='x' is not a number"),
    ("sft", {"vary": "seed=3"}, "is of one member"),
    ("sft", {"vary": "seed=3,4,3"}, "members 0 and 2 are the same"),
    ("sft", {"vary": "lora.alpha=1,-1"}, "config.lora.alpha=-1.0 must be"),
  ],
)
def test_bad_members(task, fields, said):
  with pytest.raises(ValueError) as error:
    configs(task, **fields)
  assert said in str(error.value)


def test_a_pipeline_has_one_model_a_stage(tmp_path):
  config = tiny.pipeline(reward__members=2)
  with pytest.raises(ValueError, match=r"config.reward.members=2.*one model"):
    tiny.tasks.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()

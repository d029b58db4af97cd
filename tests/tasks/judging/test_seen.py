"""Whether a judge has seen the rows of the policy's reward model; no run."""

import json

import pytest

from configs import judge, rl
from perl_jax.data import splits
from perl_jax.tasks.judging import asking, seen
from perl_jax.tasks.settings import judge as judge_settings
from perl_jax.tasks.training import changes
from tests.tasks.judging import toys

DATA = {"name": "jsonl", "path": "/d/a.jsonl", "folds": 5, "fold": 0}


@pytest.fixture
def write(tmp_path):
  """Makes a workdir as a run leaves it, as far as this is concerned."""

  def make(
    name, task, digest="", kind="preferences", data=DATA, seed=0, **init
  ):
    workdir = tmp_path / name
    (workdir / "checkpoints" / "4" / "meta").mkdir(parents=True)
    config = {"task": task, "data": data, "seed": seed}
    config |= {role: {"init": str(path)} for role, path in init.items()}
    (workdir / "config.json").write_text(json.dumps(config))
    rows = {f"training rows ({kind})": digest} if digest else {}
    meta = {changes.ENTRY: {"base": "b"} | rows}
    path = workdir / "checkpoints" / "4" / "meta" / "metadata"
    path.write_text(json.dumps(meta))
    return workdir

  return make


def compare(judge, policy):
  return seen.compare(seen.rated(str(judge)), seen.rated(str(policy)))[0]


@pytest.fixture
def policy(write):
  sft = write("sft", "sft", "d0", "demonstrations", policy="")
  reward = write("reward", "reward", "d1", reward=sft)
  return write("rl", "rl", "d2", "prompts", policy=sft, reward=reward)


def elsewhere(**changed):
  return DATA | {"path": "/d/b.jsonl"} | changed


def test_the_reward_model_itself(policy):
  assert compare(policy.parent / "reward", policy) == seen.SAME


def test_another_one_on_the_same_rows(write, policy):
  other = write("other", "reward", "d1", data=elsewhere(), reward="")
  assert compare(other, policy) == seen.SAME
  assert (
    "reward was trained on some of the same rows"
    in seen.compare(seen.rated(str(other)), seen.rated(str(policy)))[1]
  )


def test_the_same_rows_in_other_tokens(write, policy):
  """The fingerprint is another one; what says which rows they are is not."""
  data = DATA | {"max_len": 99, "limit": 10}
  other = write("other", "reward", "d9", data=data, reward="")
  assert compare(other, policy) == seen.SAME


@pytest.mark.parametrize(
  "changed",
  [
    {"data": elsewhere()},
    {"data": DATA | {"fold": 1, "train_folds": [0]}},
    {"data": DATA | {"path": "/d/a"}},
    {"data": DATA | {"path": "/e"}},
  ],
)
def test_other_rows(write, policy, changed):
  other = write("other", "reward", "d9", reward="", **changed)
  assert compare(other, policy) == seen.OTHER


@pytest.mark.parametrize(
  "changed",
  [
    {"seed": 1},
    {"seed": 1, "data": DATA | {"fold": 1, "train_folds": [0]}},
    {"data": DATA | {"folds": 10, "fold": 1, "train_folds": [0]}},
    {"data": DATA | {"margin": 0.5, "fold": 1, "train_folds": [0]}},
    {"data": DATA | {"validation_path": "/d/v.jsonl"}},
    {"data": DATA | {"path": "/d"}},
    {"data": DATA | {"path": "/d", "train_folds": [0], "fold": 1}},
  ],
)
def test_another_division_of_a_file_is_of_the_same_rows(write, policy, changed):
  """Its folds are others, so that every one has rows of every other one."""
  other = write("other", "reward", "d9", reward="", **changed)
  assert compare(other, policy) == seen.SAME


def test_folds_of_two_copies_of_a_data_set(write):
  """One may lack groups, and then the others are in other folds."""
  data = {"name": "hh_rlhf", "path": "", "folds": 5, "fold": 0}
  ours = data | {"dir": "/copies/a", "train_folds": [1, 2, 3]}
  one = write("one", "dpo", "d1", data=ours, policy="")
  theirs = data | {"train_folds": [4]}
  for name, place, found in (
    ("a", "/copies/a", seen.OTHER), ("b", "/copies/b", seen.SAME),
    ("c", "", seen.SAME),
  ):  # fmt: skip
    judge = write(name, "reward", "d2", data=theirs | {"dir": place}, reward="")
    assert compare(judge, one) == found


def test_runs_with_other_seeds_have_one_division(write):
  """`data.split_seed` draws the folds; of older stages it was their seed."""
  data = DATA | {"split_seed": 0, "fold": 1}
  one = write("one", "dpo", "d1", data=data | {"train_folds": [2]}, policy="")
  judge = {"data": data | {"train_folds": [3]}, "reward": ""}
  assert compare(write("a", "reward", "d2", seed=7, **judge), one) == seen.OTHER
  judge["data"] = judge["data"] | {"split_seed": 1}
  assert compare(write("b", "reward", "d3", **judge), one) == seen.SAME
  del judge["data"]["split_seed"]
  older = write("c", "reward", "d4", seed=0, **judge)
  assert compare(older, one) == seen.OTHER


def test_two_divisions_of_a_file_do_share_rows():
  """As `seen` takes it: of two seeds each fold meets each."""
  groups = [str(n) for n in range(200)]
  one, other = (
    splits.assign_folds(groups, folds=5, seed=seed) for seed in (0, 1)
  )
  assert len({(one[g], other[g]) for g in groups}) == 25


@pytest.mark.parametrize(
  ("data", "seed", "same"),
  [
    ({"name": "coffee_bar", "folds": 5, "fold": 0}, 1, seen.OTHER),
    # The fold does not divide what is generated.
    ({"name": "coffee_bar", "folds": 2, "fold": 1}, 0, seen.SAME),
    ({"name": "hh_rlhf", "dir": "copy", "folds": 5, "fold": 0}, 1, seen.SAME),
    ({"name": "hh_rlhf", "dir": "copy", "folds": 5, "fold": 0,
      "train_folds": [1]}, 0, seen.OTHER),
  ],
)  # fmt: skip
def test_a_seed_makes_other_rows_only_where_they_are_generated(
  write, data, seed, same
):
  ours = {"folds": 5, "fold": 0, "train_folds": [2, 3]}
  dpo = write("dpo", "dpo", "d1", data={**data, **ours}, policy="")
  judge = write("judge", "reward", "d2", data=data, seed=seed, reward="")
  assert compare(judge, dpo) == same


@pytest.mark.parametrize(
  ("ours", "theirs", "same"),
  [
    ({"train_folds": [1, 2]}, {"train_folds": [3, 4]}, seen.OTHER),
    ({"train_folds": [1, 2]}, {"train_folds": [2, 3]}, seen.SAME),
    ({"train_folds": [1, 2]}, {}, seen.SAME),
    ({"folds": 2}, {"folds": 2, "fold": 1}, seen.OTHER),
    # Both train on folds 2, 3 and 4.
    ({}, {"fold": 1}, seen.SAME),
    # A directory may have files to validate on, and then holds out no fold.
    ({"path": "/d", "train_folds": [0]}, {"path": "/d"}, seen.SAME),
    (
      {"path": "hf://o/d-v0.1", "train_folds": [0]},
      {"path": "hf://o/d-v0.1"},
      seen.SAME,
    ),
    ({"train_folds": [0], "fold": 1}, {}, seen.OTHER),
    # With a file of its own to validate on, no fold is held out.
    (
      {"validation_path": "/v", "train_folds": [0]},
      {"validation_path": "/v"},
      seen.SAME,
    ),
  ],
)
def test_one_common_fold_is_enough(write, ours, theirs, same):
  dpo = write("dpo", "dpo", "d1", data=DATA | ours, policy="")
  judge = write("judge", "reward", "d2", data=DATA | theirs, reward="")
  assert compare(judge, dpo) == same


def test_what_the_judge_began_with_counts(write, policy):
  """A reward model that was trained on from the policy's own."""
  other = write(
    "on", "reward", "d9", data=elsewhere(), reward=policy.parent / "reward"
  )
  assert compare(other, policy) == seen.SAME


def test_what_the_policy_began_with_counts(write, policy):
  later = write("rl2", "rl", policy=policy, reward="")
  other = write("other", "reward", "d1", data=elsewhere(), reward="")
  assert compare(other, later) == seen.SAME


def test_dpo_has_no_reward_model_and_has_seen_pairs(write):
  dpo = write("dpo", "dpo", "d1", policy="")
  same = write("a", "reward", "d1", data=elsewhere(), reward="")
  other = write("b", "reward", "d2", data=elsewhere(), reward="")
  assert compare(same, dpo) == seen.SAME
  assert compare(other, dpo) == seen.OTHER


def test_what_is_not_known(write, policy, tmp_path):
  (tmp_path / "theirs").mkdir()
  assert compare(tmp_path / "theirs", policy) == seen.UNKNOWN
  other = write("other", "reward", "d9", data=elsewhere(), reward="")
  lost = write("rl3", "rl", policy="", reward=tmp_path / "gone" / "nowhere")
  assert compare(other, lost) == seen.UNKNOWN


def test_a_tree_of_runs_that_was_moved(policy, tmp_path):
  """Paths in config.json are those of the command; the name is enough."""
  config = json.loads((policy / "config.json").read_text())
  config["reward"]["init"] = "once/was/here/reward"
  (policy / "config.json").write_text(json.dumps(config))
  assert compare(policy.parent / "reward", policy) == seen.SAME


def test_a_circle_ends(write, tmp_path):
  one = write("one", "rl", policy=tmp_path / "two")
  write("two", "rl", policy=one)
  assert seen.rated(str(one)).rows == {}


JUDGE = """
def longer(prompts, responses, references):
  return [float(len(response)) for response in responses]
"""


@pytest.mark.parametrize(
  ("rewarded", "said"),
  [
    ("./mine.py:longer", True),
    ('("mine:other=0.5", "./mine.py:longer=1")', True),
    ("./mine.py:other", False),
    ("", False),
  ],
)
def test_a_function_that_has_rewarded_the_policy(
  write, tmp_path, monkeypatch, caplog, rewarded, said
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine.py").write_text(JUDGE)
  policy = write("rl", "rl", "d2", "prompts", policy="")
  config = json.loads((policy / "config.json").read_text())
  config["reward"] = {"init": "", "fn": rewarded}
  (policy / "config.json").write_text(json.dumps(config))
  found = judge.get_config("coffee_bar")
  found.policy.init = str(policy)
  named = judge_settings.Judge(
    "function", "x", f"{tmp_path}/mine.py:longer", "mine"
  )
  judges = asking.Judges(found, [named])
  judges.read(None, None, [toys.row(0), toys.row(1)])
  assert ("trained by this very function" in caplog.text) == said


def test_a_function_that_rewards_the_policy_beside_it(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine.py").write_text(JUDGE)
  found = rl.get_config("coffee_bar")
  found.reward.fn = "./mine.py:longer"
  named = judge_settings.Judge("function", "x", "mine.py:longer", "mine")
  judges = asking.Judges(found, [named])
  judges.read(None, None, [toys.row(0), toys.row(1)])
  assert "the policy is trained by this very function" in caplog.text

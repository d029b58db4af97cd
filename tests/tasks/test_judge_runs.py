"""Judged runs of the pipeline: what is sampled; reward models that judge."""

import dataclasses

import pytest

from perl_jax import checkpoint, files, sharding, tasks
from perl_jax.data.sources import registry
from perl_jax.tasks import judge
from perl_jax.tasks.evaluation import reward_model
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.judging import reward_models
from perl_jax.tasks.judging.pairs import Pair
from perl_jax.tasks.settings import judge as settings
from tests.tasks import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other_reward(finished, tmp_path_factory, compiled_once):
  """A reward model on other orders."""
  workdir = tmp_path_factory.mktemp("rewards") / "other"
  sft = str(finished / "sft")
  tiny.run(workdir, "reward", reward__init=sft, seed=1)
  return workdir


def judged(workdir, finished, **fields):
  policy = str(finished / "rl")
  found = tiny.run(workdir, "judge", policy__init=policy, **fields)
  return found, files.read_jsonl(workdir / judge.VERDICTS)


def test_a_policy_beside_its_anchor(finished, other_reward, tmp_path):
  """The responses are those of an evaluation with the same seed."""
  judges = f'("gold", "reward:{other_reward}")'
  found, rows = judged(tmp_path / "run", finished, judges=judges)
  evaluated = tiny.summary(finished / "evaluate")
  samples = tiny.lines(finished / "evaluate", "samples.jsonl")
  assert [(r["policy"], r["against"]) for r in rows] == [
    (s["policy"], s["anchor"]) for s in samples
  ]
  for name in ("policy.kl", "policy.length", "anchor.length", "policy.gold"):
    assert found[name] == pytest.approx(evaluated[name], rel=1e-6)
  assert found["by.other.same_rows"] == 0.0
  assert found["by.other.judged"] == found["n"] == 8
  assert "anchor.kl" not in found
  assert found["policy.checkpoint_step"] == 4
  for row in rows:
    if row["policy"] == row["against"]:
      assert row["judges"]["other"]["outcome"] == "tie"


def test_a_run_against_itself_is_a_tie_and_against_the_data(finished, tmp_path):
  rl = str(finished / "rl")
  found, rows = judged(tmp_path / "run", finished, against__init=rl)
  assert all(row["policy"] == row["against"] for row in rows)
  assert found["by.gold.tie_rate"] == 1.0
  assert found["other.length"] == found["policy.length"]
  found, rows = judged(
    tmp_path / "reference", finished, against__init="reference"
  )
  assert all(row["against"] == row["reference"] for row in rows)
  assert found["by.gold.loss_rate"] == 1.0 - found["policy.gold"]


def test_two_checkpoints_of_one_run(rl_run, tmp_path):
  """The best one against the last: each side says which step it is of."""
  found = tiny.run(
    tmp_path / "run",
    "judge",
    policy__init=str(rl_run),
    policy__checkpoint="last",
    against__init=str(rl_run),
    against__checkpoint="best",
  )
  for side, which in (("policy", "last"), ("other", "best")):
    step = checkpoint.step_of(rl_run, which)
    assert found[f"{side}.checkpoint_step"] == step


def test_the_policys_own_reward_model_is_refused(
  finished, reward_run, tmp_path, caplog
):
  fields = {"judges": f"reward:{reward_run}"}
  with pytest.raises(ValueError, match=r"--config\.same_rows=warn"):
    judged(tmp_path / "run", finished, **fields)
  assert not (tmp_path / "run").exists()
  found, _ = judged(tmp_path / "run", finished, same_rows="warn", **fields)
  assert found["by.reward.same_rows"] == 1.0
  assert "has seen the rows" in caplog.text


def test_an_anchor_that_nobody_knows(finished, tmp_path):
  sft = str(finished / "sft")
  with pytest.raises(ValueError, match=r"config\.against\.init='anchor'"):
    tiny.run(tmp_path / "run", "judge", policy__init=sft)
  with pytest.raises(ValueError, match="has no scalar head"):
    judged(tmp_path / "run", finished, judges=f"reward:{sft}")
  assert not (tmp_path / "run").exists()


def held_out_pairs():
  """The pairs that a tiny reward model is evaluated on, backwards."""
  stage = tiny.config("reward")
  data = registry.load(
    "coffee_bar", "preferences", seed=0, **stage.data.options.to_dict()
  )
  return [Pair(row, row.chosen, row.rejected) for row in data.validation[::-1]]


def reward_judge(workdir, **options):
  """The reward model of a workdir as a judge."""
  config = tasks.resolved(tiny.config("judge"), workdir / "nowhere")
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1)
  named = settings.Judge("reward", "x", str(workdir), "x")
  start = reward_models.load(named, config, mesh, None)
  role = initial_roles.place(mesh, {"x": start.role})["x"]
  return reward_models.RewardJudge("x", start, role, config, mesh, **options)


def scores_said(opinions):
  """(the policy's score, the other one) that each opinion tells."""
  return [
    [float(part.split()[-1]) for part in first.reason.split(",")]
    for first, _ in opinions
  ]


def test_scores_of_texts_are_those_of_the_stage(reward_run):
  """Held-out pairs as texts, against scores.jsonl of the reward model."""
  pairs, asked = held_out_pairs(), reward_judge(reward_run)
  found = asked(pairs)[::-1]
  rows = tiny.lines(reward_run, "scores.jsonl")
  assert len(rows) == len(found) > 3
  said = scores_said(found)
  for row, (first, last), scores in zip(rows, found, said, strict=True):
    expected = row["chosen"], row["rejected"]
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert first == last
    sign = (row["chosen"] > row["rejected"]) - (row["chosen"] < row["rejected"])
    assert first.verdict == sign
  long = Pair(pairs[0].row, "word " * 500, "x")
  (said,) = asked([long])
  assert said[0].fault == "cut" and said[0].verdict != said[0].verdict


def test_a_judge_that_is_asked_again_scores_what_is_new(
  reward_run, monkeypatch
):
  """Also beside a prompt that does not fit, which both responses shorten."""
  pairs = held_out_pairs()[:4]
  row = pairs[0].row
  turns = [
    {"role": role, "content": "a flat white please " * 8}
    for role in ("user", "assistant") * 12
  ]
  long = dataclasses.replace(row, prompt=(*turns, *row.prompt))
  pairs.append(Pair(long, "A flat white.", "A flat white, and a large tea."))
  scored, score = [], reward_model.score_batches

  def counted(score_, role_, data, mesh):
    found = score(score_, role_, data, mesh)
    scored[-1] += len(found)
    return found

  monkeypatch.setattr(reward_model, "score_batches", counted)
  once, again = (
    reward_judge(reward_run),
    reward_judge(reward_run, again=True),
  )
  later = [pair._replace(policy=f"{pair.policy} Yes.") for pair in pairs]
  # By response: two of each of four pairs, and the pair that is cut as one;
  # then the new responses of four, and that pair.
  for asked, count in ((pairs, 9), (later, 5)):
    scored.append(0)
    found = scores_said(again(asked))
    assert scored[-1] == count
    scored.append(0)
    for mine, other in zip(found, scores_said(once(asked)), strict=True):
      assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert scored[-1] == 5

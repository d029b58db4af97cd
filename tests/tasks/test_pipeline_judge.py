"""A pipeline that has its policy judged, by a reward model of other rows."""

import re

import pytest

from configs import judge, reward
from perl_jax import tasks
from perl_jax.tasks import pipeline
from perl_jax.tasks.settings import judge as judge_settings
from tests.tasks import tiny
from tests.tasks.stages import Stages


def with_judges(**fields):
  """Rows of the policy's reward model, and of one that judges it."""
  config = tiny.pipeline()
  with config.unlocked():
    config.judge = judge.get_config()
    config.judge_reward = reward.get_config()
  config.reward.data.train_folds = (1, 2, 3)
  config.judge_reward.data.train_folds = (4,)
  return tiny.override(config, tiny.dotted(fields))


def test_a_second_reward_model_judges_the_policy(tmp_path, monkeypatch):
  """Beside the judges that the config names."""
  stages = Stages()
  monkeypatch.setattr(tasks, "run", stages)
  summary = pipeline.run(with_judges(), tmp_path / "run")
  assert [task for task, *_ in stages.calls] == [
    *tiny.STAGES, "reward", "judge"
  ]  # fmt: skip
  (_, second, place), (_, asked, _) = stages.calls[-2:]
  run = tmp_path / "run"
  assert place == run / "judge_reward"
  assert second.reward.init == str(run / "sft")
  assert second.data.train_folds == (4,)
  assert asked.policy.init == str(run / "rl")
  named = [found.name for found in judge_settings.judges_of(asked)]
  assert named == ["gold", f"reward:{place}"]
  assert summary["judge_reward.kl"] == 0.5 and summary["seconds.judge"] == 2.0
  page = (run / "report.html").read_text()
  assert "Reward model that judges" in page


@pytest.mark.parametrize(
  "learns, judges, both",
  [((1, 2), (2, 4), [2]), ((), (4,), [4]), ((1,), (), [1])],
)
def test_a_judge_of_the_same_rows_is_refused_at_once(
  tmp_path, learns, judges, both
):
  config = with_judges(
    reward__data__train_folds=learns, judge_reward__data__train_folds=judges
  )
  with pytest.raises(ValueError, match=re.escape(f"has {both} in common")):
    pipeline.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_reward_model_to_judge_wants_a_judgement(tmp_path):
  config = with_judges()
  with config.unlocked():
    del config.judge
  with pytest.raises(ValueError, match=r"configs/judge\.py"):
    pipeline.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()

"""The report of whole, partial and damaged workdirs of synthetic runs."""

import shutil

import pytest

from configs import report as config
from perl_jax import files
from perl_jax.data.sources import registry
from perl_jax.tasks import report
from tests.reporting import runs
from tests.tasks import tiny


def write_stage(directory, stage):
  """Files of a stage of the page, as a run leaves them."""
  directory.mkdir(parents=True, exist_ok=True)
  for name in ("metrics", "samples", "scores"):
    rows = getattr(stage, name)
    if rows:
      files.write_jsonl(directory / f"{name}.jsonl", rows)
  files.write_json(directory / "config.json", stage.config)


def make_pipeline(workdir):
  """A whole run of the pipeline, with few metrics so that it draws quickly."""
  kept = {"step", "train/loss", "rollout/reward", "rollout/gold"}
  kept |= {"seconds/sample"}
  for stage in runs.pipeline():
    metrics = [{k: row[k] for k in row if k in kept} for row in stage.metrics]
    if stage.config:
      write_stage(workdir / stage.name, stage._replace(metrics=metrics))
  (workdir / "evaluate").mkdir()
  files.write_json(workdir / "evaluate" / "summary.json", {"n": 512})
  files.write_json(workdir / "summary.json", runs.SUMMARY)
  files.write_json(workdir / "config.json", runs.CONFIG)
  return workdir


def read(workdir):
  """The report of a workdir, written and read."""
  return report.write_report(workdir).read_text(encoding="utf-8")


@pytest.fixture
def workdir(tmp_path):
  return make_pipeline(tmp_path / "quickstart")


def test_the_task_writes_the_report_and_measures_nothing(workdir):
  assert report.run(config.get_config(), workdir) == {}
  text = (workdir / "report.html").read_text(encoding="utf-8")
  runs.Checker(text)
  assert runs.headings(text) == runs.ALL
  assert "<h1>quickstart</h1>" in text
  assert "--config=configs/quickstart.py" in text
  assert "&quot;coffee_bar&quot;" in text
  assert read(workdir) == text  # the same every time


@pytest.mark.parametrize(
  ("lost", "gone"),
  [
    ("summary.json", []),
    ("config.json", []),
    ("rl/metrics.jsonl", [runs.ALL[1]]),
    ("rl/samples.jsonl", [runs.ALL[4]]),
    ("reward/scores.jsonl", [runs.ALL[3]]),
    ("sft", []),
    ("reward", [runs.ALL[3]]),
    ("rl", [runs.ALL[1], runs.ALL[4]]),
    ("evaluate", []),
  ],
)
def test_a_part_that_is_missing_is_left_out(workdir, lost, gone):
  path = workdir / lost
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  text = read(workdir)
  runs.Checker(text)
  assert runs.headings(text) == [t for t in runs.ALL if t not in gone]


@pytest.mark.parametrize("kept", ["summary.json", "rl/samples.jsonl"])
def test_one_file_is_enough(tmp_path, workdir, kept):
  alone = tmp_path / "alone"
  (alone / "rl").mkdir(parents=True)
  shutil.copy(workdir / kept, alone / kept)
  text = read(alone)
  runs.Checker(text)
  assert runs.headings(text)


@pytest.mark.parametrize(
  ("make", "section"),
  [
    (runs.make_sft, "Curves of each stage"),
    (runs.make_reward, "How good the reward model is"),
    (runs.make_rl, "Reinforcement learning: reward, success and KL"),
  ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_a_stage_on_its_own(tmp_path, make, section, with_config):
  write_stage(tmp_path, make())
  if not with_config:
    (tmp_path / "config.json").unlink()
  files.write_json(tmp_path / "summary.json", {"seconds.total": 61.0})
  text = read(tmp_path)
  assert section in runs.headings(text)
  assert "1:01" in text


def test_a_workdir_with_nothing_says_what_it_should_hold(tmp_path):
  with pytest.raises(ValueError, match=r"nothing to report.*metrics\.jsonl"):
    report.write_report(tmp_path)
  files.write_json(tmp_path / "config.json", {"task": "rl"})
  (tmp_path / "metrics.jsonl").touch()
  with pytest.raises(ValueError, match="nothing to report"):
    report.write_report(tmp_path)
  assert not (tmp_path / "report.html").exists()
  with pytest.raises(FileNotFoundError, match="no such directory"):
    report.write_report(tmp_path / "none")


def test_damaged_files_are_named_and_a_torn_end_is_not_damage(tmp_path):
  write_stage(tmp_path, runs.make_sft())
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 240, "train/lo')
  report.write_report(tmp_path)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('\n{"step": 241}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl:127: not a JSON"):
    report.write_report(tmp_path)
  write_stage(tmp_path, runs.make_sft())
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config\.json:1: not valid JSON"):
    report.write_report(tmp_path)
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(ValueError, match=r"config\.json: is list"):
    report.write_report(tmp_path)


def test_stage_summaries_are_spelled_like_the_pipeline(workdir):
  (workdir / "summary.json").unlink()
  own = {"gold_before": 0.25, "gold_after": 0.5, "seconds": 7200.0}
  own["peak_bytes"] = 2**30
  files.write_json(workdir / "rl" / "summary.json", own)
  text = read(workdir)
  assert "Gold success rose from 25.0% to 50.0%." in text
  assert "2:00:00" in text
  assert "1 GiB" in text


def test_the_root_summary_wins_over_the_stages(workdir):
  files.write_json(workdir / "rl" / "summary.json", {"gold_after": 0.01})
  text = read(workdir)
  assert "to 79.5%" in text


def test_samples_of_harmful_prompts_have_a_notice(workdir):
  notice = registry.describe()["hh_rlhf"].notice
  assert notice not in read(workdir)
  path = workdir / "rl" / "config.json"
  for data, shown in (({"name": "hh_rlhf"}, 1), ({"name": ["x"]}, 0), ("x", 0)):
    files.write_json(path, {"task": "rl", "data": data})
    assert read(workdir).count(notice) == shown


def test_the_command_is_read_from_its_file(tmp_path, workdir):
  shutil.copy(workdir / "summary.json", tmp_path)
  (tmp_path / "command.txt").write_text("python -m perl_jax.main <rl>\n")
  text = read(tmp_path)
  assert "python -m perl_jax.main &lt;rl&gt;</code>" in text


def test_a_long_run_gives_a_small_report(tmp_path):
  rows = [{"step": i, "train/loss": 1.0} for i in range(30_000)]
  files.write_jsonl(tmp_path / "metrics.jsonl", rows)
  assert report.write_report(tmp_path).stat().st_size < 200_000


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path):
  rows = [{"step": 0, "prompt": "p", "policy": "half \ud800 pair"}]
  files.write_jsonl(tmp_path / "samples.jsonl", rows)
  text = read(tmp_path)
  assert "half ? pair" in text


def test_several_runs_are_compared(tmp_path, workdir):
  """Seeds of a pipeline, and a stage alone, whose summary has its own keys."""
  again = shutil.copytree(workdir, tmp_path / "again")
  files.write_json(again / "config.json", runs.CONFIG | {"seed": 1})
  files.write_json(
    again / "summary.json", runs.SUMMARY | {"rl.gold_after": 0.695}
  )
  alone = tmp_path / "alone"
  write_stage(alone, runs.make_rl())
  files.write_json(alone / "summary.json", {"gold_after": 0.5, "seconds": 9.0})
  wanted = config.get_config()
  wanted.runs = (f"both={workdir},{again}", str(alone))
  before = tiny.tree(workdir)
  assert report.run(wanted, tmp_path / "out") == {}
  text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
  runs.Checker(text)
  assert "3 runs of 2 settings" in text
  assert "74.5% ± 7.1%" in text and ">50.0%<" in text
  assert tiny.tree(workdir) == before

  for given, wrong in ((tmp_path / "none", "no such"), (tmp_path, "nothing")):
    wanted.runs = (str(workdir), str(given))
    with pytest.raises((FileNotFoundError, ValueError), match=wrong):
      report.run(wanted, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_directories_of_a_sweep_have_an_equals_sign(tmp_path, workdir):
  """With a label, without one, and as the members of a run."""
  run = shutil.copytree(workdir, tmp_path / "lora.rank=4__seed=0")
  wanted = config.get_config()
  for given, label in (
    (f"{run}", ""),
    (f"mine={run}", "mine"),
    (f"{run},{run}", ""),
  ):
    wanted.runs = (given,)
    report.run(wanted, tmp_path / "out")
    assert label in (tmp_path / "out" / "report.html").read_text()
  with pytest.raises(FileNotFoundError, match=r"lora\.rank=5"):
    wanted.runs = (str(tmp_path / "lora.rank=5"),)
    report.run(wanted, tmp_path / "out")


def test_scores_whose_label_is_a_word_are_drawn(tmp_path):
  rows = [
    {"id": i, "label": word, "score": float(i), "score_label": number}
    for i, (word, number) in enumerate([("no", 0.0), ("yes", 1.0)] * 8)
  ]
  (tmp_path / "score").mkdir()
  files.write_jsonl(tmp_path / "score/scores.jsonl", rows)
  files.write_json(
    tmp_path / "score/config.json", {"task": "score", "field": "score"}
  )
  assert "ROC" in read(tmp_path)


def test_a_single_reward_model_and_an_ensemble_are_told_apart(tmp_path):
  """Also where both lie under names that end alike, on another machine."""
  places = []
  for kind, members in (("single", 1), ("many", 4)):
    for seed in (0, 1):
      root = tmp_path / kind / str(seed)
      (root / "reward").mkdir(parents=True)
      files.write_json(root / "reward" / "model.json", {"ensemble": members})
      write_stage(root / "rl", runs.make_rl())
      fields = {"task": "rl", "seed": seed, "beta": 0.4}
      fields["reward"] = {"init": f"elsewhere/{kind}/{seed}/reward"}
      files.write_json(root / "rl" / "config.json", fields)
      places.append(str(root / "rl"))
  wanted = config.get_config()
  wanted.runs = tuple(places)
  report.run(wanted, tmp_path / "out")
  text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
  assert "4 runs of 2 settings" in text
  assert "ensemble 1" in text and "ensemble 4" in text


def write_judged(root, beta, seed, tuning="lora"):
  """An RL run, and a judgement of its policy made from elsewhere."""
  name = f"{tuning}_{beta}_{seed}"
  fields = {"task": "rl", "seed": seed, "beta": beta, "tuning": tuning}
  policy = root / f"rl_{name}"
  policy.mkdir(parents=True)
  files.write_json(policy / "config.json", fields)
  judged = root / f"judge_{name}"
  judged.mkdir()
  fields = {"task": "judge", "seed": 0, "judges": "gold"}
  fields["policy"] = {"init": f"elsewhere/rl_{name}", "checkpoint": "auto"}
  files.write_json(judged / "config.json", fields)
  found = {"policy.kl": 1 / beta, "by.gold.win_rate": 0.5}
  found["by.gold.win_rate_ties_half"] = 0.5 + beta + seed / 20
  files.write_jsonl(judged / "metrics.jsonl", [{"step": 1} | found])
  files.write_json(judged / "summary.json", found | {"n": 9})
  return str(judged)


def compared(tmp_path, *places):
  wanted = config.get_config()
  wanted.runs = places
  report.run(wanted, tmp_path / "out")
  text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
  runs.Checker(text)
  return text


def test_judgements_are_compared_by_what_their_policies_were(tmp_path):
  """Seeds of the policies are repetitions, and beta is across the frontier."""
  places = [
    write_judged(tmp_path, beta, seed) for beta in (0.4, 0.1) for seed in (0, 1)
  ]
  text = compared(tmp_path, *places)
  assert "4 runs of 2 settings" in text
  assert "<code>policy.beta</code>" in text
  assert "Win rate, a tie as half, by gold, by beta" in text
  assert "92.5% ± 3.5%" in text and "62.5% ± 3.5%" in text
  assert "(seed 1 of the policy, 0)" in text
  # Where a policy is gone, it is what its path is called.
  for path in tmp_path.glob("rl_*"):
    shutil.rmtree(path)
  text = compared(tmp_path, *places)
  assert "4 runs of 4 settings" in text and "policy.init" in text
  assert "Win rate, a tie as half, by gold" in text and "by beta" not in text


def test_judged_policies_of_lora_and_full_tuning(tmp_path):
  places = [write_judged(tmp_path, 0.1, 0, kind) for kind in ("lora", "full")]
  text = compared(tmp_path, *places)
  assert "LoRA against full tuning" in runs.headings(text)

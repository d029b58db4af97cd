"""The report of whole, partial and damaged runs, made from synthetic files."""

import html.parser
import json
import math
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

from perl_jax import classification, files
from perl_jax.reporting import figures, style, svg
from perl_jax.reporting import samples as samples_lib
from perl_jax.tasks import report

ITEMS = ("flat white", "iced latte", "cortado", "chai <b>tea</b>", "mocha")
SIZES = ("small", "medium", "large")
MILKS = ("oat", "whole", "almond")


def order_json(generator, wrong=False):
  order = {
    "api": {
      "order": {
        "item": str(generator.choice(ITEMS)),
        "size": str(generator.choice(SIZES)),
        "milk": str(generator.choice(MILKS)),
        "extras": ["vanilla syrup"] if generator.random() < 0.5 else [],
        "quantity": "2",
      }
    }
  }
  if wrong:
    order["api"]["order"]["quantity"] = "1"
    order["api"]["order"]["milk"] = "soy"
  return json.dumps(order)


def make_sample(generator, step):
  seed = int(generator.integers(1 << 30))
  reference = order_json(np.random.default_rng(seed))
  draws = {}
  for who, chance in (("anchor", 0.4), ("policy", 0.8)):
    right = bool(generator.random() < chance)
    text = order_json(np.random.default_rng(seed), wrong=not right)
    if who == "anchor" and not right and generator.random() < 0.4:
      text = "Sure! One moment, I will put that in for you & call your name."
    draws |= {
      who: text,
      f"{who}_reward": float(generator.normal(1.5 if right else -0.8, 0.4)),
      f"{who}_gold": float(right),
    }
  item = json.loads(reference)["api"]["order"]["item"]
  prompt = [
    {"role": "user", "content": "Hi, what do you have today?"},
    {"role": "assistant", "content": "Coffee, tea and cold drinks."},
    {"role": "user", "content": f"A {item} please. Actually, make that two."},
  ]
  return {"step": step, "prompt": prompt, "reference": reference, **draws}


def make_sft(directory, steps=240):
  generator = np.random.default_rng(1)
  rows = []
  for step in range(0, steps, 2):
    loss = 0.12 + 2.6 * math.exp(-step / 35) + 0.04 * generator.normal()
    row = {"step": step, "train/loss": loss, "optimizer/learning_rate": 1e-3}
    row["train/accuracy"] = 1 - 0.25 * loss
    row |= {"seconds/step": 0.4, "seconds/data": 0.01}
    rows.append(row)
    if step % 40 == 38:
      gold = 0.44 * (1 - math.exp(-step / 80))
      rows.append(
        {
          "step": step,
          "validation/loss": loss + 0.05,
          "validation/gold": gold,
        }
      )
  files.write_jsonl(directory / "metrics.jsonl", rows)
  files.write_json(directory / "summary.json", {"gold": 0.412})
  files.write_json(directory / "config.json", {"task": "sft", "steps": steps})


def make_scores(pairs, n=700):
  generator = np.random.default_rng(2)
  if pairs:
    chosen = generator.normal(1.4, 1.2, n)
    rejected = generator.normal(-0.6, 1.2, n)
    return [
      {"chosen": c, "rejected": r, "id": f"r:{i}"}
      for i, (c, r) in enumerate(zip(chosen, rejected, strict=True))
    ]
  labels = (generator.random(n) < 0.8).astype(int)
  scores = generator.normal(labels * 2.2 - 0.4, 1.3)
  return [
    {"score": s, "label": int(y), "id": f"r:{i}"}
    for i, (s, y) in enumerate(zip(scores, labels, strict=True))
  ]


def make_reward(directory, pairs=True, steps=200):
  generator = np.random.default_rng(3)
  rows = []
  for step in range(steps):
    fall = math.exp(-step / 50)
    loss = 0.25 + 0.45 * fall + 0.05 * generator.normal()
    accuracy = min(1.0, 0.91 - 0.4 * fall + 0.04 * generator.normal())
    rows.append({"step": step, "train/loss": loss, "train/accuracy": accuracy})
    if step % 40 == 39:
      rows.append(
        {
          "step": step,
          "validation/loss": 0.3 + 0.4 * fall,
          "validation/accuracy": 0.9 - 0.4 * fall,
          "validation/auroc": 0.95 - 0.4 * fall,
          "validation/calibration_error": 0.03 + 0.1 * fall,
        }
      )
  files.write_jsonl(directory / "metrics.jsonl", rows)
  files.write_jsonl(directory / "scores.jsonl", make_scores(pairs))
  files.write_json(directory / "config.json", {"task": "reward"})


def make_rl(directory, steps=300):
  generator = np.random.default_rng(4)
  rows = []
  for step in range(steps):
    rise = 1 - math.exp(-step / 90)
    state = {
      "reward": -0.3 + 2.1 * rise,
      "gold": 0.41 + 0.4 * rise,
      "kl": 6.0 * rise,
      "length": 42 - 6 * rise,
      "stop_rate": min(1.0, 0.95 + 0.05 * rise),
    }
    noise = generator.normal(size=3)
    row = {"step": step} | {f"rollout/{k}": v for k, v in state.items()}
    row["rollout/reward"] += 0.25 * noise[0]
    row["rollout/gold"] = float(np.clip(state["gold"] + 0.07 * noise[1], 0, 1))
    row["rollout/kl"] += 0.5 * abs(noise[2]) * rise
    row["train/policy_loss"] = 0.02 * noise[0]
    row["train/value_loss"] = 0.8 * math.exp(-step / 60) + 0.1
    row["train/gradient_norm"] = 1 + 0.3 * noise[1]
    row |= {"seconds/sample": 0.61, "seconds/score": 0.22}
    row |= {"seconds/learn": 0.34, "seconds/step": 1.2}
    rows.append(row)
    if step % 50 == 0 or step == steps - 1:
      rows.append(
        {"step": step} | {f"validation/{k}": v for k, v in state.items()}
      )
  files.write_jsonl(directory / "metrics.jsonl", rows)
  samples = [make_sample(generator, s) for s in (0, 299) for _ in range(24)]
  files.write_jsonl(directory / "samples.jsonl", samples)
  config = {"task": "rl", "beta": 0.05, "lora": {"rank": 4}}
  files.write_json(directory / "config.json", config)


SUMMARY = {
  "command": "python -m perl_jax.main --config=configs/quickstart.py "
  "--workdir=runs/quickstart",
  "sft.gold": 0.412,
  "reward.accuracy": 0.897,
  "reward.accuracy_low": 0.872,
  "reward.accuracy_high": 0.917,
  "reward.auroc": 0.951,
  "reward.calibration_error": 0.031,
  "reward.trainable_share": 0.0087,
  "rl.gold_before": 0.412,
  "rl.gold_after": 0.795,
  "rl.reward_before": -0.31,
  "rl.reward_after": 1.72,
  "rl.kl_at_step_0": 0.0,
  "rl.kl": 5.83,
  "seconds.sft": 96.2,
  "seconds.reward": 81.0,
  "seconds.rl": 361.4,
  "seconds.evaluate": 22.8,
  "seconds.total": 561.4,
  "memory.sft": 512 * 2**20,
  "memory.reward": 431 * 2**20,
  "memory.rl": 689 * 2**20,
}


def make_pipeline(workdir, pairs=True):
  """A whole run of the pipeline, as the stages leave it."""
  for name in ("sft", "reward", "rl", "evaluate"):
    (workdir / name).mkdir(parents=True)
  make_sft(workdir / "sft")
  make_reward(workdir / "reward", pairs)
  make_rl(workdir / "rl")
  files.write_json(workdir / "evaluate" / "summary.json", {"n": 512})
  files.write_json(workdir / "summary.json", SUMMARY)
  config = {"task": "pipeline", "data": {"name": "coffee_bar"}, "seed": 0}
  files.write_json(workdir / "config.json", config)
  return workdir


def make_lean_pipeline(workdir):
  """The same with fewer metrics, so that it draws quickly."""
  make_pipeline(workdir)
  kept = {"step", "train/loss", "rollout/reward", "rollout/gold"}
  kept |= {"seconds/sample"}
  for name in ("sft", "reward", "rl"):
    path = workdir / name / "metrics.jsonl"
    rows = [
      {key: value for key, value in row.items() if key in kept}
      for row in files.read_jsonl(path)
    ]
    files.write_jsonl(path, rows)
  return workdir


class Checker(html.parser.HTMLParser):
  """Collects what a browser would need; fails on a tag left open."""

  VOID = frozenset(("meta", "br", "link", "img"))

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.ids, self.tags, self.attributes = [], [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]
    self.ids += [value for key, value in attrs if key == "id"]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def headings(text):
  return re.findall(r"<h2[^>]*>([^<]*)</h2>", text)


def labels(text):
  return [
    html.unescape(label) for label in re.findall(r'aria-label="([^"]*)"', text)
  ]


ALL = [
  "What was achieved",
  "Reinforcement learning: reward, success and KL",
  "Curves of each stage",
  "How good the reward model is",
  "Samples",
  "Time and memory",
  "How to run it again",
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  workdir = make_pipeline(tmp_path_factory.mktemp("runs") / "quickstart")
  assert report.run(None, workdir) == {}
  return workdir


@pytest.fixture(scope="module")
def text(pipeline):
  return (pipeline / "report.html").read_text(encoding="utf-8")


def test_every_section_is_there_and_the_numbers_are(text):
  assert headings(text) == ALL
  assert "Gold success rose from 41.2% to 79.5%, at a KL of 5.83 nats" in text
  assert "+38.3 points" in text
  assert "&minus;0.310" in text
  assert "(87.2% to 91.7%)" in text
  assert "9:21" in text
  assert "689 MiB" in text
  assert "--config=configs/quickstart.py" in text
  assert "&quot;rank&quot;: 4" in text


def test_the_page_is_one_well_formed_file_without_scripts(text):
  checker = Checker(text)
  assert not {"script", "link", "iframe", "img", "object"} & set(checker.tags)
  assert len(set(checker.ids)) == len(checker.ids)
  for _, key, value in checker.attributes:
    assert not key.startswith("on")
    assert key != "xlink:href"
    if key in ("href", "src"):
      assert value.startswith("#")
      assert value[1:] in checker.ids
  for target in re.findall(r"url\(([^)]*)\)", text):
    assert target[1:] in checker.ids
  assert "@import" not in text
  assert checker.tags.count("style") == 1


def test_drawings_take_all_their_colours_from_the_page(text):
  drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
  assert len(drawings) >= 15
  for drawing in drawings:
    ElementTree.fromstring(drawing)
    assert not re.search(r"#[0-9a-f]{6}\b", drawing)
    assert "var(--" in drawing
  for name in svg.COLOURS:
    assert style.CSS.count(f"--{name}:") == 2  # light and dark


def test_every_figure_is_described(text):
  found = [label for label in labels(text) if label != "Sections"]
  assert len(found) == text.count("<figure>")
  assert any(
    re.match(
      r"Reward, score of the reward model\. rollout: from -\S+ at RL step 0 to "
      r"\S+ at RL step 299; validation: from -0\.3 at RL step 0 to 1\.72\d* at "
      r"RL step 299; anchor: -0\.31\.",
      label,
    )
    for label in found
  )


def test_what_models_wrote_is_escaped(text):
  assert "<b>tea" not in text
  assert "chai &lt;b&gt;tea&lt;/b&gt;" in text
  assert "you &amp; call your name" in text


def test_the_report_is_the_same_every_time(pipeline, text):
  assert report.write_report(pipeline).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("pairs", [True, False])
def test_the_reward_model_section_agrees_with_the_metrics(tmp_path, pairs):
  make_reward(tmp_path, pairs)
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  rows = make_scores(pairs)
  if pairs:
    measured = classification.preference_metrics(
      [row["chosen"] for row in rows], [row["rejected"] for row in rows]
    )
  else:
    measured = classification.binary_metrics(
      [row["score"] for row in rows], [row["label"] for row in rows]
    )
  assert f"AUROC {measured['auroc']:.3f}" in text
  assert f"calibration error {measured['calibration_error']:.3f}" in text
  (label,) = [x for x in labels(text) if x.startswith("Reliability")]
  counts = re.findall(r"observed, (\d+) (?:pairs|responses)", label)
  assert sum(map(int, counts)) == len(rows)


def test_a_single_class_has_no_roc_curve(tmp_path):
  rows = [{"score": 0.1 * i, "label": 1} for i in range(9)]
  files.write_jsonl(tmp_path / "scores.jsonl", rows)
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  assert "ROC curve" not in text
  assert "Calibration" in text


@pytest.mark.parametrize(
  ("lost", "gone"),
  [
    ("summary.json", []),
    ("config.json", []),
    ("rl/metrics.jsonl", [ALL[1]]),
    ("rl/samples.jsonl", [ALL[4]]),
    ("reward/scores.jsonl", [ALL[3]]),
    ("sft", []),
    ("reward", [ALL[3]]),
    ("rl", [ALL[1], ALL[4]]),
    ("evaluate", []),
  ],
)
def test_a_part_that_is_missing_is_left_out(tmp_path, lost, gone):
  workdir = make_lean_pipeline(tmp_path / "run")
  path = workdir / lost
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  text = report.write_report(workdir).read_text(encoding="utf-8")
  Checker(text)
  assert headings(text) == [title for title in ALL if title not in gone]


@pytest.mark.parametrize("kept", ["summary.json", "rl/samples.jsonl"])
def test_one_file_is_enough(tmp_path, pipeline, kept):
  (tmp_path / "rl").mkdir()
  shutil.copy(pipeline / kept, tmp_path / kept)
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  Checker(text)
  assert headings(text)


@pytest.mark.parametrize(
  ("make", "section"),
  [
    (make_sft, "Curves of each stage"),
    (make_reward, "How good the reward model is"),
    (make_rl, "Reinforcement learning: reward, success and KL"),
  ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_a_stage_on_its_own(tmp_path, make, section, with_config):
  make(tmp_path)
  if not with_config:
    (tmp_path / "config.json").unlink()
  summary = {"gold_before": 0.5, "gold_after": 0.75, "seconds.total": 61.0}
  files.write_json(tmp_path / "summary.json", summary)
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  Checker(text)
  assert section in headings(text)
  assert "1:01" in text
  assert ("rose from 50.0% to 75.0%" in text) == (make is make_rl)


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
  make_sft(tmp_path)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 240, "train/lo')
  report.write_report(tmp_path)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('\n{"step": 241}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl:127: not a JSON"):
    report.write_report(tmp_path)
  make_sft(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config\.json: not JSON"):
    report.write_report(tmp_path)
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(ValueError, match=r"config\.json: is list"):
    report.write_report(tmp_path)


def test_values_that_are_not_finite_are_counted_not_drawn(tmp_path):
  rows = [{"step": i, "train/loss": 1.0} for i in range(5)]
  rows += [
    {"step": 5, "train/loss": math.nan},
    {"step": 6, "train/loss": "inf"},
  ]
  files.write_jsonl(tmp_path / "metrics.jsonl", rows)
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  assert "2 values that are not finite are left out." in text
  assert "from 1 at step 0 to 1 at step 4" in text


def test_stage_summaries_are_spelled_like_the_pipeline(tmp_path):
  workdir = make_lean_pipeline(tmp_path / "killed")
  (workdir / "summary.json").unlink()
  own = {"gold_before": 0.25, "gold_after": 0.5, "seconds": 7200.0}
  own["peak_bytes"] = 2**30
  files.write_json(workdir / "rl" / "summary.json", own)
  text = report.write_report(workdir).read_text(encoding="utf-8")
  assert "Gold success rose from 25.0% to 50.0%." in text
  assert "2:00:00" in text
  assert "1 GiB" in text


def test_the_root_summary_wins_over_the_stages(tmp_path):
  workdir = make_lean_pipeline(tmp_path / "run")
  files.write_json(workdir / "rl" / "summary.json", {"gold_after": 0.01})
  text = report.write_report(workdir).read_text(encoding="utf-8")
  assert "to 79.5%" in text


def test_an_evaluation_compares_policy_and_anchor(tmp_path):
  found = {
    "reward_model.accuracy": 0.875,
    "anchor.gold": 0.25,
    "policy.gold": 0.5,
    "policy.kl": 3.0,
    "n": 64,
  }
  (tmp_path / "evaluate").mkdir()
  files.write_json(tmp_path / "evaluate" / "summary.json", found)
  row = {"step": 1} | found
  files.write_jsonl(tmp_path / "evaluate" / "metrics.jsonl", [row])
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  assert "Gold success rose from 25.0% to 50.0%, at a KL of 3 nats" in text
  assert "+25.0 points" in text
  assert "87.5%" in text
  assert "<figure>" not in text  # single points are no curves


def test_phases_are_those_of_every_step(tmp_path):
  rows = [
    {"step": i, "seconds/step": 2.0, "seconds/learn": 0.5} for i in range(9)
  ]
  rows[0] |= {"seconds/learn": 90.0}  # compilation
  rows.append({"step": 8, "seconds/evaluate": 7.0})
  files.write_jsonl(tmp_path / "metrics.jsonl", rows)
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  assert "learn 0.50 s" in text
  assert "other 1.5 s" in text
  assert "evaluate" not in text.split("</style>")[1]


def test_the_command_is_read_from_its_file(tmp_path, pipeline):
  shutil.copy(pipeline / "summary.json", tmp_path)
  (tmp_path / "command.txt").write_text("python -m perl_jax.main <rl>\n")
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  assert "python -m perl_jax.main &lt;rl&gt;</code>" in text


def test_series_take_the_rows_that_have_the_key():
  rows = [
    {"step": 3, "a": 1.0},
    {"step": 1, "a": "nan"},
    {"step": 2, "b": 5},
    {"step": 3, "a": 2.0},
  ]
  steps, values = figures.series(rows, "a")
  assert steps.tolist() == [1, 3]
  assert math.isnan(values[0])
  assert values[1] == 2.0


@pytest.mark.parametrize("width", [1, 2, 3, 7, 20])
def test_running_mean_against_a_slow_loop(width):
  values = np.random.default_rng(0).normal(size=12)
  values[4] = np.nan
  expected = []
  for i in range(values.size):
    first = i - width // 2
    window = [
      values[j]
      for j in range(first, first + width)
      if 0 <= j < values.size and np.isfinite(values[j])
    ]
    expected.append(np.mean(window) if window else np.nan)
  got = svg.running_mean(values, width)
  np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_long_curve_is_thinned_without_losing_a_spike(tmp_path):
  rows = [{"step": i, "train/loss": 1.0} for i in range(30_000)]
  rows[12_345]["train/loss"] = 77.0
  files.write_jsonl(tmp_path / "metrics.jsonl", rows)
  path = report.write_report(tmp_path)
  assert path.stat().st_size < 200_000
  x, y = svg._thin_out(
    np.arange(30_000), np.array([r["train/loss"] for r in rows])
  )
  assert len(x) <= 800
  assert (x[y == 77.0]).tolist() == [12_345]


def test_only_the_wrong_lines_of_a_wrong_answer_are_marked():
  row = {
    "step": 1,
    "prompt": "a plain prompt",
    "reference": '{"a": 1, "b": 2}',
    "anchor": '{"b": 3, "a": 1}',
    "anchor_gold": 0.0,
    "policy": '{"a": 1, "b": 3}',
    "policy_gold": 1.0,
    "policy_reward": -0.5,
  }
  text = samples_lib.samples_html([row])
  assert re.findall("<mark>(.*?)</mark>", text) == ["&quot;b&quot;: 3,"]
  assert "✗ wrong" in text
  assert "✓ right" in text
  assert "reward &minus;0.5" in text
  assert "a plain prompt" in text
  assert "only the policy 1, only the anchor 0" in text


def test_samples_are_of_the_last_step_and_not_selected():
  rows = [
    {"step": step, "policy": f"text {step} {i}"}
    for step in (0, 10)
    for i in range(30)
  ]
  text = samples_lib.samples_html(rows)
  shown = re.findall(r"text (\d+) (\d+)", text)
  assert shown == [("10", str(i)) for i in range(30)]
  assert "26 more samples" in text
  assert samples_lib.samples_html([{"step": 1, "prompt": "p"}]) == ""


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path):
  rows = [{"step": 0, "prompt": "p", "policy": "half \ud800 pair"}]
  files.write_jsonl(tmp_path / "samples.jsonl", rows)
  text = report.write_report(tmp_path).read_text(encoding="utf-8")
  assert "half ? pair" in text


def test_judgement_falls_back_to_what_the_data_set_has():
  assert samples_lib.judgement({"policy_exact_match": 1.0}, "policy") is True
  row = {"policy_gold": 0.0, "policy_valid_json": 1.0}
  assert samples_lib.judgement(row, "policy") is False
  assert samples_lib.judgement({"policy": "x"}, "policy") is None

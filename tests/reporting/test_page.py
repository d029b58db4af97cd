"""The page of whole and partial runs, made of synthetic metrics."""

import re
from xml.etree import ElementTree

import pytest

from perl_jax.reporting import page, style, svg
from tests.reporting import runs


@pytest.fixture(scope="module")
def text():
  return page.render(
    "quickstart",
    "1 May 2026",
    {key: v for key, v in runs.SUMMARY.items() if key != "command"},
    runs.pipeline(),
    runs.CONFIG,
    runs.SUMMARY["command"],
  )


def test_every_section_is_there_and_the_numbers_are(text):
  assert runs.headings(text) == runs.ALL
  assert "Gold success rose from 41.2% to 79.5%, at a KL of 5.83 nats" in text
  assert "+38.3 points" in text
  assert "&minus;0.310" in text
  assert "(87.2% to 91.7%)" in text
  assert "9:21" in text
  assert "689 MiB" in text
  assert "--config=configs/quickstart.py" in text
  assert "&quot;rank&quot;: 4" in text


def test_the_page_is_one_well_formed_file_without_scripts(text):
  checker = runs.Checker(text)
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
  found = [label for label in runs.labels(text) if label != "Sections"]
  assert len(found) == text.count("<figure>")
  assert any(
    re.match(
      r"Reward, score\. rollout: from -\S+ at RL step 0 to "
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


@pytest.mark.parametrize(
  "name, section",
  [
    ("sft", "Curves of each stage"),
    ("reward", "How good the reward model is"),
    ("rl", "Reinforcement learning: reward, success and KL"),
  ],
)
def test_a_stage_on_its_own(name, section):
  stage = {"sft": runs.make_sft, "reward": runs.make_reward, "rl": runs.make_rl}
  found = runs.stages(**{name: stage[name]()})
  text = runs.render(found, {"seconds.total": 61.0})
  runs.Checker(text)
  assert section in runs.headings(text)
  assert "1:01" in text


def test_dpo_has_the_section_of_a_policy():
  rows = [
    {"step": k, "validation/kl": 0.1 * k, "validation/gold": 0.1 * k}
    for k in range(4)
  ]
  text = runs.render(runs.stages(dpo=runs.stage("dpo", metrics=rows)))
  assert "Direct preference optimisation: reward, success and KL" in text
  assert "at DPO step 3" in text


def test_an_evaluation_compares_policy_and_anchor():
  found = {
    "reward_model.accuracy": 0.875,
    "anchor.gold": 0.25,
    "policy.gold": 0.5,
    "policy.kl": 3.0,
    "n": 64,
  }
  stage = runs.stage("evaluate", metrics=[{"step": 1} | found])
  summary = {f"evaluate.{key}": value for key, value in found.items()}
  text = runs.render(runs.stages(evaluate=stage), summary)
  assert "Gold success rose from 25.0% to 50.0%, at a KL of 3 nats" in text
  assert "+25.0 points" in text
  assert "87.5%" in text
  assert "<figure>" not in text  # single points are no curves


def test_a_notice_stands_above_the_samples():
  rl = runs.stage("rl", samples=[{"step": 1, "policy": "p"}], notice="a < b")
  text = runs.render(runs.stages(rl=rl))
  assert 0 < text.index("a &lt; b") < text.index("Sample 1")
  assert "a &lt; b" not in runs.render(runs.stages(rl=rl._replace(samples=())))


def test_samples_are_those_that_compare_a_policy_with_its_anchor():
  sft = runs.stage("sft", samples=[{"step": 1, "response": "of sft"}])
  rl = runs.stage("rl", samples=[{"step": 1, "policy": "of rl"}])
  assert "of sft" in runs.render(runs.stages(sft=sft))
  both = runs.render(runs.stages(sft=sft, rl=rl))
  assert "of rl" in both
  assert "of sft" not in both


def test_what_is_wrong_with_a_policy_stands_above_its_curves():
  rows = [
    {"step": step, "validation/kl": kl, "validation/kl_per_token": kl / 10}
    for step, kl in ((0, 0.0), (5, 14.0))
  ]
  for metrics, told in ((rows, True), (rows[:1], False)):
    text = runs.render([runs.stage("rl", metrics=metrics)])
    runs.Checker(text)
    assert ("The KL to the anchor is 14.0 nats" in text) == told


@pytest.mark.parametrize(
  "asked, noted, told",
  [(0, 512, True), (0, None, False), (9999, 32, False), (512, None, True)],
)
def test_a_check_is_judged_by_the_responses_that_there_were(asked, noted, told):
  """Not by `eval.rows`, which is 0 for all rows and may be more than all."""
  names = ("kl", "reward", "gold")
  rows = [
    {"step": step} | {f"validation/{k}": v for k, v in zip(names, values)}
    for step, values in ((0, (0.0, 0.0, 0.45)), (5, (1.0, 1.0, 0.3)))
  ]
  rows[0] |= {} if noted is None else {"validation/responses": noted}
  stage = runs.stage("rl", metrics=rows, config={"eval": {"rows": asked}})
  text = runs.render([stage])
  assert ("Gold success fell from 45.0% to 30.0%" in text) == told
  assert "Responses" not in text  # a number of responses has no curve

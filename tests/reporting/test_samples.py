"""Responses side by side: which are shown, and what is marked."""

import re

from perl_jax.reporting import samples


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
  text = samples.samples_html([row])
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
  text = samples.samples_html(rows)
  shown = re.findall(r"text (\d+) (\d+)", text)
  assert shown == [("10", str(i)) for i in range(30)]
  assert "26 more samples" in text
  assert samples.samples_html([{"step": 1, "prompt": "p"}]) == ""


def test_a_response_is_right_by_the_first_check_that_it_has():
  assert samples.is_right({"policy_exact_match": 1.0}, "policy") is True
  row = {"policy_gold": 0.0, "policy_valid_json": 1.0}
  assert samples.is_right(row, "policy") is False
  assert samples.is_right({"policy": "x"}, "policy") is None


def test_a_response_of_many_brackets_is_text():
  """As a policy that has collapsed writes; no JSON is read so deep."""
  text = "[" * 3000
  assert samples.shown(text) == text
  deep = "[" * 900 + "]" * 900
  assert len(samples.shown(deep)) < 5000

"""Tables of RewardBench and RM-Bench on the page."""

import re

from perl_jax.data import records
from perl_jax.reporting import benchmarks
from perl_jax.tasks.evaluation import candidates
from tests.reporting import runs


def scored(chosen, rejected, subset):
  sides = ("chosen",) * len(chosen) + ("rejected",) * len(rejected)
  record = records.Candidates(
    "id", "g", (), ("x",) * len(sides), sides, True, subset=subset
  )
  return candidates.Scored(record, [*chosen, *rejected])


def tables():
  """What task `score` writes of a file of both shapes."""
  return candidates.quality(
    [
      scored([1.0], [0.0], "mt-bench-easy"),
      scored([0.0], [1.0], "mt-bench-easy"),
      scored([1, 2, 3], [1, 2, 3], "chat"),
      scored([4, 5, 6], [1, 2, 3], "safety-refuse"),
      scored([4], [1, 2, 4], "Precise IF"),
    ]
  )[1]


def cells(html, name):
  """Numbers of the first row with a name, without their intervals."""
  (row, *_) = re.findall(rf'<th scope="row">{name}</th>(.*?)</tr>', html)
  return re.findall(r'<td class="number">([^<]*)', row)


def test_every_number_is_in_its_row():
  html = benchmarks.html(tables())
  assert cells(html, "RewardBench, chat") == ["50.0%"]
  assert cells(html, "mt-bench-easy") == ["50.0%", "2"]
  assert cells(html, "all domains") == ["100.0%", "50.0%", "50.0%", "66.7%"]
  assert cells(html, "chat") == ["100.0%", "0.0%", "0.0%", "33.3%"]
  assert cells(html, "chosen: detailed plain") == ["100.0%", "50.0%", "50.0%"]
  assert cells(html, "RewardBench 2, precise instructions") == ["50.0%"]
  assert "There are no rows of math, code." in html
  assert "mt-bench-easy 2 of 28" in html
  assert "There are no rows of" in html and "donotanswer" in html


def test_a_page_has_them_and_another_has_not():
  stage = runs.stage("score", benchmark=tables())
  page = runs.render(runs.stages(score=stage), {})
  assert "Benchmarks of reward models" in page
  assert "Benchmarks of reward models" not in runs.render(runs.stages(), {})


def test_tables_that_somebody_has_changed():
  assert benchmarks.html({}) == ""
  assert benchmarks.html({"rewardbench": 3, "rm_bench": []}) == ""
  broken = {"rewardbench": {"sections": {"x": "<b>"}, "missing": 2}}
  assert "<b>" not in benchmarks.html(broken)

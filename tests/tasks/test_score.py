"""Scoring the rows of a file: the numbers, the files, what is refused."""

import json

import pytest

from perl_jax import files, tasks
from tests.tasks import tiny

ROWS = [
  {"id": 3, "prompt": "A fruit?", "chosen": "Plum.", "rejected": "Stone."},
  {"prompt": "A fruit?", "response": "Plum."},
  {"prompt": "A fruit?", "responses": ["Plum.", "Stone."]},
  {"prompt": "A fruit?"},
  {"prompt": "A fruit?", "response": "Plum. " * 90},
  {
    "prompt": "A fruit?",
    "chosen": ["Plum."],
    "rejected": ["Stone.", "Plum."],
    "subset": "s",
  },
]


def score(tmp_path, rows, **fields):
  path = tmp_path / "rows.jsonl"
  files.write_jsonl(path, rows)
  return tiny.run(
    tmp_path / "run", "score", "jsonl", data__path=str(path), **fields
  )


@pytest.mark.slow
def test_held_out_pairs_have_the_scores_of_their_evaluation(
  tmp_path, finished, reward_run
):
  summary = tiny.run(tmp_path / "run", "score", reward__init=str(reward_run))
  theirs = tiny.summary(finished / "evaluate")
  for key in ("accuracy", "accuracy_low", "auroc", "log_loss", "margin", "n"):
    assert summary[key] == pytest.approx(
      theirs[f"reward_model.{key}"], rel=1e-5
    )
  rows = tiny.lines(tmp_path / "run", "scores.jsonl")
  expected = tiny.lines(finished / "evaluate", "scores.jsonl")
  for row, other in zip(rows, expected, strict=True):
    assert row["id"] == other["id"]
    for side in ("chosen", "rejected"):
      assert row[f"score_{side}"] == pytest.approx(
        other[side], rel=1e-4, abs=1e-7
      )


@pytest.mark.slow
def test_rows_of_every_shape_in_their_order(tmp_path, reward_run):
  summary = score(tmp_path, ROWS, reward__init=str(reward_run))
  rows = tiny.lines(tmp_path / "run", "scores.jsonl")
  names = [[key for key in row if key.startswith("score")] for row in rows]
  pair = ["score_chosen", "score_rejected"]
  assert names == [pair, ["score"], ["score"], pair]
  for row, given in zip(rows, [*ROWS[:3], ROWS[5]], strict=True):
    assert given.items() <= row.items()
  assert [row["id"] for row in rows[:2]] == [3, f"{tmp_path}/rows.jsonl:2"]
  # One response has one score, wherever it stands.
  plum, stone = rows[0]["score_chosen"], rows[0]["score_rejected"]
  assert rows[1]["score"] == pytest.approx(plum, abs=1e-6)
  assert rows[2]["score"] == pytest.approx([plum, stone], abs=1e-6)
  assert rows[3]["score_rejected"] == pytest.approx([stone, plum], abs=1e-6)
  assert plum != pytest.approx(stone, abs=1e-6)
  assert summary["n"] == 4
  assert summary["responses"] == 8
  assert summary["rows_dropped"] == 2
  right = plum > stone
  assert summary["accuracy"] == pytest.approx((right + (right + 0.5) / 2) / 2)
  assert summary["accuracy_in_s"] == pytest.approx((right + 0.5) / 2)
  assert tiny.summary(tmp_path / "run") == summary


@pytest.mark.slow
def test_benchmarks_are_in_a_file_of_their_own(tmp_path, reward_run):
  summary = tiny.score_benchmarks(tmp_path / "run", str(reward_run))
  rows = tiny.lines(tmp_path / "run", "scores.jsonl")
  right = [row["score_chosen"] > row["score_rejected"] for row in rows[:4]]
  assert summary["rewardbench"] == pytest.approx(sum(right) / 4)
  table = json.loads((tmp_path / "run/benchmark.json").read_text())
  matrix = [
    [float(chosen > rejected) for rejected in rows[4]["score_rejected"]]
    for chosen in rows[4]["score_chosen"]
  ]
  assert table["rm_bench"]["domains"]["chat"]["matrix"] == matrix
  hard = (matrix[0][1] + matrix[0][2] + matrix[1][2]) / 3
  assert summary["rm_bench_hard"] == pytest.approx(hard)
  factual = rows[8]
  assert factual["subset"] == "Factuality"
  best = factual["score_chosen"][0] > max(factual["score_rejected"])
  assert summary["rewardbench2_factuality"] == float(best)
  assert table["rewardbench2"]["n"]["Ties"] == 1


@pytest.mark.slow
def test_scores_of_an_ensemble_are_combined(tmp_path, sft_run):
  reward = tmp_path / "reward"
  tiny.run(reward, "reward", reward__init=str(sft_run), ensemble=2)
  fields = {"reward__init": str(reward), "reward__combine": "min"}
  score(tmp_path, ROWS[:2], field="r", **fields)
  pair, single = tiny.lines(tmp_path / "run", "scores.jsonl")
  members = [
    pair["r_chosen_members"], pair["r_rejected_members"], single["r_members"]
  ]  # fmt: skip
  centres = [sum(column) / 3 for column in zip(*members, strict=True)]
  found = [pair["r_chosen"], pair["r_rejected"], single["r"]]
  for value, row in zip(found, members, strict=True):
    least = min(v - c for v, c in zip(row, centres, strict=True))
    least += sum(centres) / 2  # the level that both have
    assert value == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize(
  "fields, rows, said",
  [
    ({"reward__init": ""}, ROWS, r"config\.reward\.init is empty"),
    ({"reward__fn": "mine:f"}, ROWS, r"config\.reward\.fn='mine:f'"),
    ({"field": ""}, ROWS, r"config\.field=''"),
    ({"data__margin": 1.0}, ROWS, r"config\.data\.margin=1\.0"),
    ({"reward__combine": "most"}, ROWS, r"config\.reward\.combine='most'"),
    ({"data__path": ""}, ROWS, r"config\.data\.path is empty"),
    ({}, [{"prompt": "a", "response": "b", "score": 1}], r":1: field 'score'"),
    ({}, [{"prompt": "a"}], r":1: field 'response': missing"),
    ({}, [{"prompt": 3, "response": "b"}], r":1: field 'prompt'"),
  ],
)
def test_bad_input_is_refused_before_a_model_is_read(
  tmp_path, fields, rows, said
):
  """The reward model is not there: whoever looked for it would say so."""
  files.write_jsonl(tmp_path / "rows.jsonl", rows)
  given = {
    "reward__init": str(tmp_path / "no"),
    "data__path": str(tmp_path / "rows.jsonl"),
  }
  config = tiny.config("score", "jsonl", **given | fields)
  with pytest.raises(ValueError, match=said):
    tasks.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there(tmp_path):
  fields = {"reward__init": "no", "data__path": str(tmp_path / "no.jsonl")}
  config = tiny.config("score", "jsonl", **fields)
  with pytest.raises(
    FileNotFoundError, match=r"^config\.data\.path: .*no\.jsonl does not exist"
  ):
    tasks.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_finished_command_is_made_anew_only_for_other_rows(
  tmp_path, reward_run
):
  """Fields count that are no tokens, such as the subset."""
  fields = {"reward__init": str(reward_run)}
  first = score(tmp_path, ROWS, **fields)
  before = tiny.tree(tmp_path / "run")
  assert score(tmp_path, ROWS, **fields) == first
  assert tiny.tree(tmp_path / "run") == before
  changed = [*ROWS[:-1], ROWS[-1] | {"subset": "t"}]
  assert "accuracy_in_t" in score(tmp_path, changed, **fields)


@pytest.mark.slow
def test_rows_longer_than_the_model_are_refused(tmp_path, reward_run):
  with pytest.raises(ValueError, match=r"data\.max_len=999.*takes"):
    score(tmp_path, ROWS, reward__init=str(reward_run), data__max_len=999)
  assert not (tmp_path / "run").exists()

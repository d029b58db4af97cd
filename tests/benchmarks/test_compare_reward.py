"""Comparing two files of scores: joined by id, paired, on the same rows."""

import numpy as np
import pytest

from benchmarks import compare_reward
from perl_jax import classification
from perl_jax import files as files_lib

FOLDS, GROUPS, EACH = 3, 24, 5


def make_files(tmp_path, noise=0.8, seed=0):
  """A baseline and a file for each fold, whose scores are less noisy."""
  generator = np.random.default_rng(seed)
  baseline, files = [], [[] for _ in range(FOLDS)]
  for i in range(GROUPS * EACH):
    group, label = i % GROUPS, float(generator.random() < 0.4)
    row = {"id": f"r{i}", "group": f"g{group}", "label": label}
    fold = group % FOLDS
    drawn = generator.normal(size=2)
    baseline.append(row | {"fold": fold, "score": label + drawn[0]})
    files[fold].append(row | {"score": label + noise * drawn[1]})
  for rows in files:
    generator.shuffle(rows)
  write(tmp_path / "baseline.jsonl", baseline)
  for fold, rows in enumerate(files):
    write(tmp_path / f"fold{fold}.jsonl", rows)
  return baseline, files


def write(path, rows):
  files_lib.write_jsonl(path, rows)
  return path


def joined(tmp_path, folds=range(FOLDS)):
  return compare_reward.join(
    compare_reward.read(tmp_path / "baseline.jsonl", folds=True),
    [
      compare_reward.read(tmp_path / f"fold{fold}.jsonl", folds=False)
      for fold in folds
    ],
  )


def test_rows_are_joined_by_id_whatever_their_order(tmp_path):
  baseline, files = make_files(tmp_path)
  rows = joined(tmp_path)
  by_id = {row["id"]: row for row in baseline}
  expected = [
    (row["score"], by_id[row["id"]]["score"], row["label"], row["group"], fold)
    for fold, part in enumerate(files)
    for row in part
  ]
  assert list(zip(*rows, strict=True)) == expected


def test_auroc_by_fold_is_of_the_rows_of_that_fold(tmp_path):
  _, files = make_files(tmp_path)
  text = compare_reward.report(joined(tmp_path), samples=20, seed=0)
  for fold, part in enumerate(files):
    auroc = classification.auroc(
      [row["score"] for row in part], [row["label"] for row in part]
    )
    assert f"| {fold} | {len(part)} | {auroc:.3f} |" in text


def test_ranks_of_both_are_added(tmp_path):
  """By counting pairs of a good and a bad row, fold by fold."""
  make_files(tmp_path)
  rows, found = joined(tmp_path), []
  for fold in range(FOLDS):
    part = [row for row in zip(*rows, strict=True) if row[4] == fold]
    both = {}
    for row in part:
      below = [
        (row[k] > x[k]) + 0.5 * (row[k] == x[k]) for x in part for k in (0, 1)
      ]
      both[row] = sum(below)
    wins = [
      (both[a] > both[b]) + 0.5 * (both[a] == both[b])
      for a in part
      for b in part
      if a[2] > b[2]
    ]
    found.append(sum(wins) / len(wins))
  text = compare_reward.report(rows, samples=20, seed=0)
  assert f"both added: mean of folds {np.mean(found):.3f}," in text
  assert min(found) > 0.5


def test_a_model_that_is_the_baseline_is_neither_better_nor_worse(tmp_path):
  baseline, files = make_files(tmp_path)
  scores = {row["id"]: row["score"] for row in baseline}
  for fold, part in enumerate(files):
    # Any increasing function: only the order counts.
    same = [row | {"score": 3 * scores[row["id"]] + 1} for row in part]
    write(tmp_path / f"fold{fold}.jsonl", same)
  found, better = compare_reward.compare(joined(tmp_path), samples=50, seed=0)
  # Zero in every resample: unpaired ones would differ from each other.
  assert (found.difference, found.low, found.high) == (0, 0, 0)
  assert better == 0.5


def test_better_is_the_share_of_resampled_groups_that_the_model_wins(tmp_path):
  make_files(tmp_path, noise=0.9)
  rows = joined(tmp_path)
  found, better = compare_reward.compare(rows, samples=200, seed=3)
  generator = np.random.default_rng(11)
  wins = []
  for _ in range(200):
    drawn = generator.choice(np.unique(rows.groups), size=GROUPS)
    picked = np.concatenate([np.flatnonzero(rows.groups == g) for g in drawn])
    a, b = (
      classification.auroc(scores[picked], rows.labels[picked])
      for scores in (rows.model, rows.baseline)
    )
    wins.append(a > b)
  assert 0.5 < better < 1
  assert better == pytest.approx(np.mean(wins), abs=0.1)
  assert found.low < found.difference < found.high


def test_ranks_within_folds():
  scores = np.array([5.0, 1.0, 1.0, 100.0, 300.0])
  folds = np.array([0, 0, 0, 1, 1])
  np.testing.assert_allclose(
    compare_reward.rank_within_folds(scores, folds),
    [2.5 / 3, 1 / 3, 1 / 3, 0.25, 0.75],
  )


def test_ranks_do_not_care_for_the_scale_of_a_fold(tmp_path):
  _, files = make_files(tmp_path)
  before = compare_reward.report(joined(tmp_path), samples=20, seed=0)
  shifted = [row | {"score": row["score"] * 9 + 50} for row in files[1]]
  write(tmp_path / "fold1.jsonl", shifted)
  after = compare_reward.report(joined(tmp_path), samples=20, seed=0)
  lines = [
    [line for line in text.splitlines() if f"pooled, {kind}" in line]
    for text in (before, after)
    for kind in ("ranks within folds", "raw scores")
  ]
  assert lines[0] == lines[2] and len(lines[0]) == 2
  assert lines[1] != lines[3]


def test_command_line_says_which_folds_are_missing(
  tmp_path, capsys, monkeypatch
):
  make_files(tmp_path, noise=0.1)
  scores = [str(tmp_path / f"fold{fold}.jsonl") for fold in (0, 2)]
  monkeypatch.setattr(
    "sys.argv",
    [
      "x",
      f"--baseline={tmp_path / 'baseline.jsonl'}",
      "--samples=20",
      "--scores",
      *scores,
    ],
  )
  compare_reward.main()
  out = capsys.readouterr().out
  assert "No scores for folds [1]" in out
  assert "| 0 | 40 |" in out and "| 2 | 40 |" in out and "| 1 |" not in out
  assert "P(better) = 1.000" in out
  assert "bootstrap over 16 groups, 20 resamples" in out


def test_rows_that_a_run_has_left_out_count_for_neither(tmp_path):
  baseline, files = make_files(tmp_path)
  found = write(tmp_path / "fold0.jsonl", files[0][2:])
  given = [compare_reward.read(found, folds=False)]
  rows = compare_reward.read(tmp_path / "baseline.jsonl", folds=True)
  both = compare_reward.join(rows, given, 2)
  kept = {row["id"] for row in files[0][2:]}
  scores = [row["score"] for row in baseline if row["id"] in kept]
  assert sorted(both.baseline) == sorted(scores)
  assert sorted(both.model) == sorted(row["score"] for row in files[0][2:])
  with pytest.raises(ValueError, match="left_out=2 compares"):
    compare_reward.join(rows, given, 1)


def test_errors_name_the_row_and_the_way_out(tmp_path):
  _, files = make_files(tmp_path)
  path = tmp_path / "fold0.jsonl"
  first, *rest = files[0]
  cases = [
    ([first, first, *rest], f"'{first['id']}'.*row 1 and in .*row 2.*its own"),
    (rest, "are 39, but fold 0 of the baseline has 40.*eval.rows.*left_out=1 "),
    ([first | {"id": "new"}, *rest], "no row 'new'.*data.fold"),
    ([first, *rest, *files[1]], r"folds \[0, 1\], not of one"),
    ([first | {"label": 1 - first["label"]}, *rest], "different data"),
    ([first | {"group": "other"}, *rest], "different data"),
    ([first | {"score": float("nan")}, *rest], "row 1: score is 'nan'"),
    ([{"id": "a", "group": "b", "chosen": 1.0}], "no 'score'.*pointwise"),
    ([], "has no rows"),
  ]
  for rows, expected in cases:
    write(path, rows)
    with pytest.raises(ValueError, match=expected):
      joined(tmp_path, folds=[0])
  write(path, files[0])
  with pytest.raises(ValueError, match=r"two of the files .* same fold"):
    joined(tmp_path, folds=[0, 0])
  path.unlink()
  with pytest.raises(FileNotFoundError, match="fold0"):
    joined(tmp_path, folds=[0])

"""The bag-of-words baseline: what it sees, and that it can learn."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reward_baseline
from perl_jax import classification, files
from perl_jax.data import splits
from perl_jax.data.records import Labelled
from perl_jax.data.sources import registry

SHARED = Path(__file__).parents[3] / "shared" / "data"
FOLDS = 3
GOOD, BAD = ("gladly", "certainly", "done"), ("nope", "whatever", "later")


def make_rows(groups=45, noise=0.0):
  """Two rows a group; polite answers are rated 1."""
  generator = np.random.default_rng(0)
  rows = []
  for group, turn in itertools.product(range(groups), range(2)):
    label = float(generator.random() < 0.6)
    word = generator.choice(GOOD if label else BAD)
    if generator.random() < noise:
      label = 1 - label
    prompt = (
      {"role": "user", "content": f"order {group} please"},
      {"role": "tool", "content": '{"find": {"items": [{"item_id": "tea"}]}}'},
    )
    rows.append(
      Labelled(f"r{group}-{turn}", str(group), prompt, f"{word} sir", label)
    )
  return rows


def load_from(rows, change=lambda row: row, changed_fold=None):
  """A `sources.load` over `rows`; `change` is applied to held-out rows."""

  def load(data, kind, *, seed, folds, fold):
    assert (data, kind) == ("some", "labelled")
    found = splits.split_records(rows, folds=folds, fold=fold, seed=seed)
    held_out = found.validation
    if fold == changed_fold:
      held_out = [change(row) for row in held_out]
    return type(found)(found.train, held_out, found.counts)

  return load


def replaced(row, **fields):
  return Labelled(**(vars(row) | fields))


def scores_of(monkeypatch, load):
  monkeypatch.setattr(registry, "load", load)
  return reward_baseline.cross_validate("some", folds=FOLDS, seed=0)


def test_every_row_is_scored_once_in_its_fold(monkeypatch):
  rows = make_rows()
  found = scores_of(monkeypatch, load_from(rows))
  assert sorted(row["id"] for row in found) == sorted(row.id for row in rows)
  folds = splits.assign_folds([row.group for row in rows], folds=FOLDS, seed=0)
  by_id = {row.id: row for row in rows}
  for row in found:
    assert row["fold"] == folds[row["group"]]
    assert row["label"] == by_id[row["id"]].label
    assert row["group"] == by_id[row["id"]].group


def test_it_learns_what_there_is_to_learn(monkeypatch):
  found = scores_of(monkeypatch, load_from(make_rows()))
  assert reward_baseline.quality(found)["auroc"] > 0.99
  found = scores_of(monkeypatch, load_from(make_rows(noise=0.5)))
  assert reward_baseline.quality(found)["auroc"] < 0.7


def test_held_out_labels_change_no_score(monkeypatch):
  rows = make_rows(noise=0.1)
  plain = scores_of(monkeypatch, load_from(rows))
  flipped = scores_of(
    monkeypatch,
    load_from(rows, lambda r: replaced(r, label=1 - r.label), changed_fold=1),
  )
  assert [r["score"] for r in flipped] == [r["score"] for r in plain]
  assert [r["label"] for r in flipped] != [r["label"] for r in plain]


def test_a_held_out_row_changes_no_other_score(monkeypatch):
  rows = make_rows(noise=0.1)
  plain = scores_of(monkeypatch, load_from(rows))
  target = next(row["id"] for row in plain if row["fold"] == 1)

  def change(row):
    return replaced(row, response="nope nope") if row.id == target else row

  changed = scores_of(monkeypatch, load_from(rows, change, changed_fold=1))
  different = [
    a["id"] for a, b in zip(plain, changed, strict=True)
    if not np.isclose(a["score"], b["score"], rtol=0, atol=1e-12)
  ]  # fmt: skip
  assert different == [target]


def test_fitted_on_the_other_folds_alone(monkeypatch):
  rows = make_rows(noise=0.2)
  found = scores_of(monkeypatch, load_from(rows))
  for fold in range(FOLDS):
    parts = splits.split_records(rows, folds=FOLDS, fold=fold, seed=0)
    logits = reward_baseline.Baseline(parts.train, 0).logits(parts.validation)
    assert [
      (row["id"], row["score"]) for row in found if row["fold"] == fold
    ] == [
      (row.id, float(score)) for row, score in zip(parts.validation, logits)
    ]


def test_words_of_held_out_rows_alone_have_no_meaning():
  baseline = reward_baseline.Baseline(make_rows(), seed=0)
  rows = [
    replaced(make_rows(groups=1)[0], response=f"{word} sir")
    for word in ("quxly", "zurry", "gladly")
  ]
  unseen, other, known = baseline.logits(rows)
  assert unseen == other != known


def test_same_seed_same_scores(monkeypatch):
  load = load_from(make_rows(noise=0.2))
  assert scores_of(monkeypatch, load) == scores_of(monkeypatch, load)


def test_hand_features_of_a_call():
  prompt = (
    {"role": "user", "content": "Two lattes, please"},
    {"role": "assistant", "content": '{"find": {"query": "latte"}}'},
    {
      "role": "tool",
      "content": '{"find": {"items": [{"item_id": "latte", "name": "Latte"}]}}',
    },
  )
  row = Labelled(
    "1",
    "g",
    prompt,
    '{"add": {"item_id": "latte", "size_id": "xl", "quantity": "2"}}',
    1.0,
  )
  found = reward_baseline.hand_features(row)
  assert found["kind"] == "call add"
  assert found["previous, kind"] == "call find > call add"
  assert found["last role"] == "tool"
  assert (found["ids"], found["ids not shown"]) == (2, 1)
  assert found["quantity by user"] == 1.0  # "Two" is 2
  assert found["repeats"] == 0
  again = reward_baseline.hand_features(
    replaced(row, response=prompt[1]["content"])
  )
  assert (again["repeats"], again["same kind before"]) == (1, 1)


@pytest.mark.parametrize(
  "response", ["", "Sure.", '{"a": 1, "b": 2}', '{"a": 3}', '{"a"', "[" * 9999]
)
def test_hand_features_of_any_text(response):
  for prompt in ((), ({"role": "user", "content": ""},)):
    found = reward_baseline.hand_features(
      Labelled("1", "g", prompt, response, 0.0)
    )
    numbers = [v for v in found.values() if not isinstance(v, str)]
    assert np.isfinite(numbers).all()


def test_command_line(monkeypatch, tmp_path, capsys):
  out = tmp_path / "new" / "scores.jsonl"
  rows = make_rows()
  plain = load_from(rows)

  def load(data, kind, *, data_dir, cache_dir, path, **options):
    assert (data_dir, cache_dir, path) == ("here", "", "")
    return plain(data, kind, **options)

  monkeypatch.setattr(registry, "load", load)
  monkeypatch.setattr(
    "sys.argv",
    ["x", "--data=some", "--data_dir=here", "--folds=3", f"--out={out}"],
  )
  reward_baseline.main()
  written = files.read_jsonl(out)
  assert len(written) == len(rows)
  assert set(written[0]) == {"id", "group", "fold", "score", "label"}
  assert "| pooled | 1.000 |" in capsys.readouterr().out


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the released files")
def test_one_fold_of_the_released_rows(tmp_path):
  found = registry.load(
    "taskmaster_coffee",
    "labelled",
    data_dir=str(SHARED),
    cache_dir=str(tmp_path),
  )
  scores = reward_baseline.Baseline(found.train, 0).logits(found.validation)
  labels = np.array([row.label for row in found.validation])
  # 0.747 when this was written; a bag of words alone has 0.65.
  assert classification.auroc(scores, labels) > 0.7

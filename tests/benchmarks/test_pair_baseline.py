"""The bag of words of pairs: what it learns, and how it is held out."""

import json

import numpy as np
import pytest

from benchmarks import pair_baseline
from perl_jax.data.records import Preference
from perl_jax.data.sources import registry


def pair(chosen, rejected, number=0):
  prompt = ({"role": "user", "content": f"question {number}"},)
  return Preference(f"r:{number}", f"g{number}", prompt, chosen, rejected)


def test_the_reward_is_linear_in_the_words_that_part_the_replies():
  """A pair turned round has the opposite margin; a word of both has none."""
  train = [pair("sorry this helps", "sure this harms", i) for i in range(8)]
  baseline = pair_baseline.Baseline(train, seed=0)
  rows = [pair("sorry", "sure"), pair("sure", "sorry"), pair("this", "other")]
  chosen, rejected = baseline.rewards(rows)
  margins = chosen - rejected
  assert margins[0] > 0.1 and margins[1] == -margins[0]
  np.testing.assert_allclose(margins[2], 0, atol=1e-6)


@pytest.fixture
def transcripts(tmp_path):
  """Pairs whose rejected reply has a word that only its own group has."""
  rows = []
  for i in range(20):
    start = f"\n\nHuman: Question {i}\n\nAssistant: "
    rows.append(
      {"chosen": f"{start}good unique{i}", "rejected": f"{start}bad other{i}"}
    )
  folder = tmp_path / "hh_harmless"
  folder.mkdir()
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "train.jsonl").write_text(text)
  return tmp_path


def test_every_pair_is_scored_once_by_what_has_not_seen_it(transcripts):
  rows = pair_baseline.cross_validate(
    "hh_rlhf", folds=4, seed=0, data_dir=str(transcripts)
  )
  assert len({row["id"] for row in rows}) == len(rows) == 20
  # Words of a pair's own are unknown where it is held out, so that all pairs
  # of a fold have the same margin.
  for fold in range(4):
    margins = [
      row["chosen"] - row["rejected"] for row in rows if row["fold"] == fold
    ]
    assert np.ptp(margins) < 1e-9 and margins[0] > 0
  lines = pair_baseline.table(rows).splitlines()
  assert len(lines) == 2 + 4 + 1
  assert lines[-1].startswith("| all | 1.000 (0.839 to 1.000) |")


def test_it_judges_by_the_words_of_its_own_fold(transcripts, monkeypatch):
  """A word of another fold, the held-out one included, moves nothing."""
  monkeypatch.setenv(pair_baseline.DATA, str(transcripts))
  pairs = registry.load(
    "hh_rlhf", "preferences", seed=0, data_dir=str(transcripts),
    train_folds=pair_baseline.JUDGES_BY,
  )  # fmt: skip
  own = [row.chosen.split()[1] for row in pairs.train]
  held_out = [row.chosen.split()[1] for row in pairs.validation]
  assert own and held_out
  score = dict.fromkeys(["good", "bad", "nothing", *own, *held_out])
  found = pair_baseline.judge([], [*score], [])
  score = dict(zip(score, found, strict=True))
  assert score["good"] > 0 > score["bad"]
  assert all(score[word] > 0 for word in own)
  assert all(score[word] == score["nothing"] == 0 for word in held_out)

"""What does not change between evaluations is computed once: calls, counted."""

import collections

import numpy as np
import pytest

from perl_jax.tasks.evaluation import anchor_rows, anchored
from perl_jax.tasks.training.compiled import Compiled
from tests.tasks import tiny

# Eight prompts and eight pairs are held out: an evaluation is one batch.
ONE = 1


@pytest.fixture
def calls(monkeypatch):
  """How often compiled functions were called, by their names."""
  found = collections.Counter()
  real = Compiled.__call__

  def counted(self, *args):
    found[self.name] += 1
    return real(self, *args)

  monkeypatch.setattr(Compiled, "__call__", counted)
  return found


@pytest.mark.slow
def test_an_sft_model_has_no_anchor_to_score(calls, tmp_path):
  tiny.run(tmp_path / "run", "sft")
  assert calls["sample"] == calls["logprobs"] == ONE


@pytest.mark.slow
def test_dpo_scores_no_pair_at_step_0(calls, tmp_path, sft_run):
  summary = tiny.run(tmp_path / "run", "dpo", policy__init=str(sft_run))
  evaluations, updates = 2, 4
  assert calls["dpo log-probs"] == ONE + evaluations * ONE + updates
  # Policy and anchor at step 0 too: that their KL is 0 has to be shown.
  assert calls["logprobs"] == 2 * (1 + evaluations) * ONE
  assert calls["sample"] == (1 + evaluations) * ONE
  first = tiny.lines(tmp_path / "run")[0]
  assert first["step"] == 0 and first["validation/margin"] == 0.0
  np.testing.assert_allclose(first["validation/loss"], np.log(2), rtol=1e-6)
  assert summary["margin"] != 0.0


@pytest.mark.slow
def test_an_evaluation_scores_the_anchor_once(calls, tmp_path, rl_run):
  found = tiny.run(tmp_path / "run", "evaluate", policy__init=str(rl_run))
  assert calls["sample"] == 2 * ONE
  # The anchor's responses by itself; the policy's by both.
  assert calls["logprobs"] == 3 * ONE
  assert found["policy.kl"] != 0.0
  assert found["policy.length"] > 0 and found["anchor.length"] > 0


# 48 pairs in batches of eight: two epochs.
TWICE = {"steps": 12, "eval_every": 6, "optimizer__learning_rate": 0.05}


def scored_pairs(monkeypatch):
  """The pairs of each batch that is scored for DPO, as they come."""
  pairs, real = [], Compiled.__call__

  def seen(self, *args):
    if self.name == "dpo log-probs":
      pairs.append(int(args[2].valid.sum()))
    return real(self, *args)

  monkeypatch.setattr(Compiled, "__call__", seen)
  return pairs


@pytest.mark.slow
def test_the_anchor_scores_a_training_pair_once(monkeypatch, tmp_path, sft_run):
  fields = {"policy__init": str(sft_run)} | TWICE
  pairs = scored_pairs(monkeypatch)
  found = tiny.run(tmp_path / "once", "dpo", **fields)
  assert sum(pairs) == 48 + 8 + 2 * 8  # training, held out, evaluations
  # A run that goes on reads them; a line that has changed is not believed.
  path = tmp_path / "once" / anchor_rows.NAME
  content = path.read_bytes()
  damaged = content.replace(b'"training pairs"', b'"training pair5"', 1)
  for changed, again in ((content, 0), (damaged, 48 + 8)):
    path.write_bytes(changed)
    pairs.clear()
    (tmp_path / "once" / "summary.json").unlink()
    assert tiny.untimed(tiny.run(tmp_path / "once", "dpo", **fields)) == (
      tiny.untimed(found)
    )
    assert sum(pairs) == again
    assert path.read_bytes() == content


@pytest.mark.slow
def test_members_of_one_seed_share_their_anchors(
  calls, monkeypatch, tmp_path, sft_run
):
  """Its evaluation and its log-probs, which the first one keeps."""
  pairs, members, evaluations = scored_pairs(monkeypatch), 2, 2
  fields = {"policy__init": str(sft_run), "vary": "beta=0.1,0.3"} | TWICE
  tiny.run(tmp_path / "run", "dpo", **fields)
  assert sum(pairs) == 48 + 8 + members * evaluations * 8
  assert calls["sample"] == (1 + members * evaluations) * ONE
  assert calls["logprobs"] == 2 * (1 + members * evaluations) * ONE
  places = [tmp_path / "run/members" / str(k) for k in range(members)]
  there = [(place / anchor_rows.NAME).exists() for place in places]
  assert there == [True, False]
  first, second = map(tiny.lines, places)
  assert first[0]["validation/length"] == second[0]["validation/length"]
  assert first[-1]["validation/kl"] != second[-1]["validation/kl"]


@pytest.mark.nightly
def test_pairs_scored_once_are_as_scored_each_time(
  monkeypatch, tmp_path, sft_run
):
  """But for the rows that they are packed into."""
  fields = {"policy__init": str(sft_run)} | TWICE
  tiny.run(tmp_path / "once", "dpo", **fields)
  monkeypatch.setattr(anchored, "table", lambda *args: None)
  pairs = scored_pairs(monkeypatch)
  tiny.run(tmp_path / "each", "dpo", **fields)
  assert sum(pairs) == 12 * 8 + 8 + 2 * 8
  mine, theirs = (tiny.lines(tmp_path / name) for name in ("once", "each"))
  for row, other in zip(mine, theirs, strict=True):
    for key in {"train/loss", "validation/loss", "validation/margin"} & {*row}:
      assert row[key] == pytest.approx(other[key], rel=1e-3), key

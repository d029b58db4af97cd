"""The benchmark of a reward step on real pairs: both sides do the same work."""

import argparse
import json

import pytest

from benchmarks import process, reward_rows
from configs import reward
from tests.tasks import bases, tiny


def test_parts_have_similar_lengths():
  pairs = [([0] * a, [0] * b) for a, b in ((9, 1), (2, 3), (1, 5), (4, 4))]
  found = reward_rows.in_parts(pairs, 2)
  assert [[max(len(a), len(b)) for a, b in part] for part in found] == [
    [3, 4], [5, 9]
  ]  # fmt: skip
  assert len(reward_rows.in_parts(pairs, 1)) == 1


def test_every_batch_is_seen_before_it_is_measured():
  seen = []
  found = reward_rows.run(seen.append, "ab")
  assert seen == ["a", "b", "a", "b"]
  assert found["wall"] >= 0 and found["peak_bytes"] > 0


def test_ratios_are_of_medians(monkeypatch):
  values = iter([{"cpu": 1.0}, {"cpu": 4.0}, {"cpu": 9.0}, {"cpu": 6.0},
                 {"cpu": 2.0}, {"cpu": 5.0}])  # fmt: skip
  monkeypatch.setattr(process, "last_json", lambda *_, **__: next(values))
  found = reward_rows.beside([], 3)
  assert found["perl_jax"] == {"cpu": 2.0} and found["torch"] == {"cpu": 5.0}
  assert found["ratio_cpu"] == 0.4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_both_sides_take_the_same_pairs(tmp_path, monkeypatch):
  for package in ("torch", "peft", "transformers"):
    pytest.importorskip(package, reason="requirements-parity.txt")
  bases.write_base(tmp_path, "qwen2.5")
  config = json.loads((tmp_path / "config.json").read_text())
  config["max_position_embeddings"] = 400  # a row has so many tokens
  (tmp_path / "config.json").write_text(json.dumps(config))
  small = tiny.override(reward.get_config(), {"data.options.size": 48})
  monkeypatch.setattr(reward, "get_config", lambda _: small)
  given = argparse.Namespace(
    base=str(tmp_path), data="coffee_bar", data_dir="", max_len=400, batch=4,
    batches=2, microbatches=2, parts=2, rank=2, shared=tmp_path,
  )  # fmt: skip
  ours = reward_rows.ours(given)
  batches = json.loads((tmp_path / reward_rows.PAIRS).read_text())
  assert [len(pairs) for pairs in batches] == [4, 4]
  torchs = reward_rows.torchs(given)
  padded = 0
  for pairs in batches:
    longest = sorted(max(len(a), len(b)) for a, b in pairs)
    padded += 4 * longest[1] + 4 * longest[3]
  assert torchs["computed_tokens"] == padded
  sides = sum(len(a) + len(b) for pairs in batches for a, b in pairs)
  assert torchs["computed_tokens"] >= sides > 0 < ours["computed_tokens"]

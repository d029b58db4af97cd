"""The benchmark of RL on real prompts: both sides get the same prompts."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import process, rl_rows, trl_rloo
from perl_jax.data.batches.prompts import PromptBatch
from tests.tasks import bases


def test_prompts_have_no_padding():
  tokens = np.array([[0, 0, 5, 6], [1, 0, 3, 4]], np.int32)
  lengths = np.array([2, 4], np.int32)
  batch = PromptBatch(tokens, lengths, np.ones(2, bool), np.arange(2))
  assert rl_rows.prompts_of(batch) == [[5, 6], [1, 0, 3, 4]]


def test_ratios_are_of_medians(monkeypatch, tmp_path):
  def side(*seconds):
    rows = [dict.fromkeys(rl_rows.COUNTED, second) for second in seconds]
    return {"iterations": rows, "peak_bytes": seconds[0]}

  called = []
  ours = side(3.0, 1.0, 2.0) | {"clean": [0, 2]}
  answers = iter([{"directory": "m"}, ours, side(8.0, 4.0, 9.0)])

  def last_json(command, **_):
    called.append(command)
    return next(answers)

  monkeypatch.setattr(process, "last_json", last_json)
  prompts = tmp_path / "prompts.json"
  given = argparse.Namespace(
    base=str(tmp_path), trl="other", prompts=prompts, warmup=3
  )
  found = rl_rows.beside(given, ["--base=x"])
  # Of both the iterations in which ours compiled nothing.
  assert found["perl_jax"]["cpu"] == 2.5 and found["TRL"]["cpu"] == 8.5
  assert found["ratio_cpu"] == 2.5 / 8.5
  assert found["ratio_peak_bytes"] == 3 / 8
  assert called[1][1:] == ["-m", "benchmarks.rl_rows", "--base=x"]
  assert called[2][0] == "other"
  assert called[2][3:] == ["m", str(prompts), "--warmup=3"]


def test_a_token_is_a_character():
  pytest.importorskip("transformers", reason="requirements-parity.txt")
  ids = [7, 3, 0, 1, 299, 7]
  tokenizer = trl_rloo.tokenizer(300, stop_id=1, pad_id=0)
  assert tokenizer(trl_rloo.text_of(ids))["input_ids"] == ids
  assert tokenizer.batch_decode([ids[:2]]) == [trl_rloo.text_of(ids[:2])]
  assert tokenizer.eos_token_id == 1 and tokenizer.pad_token_id == 0
  padded = tokenizer(
    [trl_rloo.text_of(ids), trl_rloo.text_of([5])], padding=True
  )
  assert padded["input_ids"][1] == [0, 0, 0, 0, 0, 5]


@pytest.mark.slow
def test_our_side_responds_to_the_prompts_that_it_writes(tmp_path):
  bases.write_base(tmp_path, "smollm2")
  given = argparse.Namespace(
    base=str(tmp_path), data="coffee_bar", data_dir="", max_len=112, batch=2,
    group=2, response=16, rank=2, warmup=1, steps=2,
    prompts=tmp_path / "prompts.json",
  )  # fmt: skip
  found = rl_rows.ours(given)
  wanted = json.loads(given.prompts.read_text())
  assert [len(batch) for batch in wanted["prompts"]] == [2, 2, 2]
  lengths = [np.mean([*map(len, batch)]) for batch in wanted["prompts"]]
  assert len(found["iterations"]) == 2 and set(found["clean"]) <= {0, 1}
  for row in found["iterations"]:
    assert row["prompt"] in lengths[1:] and row["prompt"] <= 96
    assert 1 <= row["response"] <= 16
    assert row["cpu"] > 0

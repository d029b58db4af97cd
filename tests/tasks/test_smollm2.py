"""`configs/smollm2.py` on a small model and small pairs of transcripts."""

import json

import pytest

from configs import smollm2
from perl_jax import files, tasks
from perl_jax.data.sources import registry
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import hf_export
from perl_jax.models import presets
from perl_jax.tasks.initial import model
from tests.data.text import families
from tests.tasks import tiny

STAGES = ("reward", "rl", "evaluate", "judge_reward", "judge")
TRAINED_STAGES = ("reward", "rl", "judge_reward")
# One bucket, so that a step compiles once, and a few rows.
SMALL = {
  "data.max_len": 160,
  "data.prompt_len": 120,
  "data.response_len": 8,
  "data.buckets": (),
  "mesh.data": 1,
  "eval.rows": 4,
  "eval.batch_size": 4,
}
TRAINED = {"steps": 2, "eval_every": 2, "batch_size": 4, "microbatches": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """Random weights below a ChatML tokenizer."""
  directory = tmp_path_factory.mktemp("chatml")
  families.write(families.FAMILIES["qwen2.5"], directory)
  tokenization = tokenization_lib.load_tokenizer(directory)
  config = presets.preset(
    "llama_tiny", vocab_size=tokenization.vocab_size, max_len=256
  )
  hf_export.save_model(
    directory,
    config,
    model.random_base(config, 0, "float32"),
    hf_export.Stops(tokenization.stop_ids, None, tokenization.pad_id),
    dtype="float32",
    shard_bytes=10**9,
  )
  return directory


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """A directory with transcripts in the form of hh-rlhf."""
  path = tmp_path_factory.mktemp("data") / "hh_harmless" / "test.jsonl"
  path.parent.mkdir()
  rows = []
  for i in range(40):
    asked = f"\n\nHuman: how do I {i}?\n\nAssistant:"
    rows.append({"chosen": f"{asked} no {i}", "rejected": f"{asked} yes"})
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path.parent


def small(checkpoint, pairs, cache):
  values = {
    "base": str(checkpoint),
    "data.dir": str(pairs),
    "data.cache": str(cache),
    "rl.score_microbatches": 2,
  }
  for stage in STAGES:
    fields = SMALL | TRAINED if stage in TRAINED_STAGES else SMALL
    values |= {f"{stage}.{name}": value for name, value in fields.items()}
  return tiny.override(smollm2.get_config(), values)


@pytest.mark.slow
def test_from_a_checkpoint_to_conversations(
  checkpoint, pairs, tmp_path, capsys, monkeypatch
):
  config = small(checkpoint, pairs, tmp_path / "cache")
  workdir = tmp_path / "run"
  summary = tasks.run(config, workdir)
  assert summary["rl.kl_at_step_0"] == 0.0
  for name in (
    "reward.accuracy", "rl.reward_after", "seconds.evaluate",
    "judge_reward.accuracy", "judge.by.judge_reward.win_rate",
  ):  # fmt: skip
    assert name in summary
  # The rows that one has learned from are none of the other's.
  assert summary["judge.by.judge_reward.same_rows"] == 0.0
  assert not (workdir / "sft").exists()
  for stage in TRAINED_STAGES:
    found = json.loads((workdir / stage / "model.json").read_text())
    assert found["base"]["path"] == str(checkpoint)

  shown = capsys.readouterr().out
  rows = files.read_jsonl(workdir / "evaluate" / "samples.jsonl")
  notice = registry.describe()["hh_rlhf"].notice
  assert shown.index(notice) < shown.index(rows[0]["prompt"])
  for row in rows[: config.conversations]:
    assert row["prompt"] in shown
    assert {"anchor", "policy", "anchor_reward", "policy_stopped"} <= set(row)
  assert notice in (workdir / "report.html").read_text()

  # The second time nothing is computed: it has finished.
  for name in STAGES:
    task = tasks.TASKS[tasks.STAGES[name].name]
    started = "stage" if task.trains else "run"
    monkeypatch.setattr(task.module(), started, None)
  assert tasks.run(config, workdir) == tiny.summary(workdir)


def test_a_missing_package_is_named_before_anything_is_written(tmp_path):
  config = smollm2.get_config()
  config.base = "package:no-such-model==0.1.2"
  with pytest.raises(ValueError, match=r"--no-deps no-such-model==0\.1\.2"):
    tasks.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()

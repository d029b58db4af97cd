"""Reward models: what is trained, reported and written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params, roles
from perl_jax.data.sources.coffee_bar import rows as rows_lib
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.tasks import reward
from perl_jax.tasks.evaluation import reward_model as reward_evaluation
from perl_jax.tasks.initial import restore
from perl_jax.tasks.settings import reward as reward_settings
from tests import padded
from tests.tasks import tiny


def test_scores_are_those_of_the_reported_checkpoint(reward_run):
  """Row by row and without padding, from the files a later stage reads."""
  start = restore.load(reward_run, "best", "reward", "reward.init")
  tree = params.combine(start.role.adapter | start.role.head, start.role.frozen)
  tree = jax.device_put(tree)
  tokenization = tokenization_lib.load_tokenizer(start.tokenizer)
  backbone = roles.Backbone(start.config, start.role.lora)
  score = jax.jit(
    lambda tokens, lengths: padded.reward_scores(
      backbone, tree, tokens, lengths, lengths - 1, max_response=1
    )
  )
  validation = rows_lib.load(
    "preferences", size=48, validation_size=8
  ).validation
  rows = tiny.lines(reward_run, "scores.jsonl")
  assert [row["id"] for row in rows] == [row.id for row in validation]
  for row, record in zip(rows, validation, strict=True):
    assert row["group"] == record.group
    for side in ("chosen", "rejected"):
      ids = tokenization.encode_prompt(record.prompt)[0]
      ids += tokenization.encode_response(record.prompt, getattr(record, side))
      tokens = np.zeros((1, 150), np.int32)
      tokens[0, : len(ids)] = ids
      found = score(tokens, np.array([len(ids)], np.int32))
      np.testing.assert_allclose(row[side], found[0], rtol=1e-4, atol=1e-7)
  assert len({row["chosen"] for row in rows}) > 1


def test_summary_is_of_the_scores(reward_run):
  rows = tiny.lines(reward_run, "scores.jsonl")
  summary = tiny.summary(reward_run)
  for key, value in reward_evaluation.quality(rows).items():
    assert summary[key] == value, key
  margins = [row["chosen"] - row["rejected"] for row in rows]
  assert summary["accuracy"] == np.mean(np.array(margins) > 0)
  assert summary["best_step"] in tiny.kept(reward_run)
  losses = {
    row["step"]: row["validation/log_loss"]
    for row in tiny.lines(reward_run)
    if "validation/log_loss" in row
  }
  assert summary["best_step"] == min(losses, key=losses.get)
  assert summary["log_loss"] == pytest.approx(min(losses.values()), rel=1e-6)


def test_rows_are_kept_of_the_best_and_the_last():
  scored, kept = reward.Scored(), []
  for step, loss in enumerate((0.5, 0.3, 0.4, 0.3, 0.6, 0.7), start=1):
    scored.keep(step, loss, [{"step": step}])
    kept.append(sorted(scored.rows))
  assert kept == [[1], [2], [2, 3], [4], [4, 5], [4, 6]]
  assert scored.rows[4] == [{"step": 4}]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_no_checkpoint_is_scored_twice(
  tmp_path, monkeypatch, sft_run, checkpoint
):
  scored, score_rows = [], reward_evaluation.score_rows

  def spy(*args):
    scored.append(1)
    return score_rows(*args)

  monkeypatch.setattr(reward_evaluation, "score_rows", spy)
  fields = {"steps": 2, "eval_every": 1, "report_checkpoint": checkpoint,
            "reward__init": str(sft_run)}  # fmt: skip
  tiny.run(tmp_path, "reward", **fields)
  assert len(scored) == 2
  rows = tiny.lines(tmp_path, "scores.jsonl")
  tiny.run(tmp_path, "reward", **fields)
  assert len(scored) == 2  # it has finished
  for name in ("scores.jsonl", "summary.json"):
    (tmp_path / name).unlink()
  # Started once more it trains nothing, and has no rows but those it scores.
  tiny.run(tmp_path, "reward", **fields)
  assert len(scored) == 3
  assert tiny.lines(tmp_path, "scores.jsonl") == rows


def test_adapters_and_head_are_a_hundredth_of_the_base(reward_run, sft_run):
  """Issue point 4: what is trained, held and saved, in numbers."""
  summary = tiny.summary(reward_run)
  start = restore.load(reward_run, "best", "reward", "reward.init")
  trained = start.role.adapter | start.role.head
  assert summary["trainable_parameters"] == params.count(trained)
  assert summary["trainable_bytes"] == params.nbytes(trained)
  assert summary["frozen_bytes"] == params.nbytes(start.role.frozen)
  assert summary["trainable_bytes"] / summary["frozen_bytes"] < 0.03
  base = set(params.flatten(start.role.frozen))
  names = tiny.checkpoints(reward_run)
  assert names
  for name in names:
    assert not any(name.endswith(path) for path in base), name
  held = sum(x.size for n, x in names.items() if "4/optimizer/opt_state" in n)
  assert held <= 2 * params.count(trained) + 4  # two moments and counters


def test_unknown_loss_names_the_others():
  config = tiny.config("reward", loss="pointwise")
  assert reward_settings.loss_of(config).data == "labelled"
  with pytest.raises(ValueError, match=r"\['pairwise', 'pointwise'\]"):
    reward_settings.loss_of(tiny.config("reward", loss="triplet"))


@pytest.mark.slow
def test_pointwise_and_the_last_checkpoint(tmp_path, sft_run):
  workdir = tmp_path / "run"
  summary = tiny.run(
    workdir,
    "reward",
    reward__init=str(sft_run),
    loss="pointwise",
    report_checkpoint="last",
    optimizer__learning_rate=0.05,
  )
  rows = tiny.lines(workdir, "scores.jsonl")
  truth = rows_lib.load("labelled", size=48, validation_size=8).validation
  assert [row["label"] for row in rows] == [row.label for row in truth]
  assert {"auroc", "balanced_accuracy", "calibration_error"} <= set(summary)
  last = [r for r in tiny.lines(workdir) if "validation/log_loss" in r][-1]
  assert last["step"] == 4
  assert summary["log_loss"] == pytest.approx(
    last["validation/log_loss"], rel=1e-6
  )


@pytest.mark.slow
def test_every_step_has_a_key_of_its_own(tmp_path, monkeypatch, sft_run):
  """A key made anew inside a step would drop out the same each time."""
  loss = reward_settings.LOSSES["pairwise"]

  def spying(backbone, **options):
    loss_fn = loss.make(backbone, **options)

    def spied(trainable, frozen, batch, key):
      drawn = jax.random.uniform(key)
      sums = loss_fn(trainable, frozen, batch, key)
      return sums | {"drawn": (drawn, jnp.ones(()))}

    return spied

  monkeypatch.setitem(
    reward_settings.LOSSES, "pairwise", loss._replace(make=spying)
  )
  tiny.run(tmp_path / "run", "reward", reward__init=str(sft_run))
  rows = tiny.lines(tmp_path / "run")
  drawn = [row["train/drawn"] for row in rows if "train/drawn" in row]
  assert len(set(drawn)) == len(drawn) == 4

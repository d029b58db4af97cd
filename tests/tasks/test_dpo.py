"""DPO as a stage: what it starts from, learns, says and leaves behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params, roles, steps
from perl_jax.data.sources.coffee_bar import rows as rows_lib
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.models.lora import LoraSpec
from perl_jax.objectives import language_model
from perl_jax.tasks.initial import restore
from tests.tasks import test_bad_input, test_resume, tiny

# Fast enough that four steps show in the text that is sampled.
FAST = {"optimizer__learning_rate": 0.05, "optimizer__warmup_steps": 0}


@pytest.fixture(scope="module")
def dpo_run(tmp_path_factory, sft_run):
  workdir = tmp_path_factory.mktemp("dpo") / "run"
  tiny.run(workdir, "dpo", policy__init=str(sft_run), **FAST)
  return workdir


def judged(workdir):
  rows = tiny.lines(workdir)
  return {row["step"]: row for row in rows if "validation/kl" in row}


def test_policy_is_the_anchor_at_step_0(dpo_run):
  """Exactly: one executable measures both."""
  start = judged(dpo_run)[0]
  assert start["validation/kl"] == start["validation/kl_per_token"] == 0.0
  assert start["validation/margin"] == 0.0
  assert start["validation/accuracy"] == 0.5
  assert start["validation/chosen_reward"] == 0.0
  assert start["validation/responses"] == 8
  np.testing.assert_allclose(start["validation/loss"], np.log(2), rtol=1e-6)
  first = next(r for r in tiny.lines(dpo_run) if "train/loss" in r)
  assert first["step"] == 1
  # Measured by two programs here, each with its own order of sums.
  np.testing.assert_allclose(first["train/loss"], np.log(2), rtol=1e-4)


def test_moves_away_from_the_anchor(dpo_run):
  rows = judged(dpo_run)
  assert sorted(rows) == [0, 2, 4]
  for step in (2, 4):
    assert rows[step]["validation/kl"] != 0.0
    assert rows[step]["validation/margin"] != 0.0
    assert rows[step]["validation/loss"] != rows[0]["validation/loss"]


@pytest.mark.slow
def test_learns_the_pairs(tmp_path, sft_run):
  """Five times over 48 pairs, a tenth of them the wrong way round."""
  fields = {
    "optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 0,
    "steps": 30, "eval_every": 30,
  }  # fmt: skip
  tiny.run(tmp_path / "run", "dpo", policy__init=str(sft_run), **fields)
  rows = [r for r in tiny.lines(tmp_path / "run") if "train/loss" in r]
  loss, accuracy = (
    np.mean([row[f"train/{name}"] for row in rows[-6:]])
    for name in ("loss", "accuracy")
  )
  assert loss < 0.6 and accuracy > 0.8


def test_summary_stands_beside_that_of_rl(dpo_run, rl_run):
  summary, rl = tiny.summary(dpo_run), tiny.summary(rl_run)
  last = judged(dpo_run)[4]
  assert summary["kl_at_step_0"] == 0.0
  assert summary["kl"] == last["validation/kl"]
  for name in ("gold", "length", "stop_rate", "entropy", "repetition"):
    # Same anchor, prompts and draws.
    assert summary[f"{name}_before"] == rl[f"{name}_before"], name
    assert summary[f"{name}_after"] == last[f"validation/{name}"], name
  for name in ("loss", "accuracy", "margin", "log_loss", "chosen_reward"):
    assert summary[name] == last[f"validation/{name}"], name
  assert not any("reward_before" in name for name in summary)
  assert summary["best_step"] in tiny.kept(dpo_run)


def test_held_out_pairs_by_hand(dpo_run, sft_run):
  """Row by row and without padding, from the files a later stage reads."""
  start = restore.load(dpo_run, "last", "policy", "policy.init")
  tokenization = tokenization_lib.load_tokenizer(start.tokenizer)
  backbone = roles.Backbone(start.config, start.role.lora)

  @jax.jit
  def logprobs(tree, tokens):
    sequence = roles.right_padded(tokens, jnp.full(1, tokens.shape[1]))
    hidden = roles.hidden_states(backbone, tree, sequence)
    kernel = roles.head_kernel(start.config, tree)
    return language_model.head_logits(hidden, kernel)[0]

  def likelihood(tree, record, side):
    prompt = tokenization.encode_prompt(record.prompt)[0]
    ids = prompt + tokenization.encode_response(
      record.prompt, getattr(record, side)
    )
    assert ids[-1] in tokenization.stop_ids
    tokens = np.zeros((1, 136), np.int32)
    tokens[0, : len(ids)] = ids
    logits = np.asarray(logprobs(tree, tokens), np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    places = range(len(prompt), len(ids))
    return sum(logits[t - 1, ids[t]] for t in places)

  policy = params.combine(start.role.adapter, start.role.frozen)
  anchor = restore.load(sft_run, "best", "policy", "policy.init").role.frozen
  beta = tiny.config("dpo").beta
  rewards = np.array(
    [
      [
        beta * (likelihood(policy, row, s) - likelihood(anchor, row, s))
        for s in ("chosen", "rejected")
      ]
      for row in rows_lib.load(
        "preferences", size=48, validation_size=8
      ).validation
    ]
  )
  margins = rewards[:, 0] - rewards[:, 1]
  summary = tiny.summary(dpo_run)
  smoothing = tiny.config("dpo").label_smoothing
  loss = np.log1p(np.exp(-margins)) + smoothing * margins
  np.testing.assert_allclose(summary["loss"], loss.mean(), rtol=1e-4)
  np.testing.assert_allclose(summary["margin"], margins.mean(), rtol=1e-3)
  np.testing.assert_allclose(
    summary["chosen_reward"], rewards[:, 0].mean(), rtol=1e-3
  )
  assert summary["accuracy"] == np.mean(margins > 0)


def test_samples_are_anchor_and_policy_side_by_side(dpo_run, rl_run):
  mine = [r for r in tiny.lines(dpo_run, "samples.jsonl") if r["step"] == 4]
  theirs = [r for r in tiny.lines(rl_run, "samples.jsonl") if r["step"] == 4]
  for key in ("prompt", "reference", "anchor", "anchor_gold"):
    assert [row[key] for row in mine] == [row[key] for row in theirs], key
  assert [r["policy"] for r in mine] != [r["anchor"] for r in mine]


def test_a_policy_like_any_other_is_left_behind(dpo_run, sft_run, tmp_path):
  start = restore.load(dpo_run, "last", "policy", "policy.init")
  sft = restore.load(sft_run, "best", "policy", "policy.init")
  assert start.fingerprint == sft.fingerprint and start.role.head is None
  assert start.role.lora == LoraSpec(rank=2)
  base = set(params.flatten(sft.role.frozen))
  names = tiny.checkpoints(dpo_run)
  assert names
  assert not [n for n in names if any(n.endswith(path) for path in base)]
  found = tiny.run(
    tmp_path / "judged",
    "evaluate",
    policy__init=str(dpo_run),
    eval__temperature=1.0,
  )
  # Drawn again with other numbers, by the same policy and anchor.
  assert found["policy.kl"] != 0.0 and "anchor.gold" in found


@pytest.mark.slow
def test_rl_goes_on_from_it_and_export_takes_it(tmp_path, dpo_run, reward_run):
  found = tiny.run(
    tmp_path / "rl",
    "rl",
    policy__init=str(dpo_run),
    policy__checkpoint="last",
    reward__init=str(reward_run),
    steps=1,
    eval_every=1,
  )
  assert found["kl_at_step_0"] == 0.0
  assert found["gold_before"] == tiny.summary(dpo_run)["gold_after"]
  module = __import__("configs.export", fromlist=["get_config"])
  config = tiny.override(
    module.get_config(), {"init": str(dpo_run), "checkpoint": "last"}
  )
  test_bad_input.tasks.run(config, tmp_path / "out")
  assert (tmp_path / "out" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_one_base_for_policy_and_anchor(tmp_path, placed_bases, sft_run):
  """And it has the same bits after the run."""
  tiny.run(tmp_path / "run", "dpo", policy__init=str(sft_run), steps=1)
  assert len(placed_bases) == 1
  expected = restore.load(sft_run, "best", "policy", "policy.init").fingerprint
  assert params.fingerprint(placed_bases[0]) == expected


@pytest.mark.slow
def test_full_tuning_keeps_a_copy_as_the_anchor(
  tmp_path, placed_bases, sft_run
):
  fields = {"tuning": "full", "loss": "ipo", "label_smoothing": 0.0}
  summary = tiny.run(
    tmp_path / "run", "dpo", policy__init=str(sft_run), **fields
  )
  assert summary["kl_at_step_0"] == 0.0 and summary["kl"] != 0.0
  assert summary["trainable_share"] == 1.0 and summary["frozen_bytes"] == 0
  beta = tiny.config("dpo").beta
  start = judged(tmp_path / "run")[0]["validation/loss"]
  np.testing.assert_allclose(start, 0.25 / beta**2, rtol=1e-6)
  expected = restore.load(sft_run, "best", "policy", "policy.init").fingerprint
  assert params.fingerprint(placed_bases[0]) == expected  # it was not donated
  trained = restore.load(tmp_path / "run", "last", "policy", "policy.init")
  assert trained.role.adapter is None and trained.fingerprint != expected


@pytest.mark.slow
def test_after_a_lora_sft_the_anchor_has_its_adapter(tmp_path, sft_run):
  """The anchor is not the base: turning adapters off would make it so."""
  fields = {"tuning": "lora", "optimizer__learning_rate": 0.1,
            "optimizer__warmup_steps": 0, "eval__rows": 0}  # fmt: skip
  tiny.run(tmp_path / "sft", "sft", policy__init=str(sft_run), **fields)
  init = {"policy__init": str(tmp_path / "sft")}
  summary = tiny.run(tmp_path / "dpo", "dpo", steps=1, **init)
  assert summary["kl_at_step_0"] == 0.0
  plain = tiny.run(
    tmp_path / "plain", "dpo", steps=1, policy__init=str(sft_run)
  )
  assert summary["entropy_before"] != plain["entropy_before"]


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch, sft_run):
  """Dropout draws keys, and the anchor is not in the checkpoint."""
  fields = {
    "policy__init": str(sft_run), "lora__dropout": 0.1, "microbatches": 2,
    **FAST, **test_resume.STEPS,
  }  # fmt: skip
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  tiny.run(whole, "dpo", **fields)
  for kill, number, last in (
    (test_resume.kill_before_save, 4, 4),
    (test_resume.kill_before_batch, 4, 5),  # of steps 3, 4, 5, 6
  ):
    with monkeypatch.context() as patches:
      kill(patches, number)
      with pytest.raises(test_resume.Killed):
        tiny.run(broken, "dpo", **fields)
    assert tiny.lines(broken)[-1]["step"] == last
    assert not (broken / "summary.json").exists()
  tiny.run(broken, "dpo", **fields)
  test_resume.same(whole, broken)
  again = tiny.run(broken, "dpo", **fields)
  test_resume.same(whole, broken)
  assert tiny.untimed(again) == tiny.untimed(tiny.summary(whole))


@pytest.mark.nightly
def test_eight_devices_train_the_same_policy(tmp_path, dpo_run, sft_run):
  """Data and parameters spread over a mesh, up to float reassociation."""
  workdir = tmp_path / "run"
  fields = {"mesh__data": 4, "mesh__fsdp": 2, **FAST}
  tiny.run(workdir, "dpo", policy__init=str(sft_run), **fields)
  found, expected = tiny.lines(workdir), tiny.lines(dpo_run)
  # Before the first update policy and anchor are equal: whose responses are
  # the likelier then, only rounding says.
  for row in found + expected:
    if row["step"] == 1:
      row.pop("train/accuracy", None)
  for mine, theirs in zip(found, expected, strict=True):
    for key, value in mine.items():
      assert value == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), key


@pytest.mark.slow
def test_every_step_has_a_key_of_its_own(tmp_path, monkeypatch, sft_run):
  real = steps.dpo_loss

  def spying(backbone, **options):
    loss_fn = real(backbone, **options)

    def spied(trainable, frozen, batch, key):
      sums = loss_fn(trainable, frozen, batch, key)
      return sums | {"drawn": (jax.random.uniform(key), jnp.ones(()))}

    return spied

  monkeypatch.setattr(steps, "dpo_loss", spying)
  tiny.run(tmp_path / "run", "dpo", policy__init=str(sft_run))
  rows = tiny.lines(tmp_path / "run")
  drawn = [row["train/drawn"] for row in rows if "train/drawn" in row]
  assert len(set(drawn)) == len(drawn) == 4


@pytest.mark.parametrize(
  "field, value, texts",
  [
    ("loss", "hinge", ("config.loss='hinge'", "sigmoid, ipo")),
    ("beta", 0.0, ("config.beta=0.0", "above 0", "a nat")),
    ("label_smoothing", 0.6, ("config.label_smoothing=0.6", "[0, 0.5)")),
    ("loss", "ipo", ("config.label_smoothing=0.1", "use 0")),
    ("batch_size", 7, ("config.batch_size=7", "config.microbatches=4")),
    ("policy__init", "/no/such", ("config.policy.init='/no/such'", "or dpo")),
    ("eval__temperature", 0.0, ("temperature=0.0", "greedy")),
  ],
)  # fmt: skip
def test_value_of_a_field(tmp_path, field, value, texts):
  fields = {"microbatches": 4, "tuning": "full"} | {field: value}
  test_bad_input.refused(
    tmp_path,
    tiny.config("dpo", **fields),
    *texts,
    error=(ValueError, FileNotFoundError),
  )


def test_adapter_of_another_shape_is_refused(tmp_path, rl_run):
  config = tiny.config("dpo", policy__init=str(rl_run), lora__rank=3)
  test_bad_input.refused(tmp_path, config, "lora", "rank=3")


def test_data_set_without_pairs(tmp_path):
  config = tiny.config("dpo", "taskmaster_ticketing", tuning="full")
  test_bad_input.refused(tmp_path, config, "has no 'preferences'", "hh_rlhf")

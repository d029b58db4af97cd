"""Ensembles of reward models: trained, kept, asked, averaged and exported."""

import json

import jax
import numpy as np
import pytest

from perl_jax import classification, params, sharding
from perl_jax.tasks.evaluation import reward_model as reward_evaluation
from perl_jax.tasks.initial import restore
from perl_jax.tasks.initial import trainable as trainable_lib
from perl_jax.tasks.settings import reward as reward_settings
from tests.marks import by_night
from tests.tasks import test_export, tiny

MEMBERS = 3
FAST = {"optimizer__learning_rate": 0.05}
SHORT = {"steps": 2, "eval_every": 1}


@pytest.fixture(scope="module")
def ensemble_run(tmp_path_factory, finished):
  """Three reward models on half-samples; tests leave it as it is."""
  workdir = tmp_path_factory.mktemp("ensemble") / "run"
  tiny.run(
    workdir,
    "reward",
    reward__init=str(finished / "sft"),
    ensemble=MEMBERS,
    **FAST,
  )
  return workdir


def test_a_member_is_what_one_run_would_have_made(tmp_path, sft_run):
  """On all rows, the first member is a run of its own with the same seed."""
  fields = {"reward__init": str(sft_run)} | FAST | SHORT
  tiny.run(
    tmp_path / "two", "reward", ensemble=2, member_share=1.0, **fields
  )  # fmt: skip
  tiny.run(tmp_path / "one", "reward", **fields)
  two = restore.load(tmp_path / "two", "last", "reward", "x")
  one = restore.load(tmp_path / "one", "last", "reward", "x")
  assert (two.role.members, one.role.members) == (2, 1)
  first = trainable_lib.member_of(two, 0)
  for tree, other in (
    (first.role.adapter, one.role.adapter),
    (first.role.head, one.role.head),
  ):
    for path, leaf in params.flatten(other).items():
      np.testing.assert_allclose(
        params.flatten(tree)[path], leaf, rtol=1e-3, atol=2e-5, err_msg=path
      )
  second = trainable_lib.member_of(two, 1)
  apart = [
    np.abs(leaf - params.flatten(second.role.adapter)[path]).max()
    for path, leaf in params.flatten(first.role.adapter).items()
  ]
  assert min(apart) > 1e-3


@pytest.mark.nightly
def test_four_devices_train_the_same_ensemble(tmp_path, ensemble_run, sft_run):
  """Each member's rows are spread over a mesh: the same but for rounding."""
  tiny.run(
    tmp_path / "run", "reward", reward__init=str(sft_run), ensemble=MEMBERS,
    mesh__data=2, mesh__fsdp=2, **FAST,
  )  # fmt: skip
  found, expected = tiny.lines(tmp_path / "run"), tiny.lines(ensemble_run)
  for mine, theirs in zip(found, expected, strict=True):
    for key, value in mine.items():
      assert value == pytest.approx(theirs[key], rel=2e-3, abs=1e-3), key


def test_what_is_kept_and_reported(ensemble_run, reward_run):
  described = json.loads((ensemble_run / "model.json").read_text())
  assert described["ensemble"] == MEMBERS
  single = json.loads((reward_run / "model.json").read_text())
  assert single["ensemble"] == 1
  one, many = tiny.summary(reward_run), tiny.summary(ensemble_run)
  assert (
    many["trainable_parameters"] == MEMBERS * one["trainable_parameters"]
  )  # fmt: skip
  assert many["frozen_bytes"] == one["frozen_bytes"]
  names = tiny.checkpoints(ensemble_run)
  assert all(
    leaf.shape[0] == MEMBERS
    for name, leaf in names.items()
    if "/trainable/" in name or "opt_state" in name
  )
  start = restore.load(ensemble_run, "last", "reward", "x")
  for path, leaf in params.flatten(start.role.adapter).items():
    assert np.ptp(np.asarray(leaf), axis=0).max() > 0, path


def test_scores_are_the_mean_and_each_member_is_reported(ensemble_run):
  rows = tiny.lines(ensemble_run, "scores.jsonl")
  summary = tiny.summary(ensemble_run)
  for row in rows:
    for side in ("chosen", "rejected"):
      assert len(row[f"{side}_members"]) == MEMBERS
      mean = np.mean(row[f"{side}_members"])
      assert row[side] == pytest.approx(mean, rel=1e-5, abs=1e-5)
  for k in range(MEMBERS):
    found = classification.preference_metrics(
      [row["chosen_members"][k] for row in rows],
      [row["rejected_members"][k] for row in rows],
    )
    assert summary[f"accuracy_member_{k}"] == found["accuracy"]
  assert summary["log_loss"] == reward_evaluation.quality(rows)["log_loss"]
  judged = [r for r in tiny.lines(ensemble_run) if "validation/log_loss" in r]
  assert "validation/accuracy_member_2" in judged[-1]


def test_scores_of_labelled_rows_are_not_centred():
  """Labels say what 0 is; of pairs only differences count."""
  labelled = [
    {"id": "a", "label": 1.0, "score": [1.0, 4.0]},
    {"id": "b", "label": 0.0, "score": [3.0, -1.0]},
  ]
  found = reward_evaluation.combine_rows(labelled, "min", 1.0)
  assert [row["score"] for row in found] == [1.0, -1.0]
  assert found[0]["score_members"] == [1.0, 4.0]
  pairs = [{"id": "a", "chosen": [1.0, 14.0], "rejected": [3.0, 8.0]}]
  # Centres 2 and 11, level 6.5: chosen 5.5 and 9.5, rejected 7.5 and 3.5.
  (row,) = reward_evaluation.combine_rows(pairs, "min", 1.0)
  assert (row["chosen"], row["rejected"]) == (5.5, 3.5)


@pytest.mark.parametrize(
  "combine", [by_night("min"), "mean_minus_std", "average"]
)
def test_policies_learn_from_every_combination(
  tmp_path, sft_run, ensemble_run, combine
):
  inits = {
    "policy__init": str(sft_run),
    "reward__init": str(ensemble_run),
    "reward__checkpoint": "last",
    "reward__combine": combine,
    "reward__std_weight": 0.5,
  }
  summary = tiny.run(tmp_path / "run", "rl", **inits | SHORT)
  assert summary["kl_at_step_0"] == 0.0 and summary["kl"] != 0.0
  rows = [r for r in tiny.lines(tmp_path / "run") if "rollout/reward" in r]
  for row in rows:
    assert ("rollout/reward_spread" in row) == (combine != "average")
    assert row.get("rollout/reward_spread", 1.0) > 0
  found = tiny.run(tmp_path / "judged", "evaluate", **inits)
  scores = tiny.lines(tmp_path / "judged", "scores.jsonl")
  if combine == "average":
    assert "accuracy_member_0" not in found and "policy.reward" in found
    return
  raw = np.array(
    [[row["chosen_members"], row["rejected_members"]] for row in scores]
  )
  centred = raw - raw.mean(axis=(0, 1)) + raw.mean()
  if combine == "min":
    expected = centred.min(axis=2)
  else:
    expected = centred.mean(axis=2) - 0.5 * centred.std(axis=2)
  for row, (chosen, rejected) in zip(scores, expected, strict=True):
    assert row["chosen"] == pytest.approx(chosen, abs=1e-5)
    assert row["rejected"] == pytest.approx(rejected, abs=1e-5)


def test_an_average_goes_out_as_one_adapter(tmp_path, ensemble_run):
  with pytest.raises(ValueError, match=r"holds 3 reward model.*'average'"):
    test_export.export(tmp_path / "x", ensemble_run, role="reward")
  assert not (tmp_path / "x").exists()
  test_export.export(
    tmp_path / "out", ensemble_run, role="reward", combine="average"
  )
  found = restore.load(tmp_path / "out", "", "reward", "x")
  start = restore.load(ensemble_run, "best", "reward", "x")
  assert found.role.lora.rank == MEMBERS * start.role.lora.rank
  merged = params.merge(found.role.frozen, found.role.adapter, found.role.lora)
  each = [
    params.merge(
      start.role.frozen,
      params.member(start.role.adapter, k),
      start.role.lora,
    )
    for k in range(MEMBERS)
  ]
  mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *each)
  for path, leaf in params.flatten(mean).items():
    np.testing.assert_allclose(
      params.flatten(merged)[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path
    )
  np.testing.assert_allclose(
    found.role.head["head"]["kernel"],
    np.mean(start.role.head["head"]["kernel"], axis=0),
    rtol=1e-6,
  )
  assert "average of an ensemble" in (tmp_path / "out/README.md").read_text()


def test_a_single_model_has_no_average(tmp_path, reward_run):
  with pytest.raises(ValueError, match=r"holds 1 reward model.*'average'"):
    test_export.export(
      tmp_path / "x", reward_run, role="reward", combine="average"
    )


def test_what_an_ensemble_is_not(tmp_path, sft_run, reward_run, ensemble_run):
  def refused(task, *texts, **fields):
    with pytest.raises(ValueError) as caught:
      tiny.run(tmp_path / "run", task, **fields)
    for text in texts:
      assert text in str(caught.value)
    assert not (tmp_path / "run").exists()

  many, one = str(ensemble_run), str(reward_run)
  sft = str(sft_run)
  refused(
    "rl", "config.policy.init", "ensemble of 3", "no policy",
    policy__init=many, reward__init=many,
  )  # fmt: skip
  refused(
    "rl", "value.init='reward'", "holds 3",
    policy__init=sft, reward__init=many, value__init="reward",
  )  # fmt: skip
  refused(
    "rl", "reward.combine='min'", "one reward model",
    policy__init=sft, reward__init=one, reward__combine="min",
  )  # fmt: skip
  refused(
    "reward", "ensemble of 3", "config.ensemble=1", reward__init=many
  )  # fmt: skip
  refused(
    "reward", "config.ensemble=2", "one backbone",
    reward__init=sft, ensemble=2, tuning="full",
  )  # fmt: skip
  refused(
    "reward", "member_share=1", "stay equal",
    reward__init=one, ensemble=2, member_share=1.0,
  )  # fmt: skip


@pytest.mark.parametrize(
  "fields, texts",
  [
    ({"ensemble": 2, "microbatches": 8}, ("4 rows", "microbatches=8")),
    ({"ensemble": 2}, ("4 rows", "8 devices")),
  ],
)
def test_fields_that_cannot_be(fields, texts):
  with pytest.raises(ValueError) as caught:
    reward_settings.check(
      tiny.config("reward", **fields),
      sharding.make_mesh(data=4, fsdp=2, tensor=1),
    )
  for text in texts:
    assert text in str(caught.value)


def test_an_ensemble_goes_on_from_an_ensemble(ensemble_run):
  start = restore.load(ensemble_run, "best", "reward", "x")
  fields = {
    "lora": start.role.lora,
    "tuning": "lora",
    "seed": 7,
    "head": "scalar",
  }
  role = trainable_lib.trainable_role(start, members=MEMBERS, **fields)
  expected = params.flatten(start.role.adapter | start.role.head)
  for path, leaf in params.flatten(role.trainable).items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  assert params.fingerprint(role.frozen) == start.fingerprint
  # From one model, every member begins with its adapter.
  one = trainable_lib.member_of(start, 1)
  role = trainable_lib.trainable_role(one, members=2, **fields)
  for path, leaf in params.flatten(role.trainable).items():
    np.testing.assert_array_equal(leaf, np.stack([expected[path][1]] * 2))

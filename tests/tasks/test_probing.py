"""Where the head of a reward model begins."""

import jax
import numpy as np
import pytest
from scipy import special

from perl_jax import files, linear_probe, roles
from perl_jax import params as params_lib
from perl_jax.data.batches import member_rows
from perl_jax.data.sources.coffee_bar import rows as rows_lib
from perl_jax.tasks.initial import restore
from tests.tasks import tiny

# The head is saved as it began, beside an adapter that changes nothing.
STILL = {"steps": 1, "eval_every": 1, "optimizer__learning_rate": 0.0,
         "optimizer__warmup_steps": 0, "probe_rows": 2048}  # fmt: skip


def head_of(workdir):
  start = restore.load(workdir, "last", "reward", "reward.init")
  return jax.device_get(start.role.head[params_lib.HEAD])


def probe_line(workdir):
  lines = tiny.lines(workdir)
  return {k: v for k, v in lines[0].items() if k.startswith("probe/")}


def differences(sft_run):
  """h(chosen) - h(rejected) of all training pairs, each text by itself."""
  start = restore.load(sft_run, "best", "policy", "policy.init")
  tokenization = start.load_tokenizer()
  backbone = roles.Backbone(start.config, start.role.lora)
  tree = params_lib.combine(start.role.adapter or {}, start.role.frozen)
  tree = jax.device_put(tree)

  @jax.jit
  def last(tokens, length):
    sequence = roles.right_padded(tokens[None], length[None])
    return roles.hidden_states(backbone, tree, sequence)[0, length - 1]

  def read(record, response):
    ids = tokenization.encode_prompt(record.prompt)[0]
    ids += tokenization.encode_response(record.prompt, response)
    ids += tokenization.closing
    tokens = np.zeros(150, np.int32)
    tokens[: len(ids)] = ids
    return last(tokens, np.int32(len(ids)))

  train = rows_lib.load("preferences", size=48, validation_size=8).train
  return np.array(
    [read(r, r.chosen) - read(r, r.rejected) for r in train], np.float64
  )


def require_minimum(x, w):
  """The loss pulls w as its penalty does, with one of the strengths."""
  w = w.astype(np.float64)
  pull = x.T @ special.expit(-x @ w)
  strength = np.mean(x**2) * np.linalg.norm(w) / np.linalg.norm(pull)
  nearest = min(linear_probe.STRENGTHS, key=lambda c: abs(np.log(c / strength)))
  assert strength == pytest.approx(nearest, rel=1e-2)
  weight = np.mean(x**2) / nearest
  np.testing.assert_allclose(pull, weight * w, atol=2e-3 * np.abs(pull).max())


@pytest.mark.parametrize("mesh", [{}, {"mesh__data": 2, "mesh__fsdp": 2}])
def test_a_new_head_is_the_minimum_over_the_training_pairs(
  tmp_path, sft_run, mesh
):
  tiny.run(tmp_path, "reward", reward__init=str(sft_run), **STILL, **mesh)
  require_minimum(differences(sft_run), head_of(tmp_path)["kernel"])
  assert set(probe_line(tmp_path)) == {"probe/log_loss", "probe/accuracy"}
  assert head_of(tmp_path)["bias"] == 0.0


@pytest.mark.parametrize("count", [0, 16])
def test_so_many_rows_are_read(tmp_path, sft_run, count, caplog):
  fields = STILL | {"reward__init": str(sft_run), "probe_rows": count}
  caplog.set_level("INFO", logger="absl")
  tiny.run(tmp_path, "reward", **fields)
  assert (f"says of {count} rows" in caplog.text) == bool(count)
  assert bool(probe_line(tmp_path)) == bool(count)
  assert head_of(tmp_path)["kernel"].any() == bool(count)


def test_models_of_an_ensemble_begin_on_rows_of_their_own(tmp_path, sft_run):
  """Those that it is trained on, of which there are half."""
  heads = {}
  for share in (0.5, 1.0):
    workdir = tmp_path / str(share)
    fields = {"reward__init": str(sft_run), "ensemble": 2}
    tiny.run(workdir, "reward", member_share=share, **fields, **STILL)
    heads[share] = head_of(workdir)["kernel"]
  x = differences(sft_run)
  trained = member_rows.Subsets(len(x), members=2, share=0.5, seed=0)
  for rows, head in zip(trained(np.arange(len(x))), heads[0.5], strict=True):
    require_minimum(x[rows], head)
  np.testing.assert_array_equal(*heads[1.0])


@pytest.mark.slow
def test_members_begin_as_they_would_alone(tmp_path, sft_run):
  """Orders of coffee are drawn by the seed: each has rows of its own."""
  fields = STILL | {"reward__init": str(sft_run)}
  tiny.run(tmp_path / "both", "reward", members=2, **fields)
  heads = []
  for k in range(2):
    tiny.run(tmp_path / str(k), "reward", seed=k, **fields)
    heads.append(head_of(tmp_path / str(k))["kernel"])
    np.testing.assert_allclose(
      head_of(tmp_path / "both" / "members" / str(k))["kernel"],
      heads[k],
      rtol=1e-3,
      atol=1e-6,
    )
  assert np.abs(heads[0] - heads[1]).max() > 1e-4


def test_a_head_that_was_trained_stays(tmp_path, reward_run):
  tiny.run(tmp_path, "reward", reward__init=str(reward_run), **STILL)
  before = restore.load(reward_run, "best", "reward", "reward.init")
  np.testing.assert_array_equal(
    head_of(tmp_path)["kernel"], before.role.head[params_lib.HEAD]["kernel"]
  )
  assert not probe_line(tmp_path)


def labelled(tmp_path, good):
  """A run on rows `i` that are good where `good(i)`; scores of those rows."""
  rows = tmp_path / "rows.jsonl"
  files.write_jsonl(
    rows,
    [
      {"prompt": f"q{i}", "completion": f"{i * i} a", "label": good(i)}
      for i in range(60)
    ],
  )
  fields = {"data__path": str(rows), "data__validation_path": str(rows),
            "loss": "pointwise", "head": "likelihood", "tuning": "full",
            "eval__rows": 0}  # fmt: skip
  tiny.run(tmp_path / "run", "reward", "jsonl", **fields, **STILL)
  return tiny.lines(tmp_path / "run", "scores.jsonl")


def test_labels_give_the_head_its_bias_and_weights_of_likelihood(tmp_path):
  """The bias is at its minimum where predictions are right on average."""
  rows = labelled(tmp_path, lambda i: i % 3 > 0)
  labels, scores = (np.array([r[k] for r in rows]) for k in ("label", "score"))
  assert 0 < labels.mean() < 1
  assert special.expit(scores).mean() == pytest.approx(labels.mean(), abs=1e-3)
  assert scores[labels == 1].mean() > scores[labels == 0].mean()
  head = head_of(tmp_path / "run")
  assert head["likelihood"].all() and head["kernel"].any() and head["bias"]


def test_rows_that_are_not_finite_are_left_out(
  tmp_path, sft_run, monkeypatch, caplog
):
  features = roles.packed_features

  def broken(backbone, params, batch, **options):
    x = features(backbone, params, batch, **options)
    bad = (batch.index < 8)[..., None, None]
    return jax.numpy.where(bad, np.nan, x)

  monkeypatch.setattr(roles, "packed_features", broken)
  tiny.run(tmp_path, "reward", reward__init=str(sft_run), **STILL)
  require_minimum(differences(sft_run)[8:], head_of(tmp_path)["kernel"])
  assert "8 of 48 rows are not finite" in caplog.text


def test_labels_of_one_kind_leave_the_head_at_zeros(tmp_path, caplog):
  labelled(tmp_path, lambda i: True)
  head = head_of(tmp_path / "run")
  assert not head["kernel"].any() and not head["likelihood"].any()
  assert "there is nothing to fit" in caplog.text

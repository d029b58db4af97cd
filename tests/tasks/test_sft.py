"""The anchor: its losses, its samples, and the same on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import roles
from perl_jax.data.sources.coffee_bar import rows as rows_lib
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import restore
from perl_jax.tasks.training import inputs
from tests.tasks import tiny


def test_validation_loss_is_that_of_the_last_weights(sft_run):
  """From all logits of the saved model in float64, on every target."""
  start = restore.load(sft_run, "last", "policy", "policy.init")
  tokenization = tokenization_lib.load_tokenizer(start.tokenizer)
  data = inputs.targets(tiny.config("sft"), tokenization)
  backbone = roles.Backbone(start.config, LoraSpec())
  base = jax.device_put(start.role.frozen)

  @jax.jit
  def logits(tokens, positions, segments):
    sequence = roles.Sequence(tokens, positions, segments)
    hidden = roles.hidden_states(backbone, base, sequence)
    return hidden @ roles.head_kernel(start.config, base)

  total = right = count = 0
  for batch in data.validation():
    found = np.asarray(logits(*batch[:3]), np.float64)[:, :-1]
    logprobs = found - np.log(np.exp(found).sum(axis=-1, keepdims=True))
    rows, columns = np.nonzero(batch.target_mask[:, 1:])
    targets = batch.tokens[:, 1:][rows, columns]
    total -= logprobs[rows, columns, targets].sum()
    right += (found[rows, columns].argmax(axis=-1) == targets).sum()
    count += len(targets)
  last = [r for r in tiny.lines(sft_run) if "validation/loss" in r][-1]
  assert last["step"] == 4 and count > 50
  np.testing.assert_allclose(last["validation/loss"], total / count, rtol=1e-5)
  np.testing.assert_allclose(last["validation/accuracy"], right / count)
  summary = tiny.summary(sft_run)
  assert summary["loss"] == last["validation/loss"]
  assert summary["gold"] == last["validation/gold"]


def test_learns_something(sft_run):
  judged = [
    row["validation/loss"]
    for row in tiny.lines(sft_run)
    if "validation/loss" in row
  ]
  assert judged[-1] < judged[0] < np.log(2000)
  summary = tiny.summary(sft_run)
  assert summary["trainable_share"] == 1.0 and summary["frozen_bytes"] == 0
  assert not any("kl" in key for key in summary)


def test_samples_are_of_prompts_that_were_held_out(sft_run):
  rows = tiny.lines(sft_run, "samples.jsonl")
  splits = rows_lib.load("prompts", size=48, validation_size=8)
  told = {row.reference for row in splits.validation}
  assert {row["reference"] for row in rows} == told
  assert [row["step"] for row in rows] == [4] * 8
  assert all(row["prompt"].startswith("user: ") for row in rows)
  assert all(set(row) == {"step", "prompt", "reference", "response"}
             for row in rows)  # fmt: skip


@pytest.mark.slow
def test_eight_devices_train_the_same_model(tmp_path, sft_run):
  """Data parallel: the losses of four steps agree to float reassociation."""
  fields = {"mesh__data": 4, "mesh__fsdp": 2, "eval__rows": 0}
  tiny.run(tmp_path / "run", "sft", **fields)
  found, expected = tiny.lines(tmp_path / "run"), tiny.lines(sft_run)
  assert len(found) == len(expected)
  for mine, theirs in zip(found, expected, strict=True):
    for key, value in mine.items():
      np.testing.assert_allclose(value, theirs[key], rtol=2e-4, err_msg=key)
  single = restore.load(sft_run, "last", "policy", "x").role.frozen
  sharded = restore.load(tmp_path / "run", "last", "policy", "x").role.frozen
  # Adam divides by the size of the gradient, so that rounding shows in leaves
  # with a tiny one: 3e-3 of a step of 2e-3.
  for mine, theirs in zip(
    jax.tree.leaves(sharded), jax.tree.leaves(single), strict=True
  ):
    np.testing.assert_allclose(mine, theirs, atol=6e-6)
  assert jnp.asarray(single["embedding"]).shape[0] == 400

"""What a run does at a number that is not finite, on a state that counts."""

import errno
import json
import os
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import disk, steps
from perl_jax.checkpoint import Resumed
from perl_jax.steps import finite
from perl_jax.tasks.training import changes as changes_lib
from perl_jax.tasks.training import nonfinite
from tests.archives import read_arrays
from tests.tasks.training import test_loop as counting

FAULTS = {
  code: steps.describe_fault(code, {"policy": {"w": jnp.ones(2)}})
  for code in range(1, 6)
}
GRADIENT = next(k for k, f in FAULTS.items() if f.phase == "gradient")


class Batch(NamedTuple):
  tokens: np.ndarray
  weights: np.ndarray
  num_tokens: int = 10


class Batches(counting.Batches):
  """The same numbers, as arrays."""

  def __next__(self):
    number = super().__next__()
    weights = np.ones(2, np.float32)
    return Batch(np.array([number, number]), weights, 10)


def start():
  trainable = {"policy": {"w": jnp.zeros(2)}}
  return steps.TrainState(trainable, (), jnp.int32(0))


def updating(bad, evidence=dict):
  """Adds the batch, but in the steps `bad`, which have a fault."""

  def update(state, batch, step):
    fault = GRADIENT if step in bad else 0
    moved = jax.tree.map(lambda w: w + int(batch.tokens[0]), state.trainable)
    state = steps.TrainState(
      state.trainable if fault else moved, (), state.step + 1
    )
    loss = jnp.float32("nan" if fault else 1.0)
    return state, {
      "train/loss": loss,
      "train/update_norm": jnp.float32(1.0),
      nonfinite.KEY: nonfinite.Faults((jnp.int32(fault),), evidence),
    }

  return update


def run(workdir, bad, *, evidence=dict, resumed=None, state=None, **options):
  guard = nonfinite.Guard(workdir, learning_rate=0.25, **options)
  return counting.run(
    workdir,
    resumed=resumed
    or Resumed(state or start(), {"data": {"next": 0}, "evaluated": {}}),
    batches=Batches(),
    update=updating(bad, evidence),
    evaluate=lambda state, step: {
      "validation/sum": int(state.trainable["policy"]["w"][0])
    },
    saver=Saver(),
    guard=guard,
  )


class Saver(counting.Saver):
  """Remembers what each checkpoint holds."""

  def save(self, step, state, meta, found):
    weights = np.asarray(state.trainable["policy"]["w"]).tolist()
    self.saved[step] = weights, json.loads(json.dumps(meta)), dict(found)


def stopped(workdir, bad, **options):
  with pytest.raises(FloatingPointError) as caught:
    run(workdir, bad, **options)
  message = str(caught.value)
  assert "\n" not in message
  return message


def test_stop_names_step_phase_and_array_and_the_way_out(tmp_path):
  """Lines are written every second step: the step is named all the same."""
  message = stopped(tmp_path, {5})
  assert message.startswith("Step 5: the gradient of policy/w ")
  assert "from the checkpoint of step 3" in message
  assert "--config.optimizer.learning_rate (it is 0.25)" in message
  assert "--config.nonfinite=skip" in message
  stop = json.loads((tmp_path / "nonfinite" / "stop.json").read_text())
  assert stop == {"step": 5, "phase": "learn, gradient", "array": "policy/w"}


def test_the_batch_can_be_loaded(tmp_path):
  def evidence():
    scores = {"rewards": jnp.array([0.5, 1.5])}
    return {nonfinite.FROZEN: {"kernel": jnp.ones(3)}, "score": scores}

  message = stopped(tmp_path, {5}, evidence=evidence)
  path = tmp_path / "nonfinite" / "step-5.npz"
  assert str(path) in message
  found = read_arrays(path)
  assert sorted(found) == [
    "batch/num_tokens", "batch/tokens", "batch/weights", "score/rewards",
  ]  # fmt: skip
  assert found["batch/tokens"].tolist() == [4, 4]
  assert found["score/rewards"].tolist() == [0.5, 1.5]


def test_a_full_disk_does_not_hide_why_the_run_has_stopped(
  tmp_path, monkeypatch
):
  """Nor one on which nothing else can be made there."""

  def refuse(path, content):
    with disk.writing(path.name, path.parent, len(content)):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patches:
    patches.setattr(nonfinite.files, "write_bytes", refuse)
    message = stopped(tmp_path / "full", {5})
  assert message.startswith("Step 5: the gradient of policy/w ")
  assert "Its batch was not kept: st" in message
  assert "No space left on device" in message
  assert "--config.nonfinite=skip" in message
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "nonfinite").write_text("mine")
  message = stopped(tmp_path / "other", {5})
  assert message.startswith("Step 5: the gradient of policy/w ")
  assert "Its batch was not kept: what the run stopped at" in message


@pytest.mark.parametrize("text", ["", "{}", '{"step": "5"}', '{"step'])
def test_a_damaged_note_of_the_stop_is_named(tmp_path, text):
  (tmp_path / "nonfinite").mkdir()
  path = tmp_path / "nonfinite" / "stop.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
    nonfinite.is_stopped(tmp_path)
  assert "Remove it" in str(caught.value)
  path.unlink()
  assert not nonfinite.is_stopped(tmp_path)


@pytest.mark.parametrize("phase", [nonfinite.FROZEN, "sample", "score"])
def test_what_was_read_comes_before_what_was_computed_from_it(tmp_path, phase):
  def evidence():
    found = {nonfinite.FROZEN: {"x": jnp.ones(3)}, "sample": {}, "score": {}}
    found[phase] = {"x": jnp.array([[0.0, 1.0], [jnp.inf, jnp.nan]])}
    return found

  message = stopped(tmp_path, {2}, evidence=evidence)
  assert message.startswith(f"Step 2: x[1, 0] ({phase}) is not finite; so the")
  assert ("file with the base" in message) == (phase == nonfinite.FROZEN)


def test_parameters_that_are_bad_already_are_named(tmp_path):
  state = start()
  state.trainable["policy"]["w"] = jnp.array([0.0, jnp.nan])
  message = stopped(tmp_path, {1}, state=state)
  assert message.startswith("Step 1: policy/w[1] (parameters) is not finite")
  assert "goes on from the start" in message


def test_skipping_counts_and_goes_on(tmp_path):
  state, _, saver = run(tmp_path, {2, 5}, mode="skip", limit=3)
  weights = state.trainable["policy"]["w"].tolist()
  assert weights == [0 + 2 + 3 + 5 + 6] * 2 and int(state.step) == 7
  rows = [r for r in counting.rows(tmp_path) if "train/loss" in r]
  assert {r["step"]: r["train/skipped"] for r in rows} == {
    1: 0, 2: 1, 3: 1, 4: 1, 6: 2, 7: 2,
  }  # fmt: skip
  assert rows[1]["train/loss"] == "nan"
  # The schedule counts the updates before: 0, 1, 1, 2, 3 (of 5, one more).
  rates = [round(10 * r["train/learning_rate"]) for r in rows]
  assert rates == [0, 1, 1, 2, 3, 4]
  assert saver.saved[6][1]["nonfinite"] == {"skipped": 2, "in_a_row": 0}
  assert "nonfinite" not in counting.run(tmp_path)[2].saved[3][1]
  assert not (tmp_path / "nonfinite").exists()


def test_skipping_ends_after_so_many_in_a_row(tmp_path):
  run(tmp_path, {2, 3, 5, 6}, mode="skip", limit=3)
  message = stopped(tmp_path, {2, 3, 5, 6, 7}, mode="skip", limit=3)
  assert message.startswith("Step 7: ")
  assert "3 updates in a row were skipped" in message


def test_a_resumed_run_goes_on_counting(tmp_path):
  counts = {"skipped": 4, "in_a_row": 2}
  run(tmp_path, {1}, mode="skip", limit=4, saved=counts)
  message = stopped(tmp_path, {1}, mode="skip", limit=3, saved=counts)
  assert message.startswith("Step 1: ")


def test_an_evaluation_without_a_value_stops_too(tmp_path):
  class Refusing(counting.Saver):
    def save(self, step, *args):
      if step == 6:
        raise FloatingPointError(f"m=nan after step {step}; nothing was saved.")
      super().save(step, *args)

  with pytest.raises(FloatingPointError) as caught:
    counting.run(tmp_path, saver=Refusing())
  message = str(caught.value)
  assert "m=nan after step 6" in message and "step 3" in message
  assert "learning_rate" in message
  assert json.loads((tmp_path / "nonfinite" / "stop.json").read_text())[
    "step"
  ] == 6  # fmt: skip


RATE = "optimizer.learning_rate", 0.1, 0.01
CLIP = "optimizer.clip_norm", 1.0, 0.1
OFF = "optimizer.clip_norm", 1.0, 0.0
OTHER = "lora.rank", 4, 8
SKIP = "nonfinite", "stop", "skip"


def is_allowed(workdir, stage, field, before, now):
  """Whether a workdir goes on with one field changed, by the table."""

  def config(value):
    found = {"task": stage or "sft"}
    *above, last = field.split(".")
    section = found
    for name in above:
      section = section.setdefault(name, {})
    section[last] = value
    return {"task": "pipeline", stage: found} if stage else found

  found = changes_lib.review(config(before), config(now), workdir)
  assert len(found.allowed) + len(found.refused) == 1
  return bool(found.allowed)


@pytest.mark.parametrize("stage", ["", "rl"])
def test_what_may_change(tmp_path, stage):
  """The optimiser's numbers after a stop, until there is a later checkpoint."""
  workdir = tmp_path / stage

  def changes():
    fields = [RATE, CLIP, OFF, OTHER, SKIP]
    return [is_allowed(tmp_path, stage, *field) for field in fields]

  assert changes() == [False, False, False, False, True]
  (workdir / "nonfinite").mkdir(parents=True)
  (workdir / "nonfinite" / "stop.json").write_text('{"step": 12}')
  (workdir / "checkpoints" / "8").mkdir(parents=True)
  assert changes() == [True, True, False, False, True]
  (workdir / "checkpoints" / "12").mkdir()
  assert changes() == [False, False, False, False, True]


def test_faults_have_the_names_of_the_tree():
  assert FAULTS[GRADIENT] == finite.Fault("gradient", "policy/w", None)

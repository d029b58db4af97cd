"""A batch that makes the loss NaN, in every stage: stop, replay, skip, go on.

The loss of a batch is NaN where a row of it has nothing but one token, which a
test puts into the batch of one step. In RL the reward function returns 3e38
then, of which float32 has no square.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import steps, tasks
from perl_jax.data import loader
from perl_jax.data.batches.prompts import PromptBatch
from perl_jax.tasks.rollouts import reward_values
from tests.marks import by_night
from tests.tasks import tiny

pytestmark = pytest.mark.slow
TOKEN = 399
STAGES = ("sft", "reward", "dpo", "rl")
BY_NIGHT = ("reward", "dpo")  # their loop is that of sft
FUNCTION = f"{__name__}:reward"
_drawn = {"step": 0, "bad": ()}


def reward(prompts, responses, rows):
  """The length of a response, but 3e38 in a bad step."""
  scale = 3e38 if _drawn["step"] in _drawn["bad"] else 1.0
  return [scale * (1 + len(text) % 3) / 3 for text in responses]


@pytest.fixture
def poison(monkeypatch):
  """Makes the batches of some steps, counted from 1 in each run, bad."""
  draw, make = loader.TrainBatches.__next__, steps.make_train_step

  def next_batch(self):
    batch = draw(self)
    _drawn["step"] += 1
    if _drawn["step"] in _drawn["bad"] and not isinstance(batch, PromptBatch):
      first = np.array(batch[0])
      first[0] = TOKEN
      batch = batch._replace(**{batch._fields[0]: first})
    return batch

  def make_step(loss_fn, optimizer, **options):
    def spoilt(trainable, frozen, batch, key):
      found = loss_fn(trainable, frozen, batch, key)
      tokens = jax.tree.leaves(batch)[0]
      bad = jnp.any(jnp.all(tokens == TOKEN, axis=-1))
      total, count = found["loss"]
      return found | {"loss": (total * jnp.where(bad, jnp.nan, 1.0), count)}

    return make(spoilt, optimizer, **options)

  def bad(*numbers, first=1):
    _drawn.update(step=first - 1, bad=numbers)

  monkeypatch.setattr(loader.TrainBatches, "__next__", next_batch)
  monkeypatch.setattr(steps, "make_train_step", make_step)
  # Else the rewards of a bad step would be refused by what checks them.
  monkeypatch.setattr(reward_values, "LARGEST", np.inf)
  yield bad
  bad()


def config(stage, **overrides):
  fields = {"log_every": 4, "microbatches": 2, "steps": 4, "eval_every": 2}
  fields["tuning"] = "full"  # there is no earlier stage
  if stage == "rl":
    fields |= {"reward__fn": FUNCTION, "center_reward": False}
  return tiny.config(stage, **fields | overrides)


def stopped(config, workdir):
  with pytest.raises(FloatingPointError) as caught:
    tasks.run(config, workdir)
  return str(caught.value)


@pytest.mark.parametrize(
  "stage",
  [by_night(name) if name in BY_NIGHT else name for name in STAGES],
)
def test_stop_and_go_on(tmp_path, poison, stage):
  workdir = tmp_path / "run"
  poison(3)
  message = stopped(config(stage), workdir)
  assert message.startswith("Step 3: the loss overflows or is not a number.")
  assert "goes on from the checkpoint of step 2" in message
  assert tiny.kept(workdir) == [2] and not (workdir / "summary.json").exists()
  with np.load(workdir / "nonfinite" / "step-3.npz") as found:
    arrays = dict(found)
  if stage == "rl":
    assert arrays["score/rewards"].max() > 1e38
    assert arrays["sample/responses"].shape[0] == 8
  else:
    assert (arrays["batch/tokens"][0] == TOKEN).all()

  # The same command fails the same way; what else would be refused is not.
  poison(3, first=3)
  assert stopped(config(stage), workdir) == message
  rate = config(stage).optimizer.learning_rate / 2
  poison(first=3)
  lower = config(stage, optimizer__learning_rate=rate)
  tasks.run(lower, workdir)
  written = json.loads((workdir / "config.json").read_text())
  assert written["optimizer"]["learning_rate"] == rate
  assert tiny.kept(workdir) == [2, 4]
  with pytest.raises(ValueError, match="another config"):
    tasks.run(config(stage), workdir)


@pytest.mark.parametrize("stage", STAGES)
def test_skip_changes_nothing_but_the_count(tmp_path, poison, stage):
  """Checkpoints of steps 2 and 3 hold the same, the schedule's count too."""
  poison(3)
  settings = config(stage, nonfinite="skip", steps=3, eval_every=1)
  tasks.run(settings, tmp_path)
  found = tiny.checkpoints(tmp_path)
  before = {k[2:]: v for k, v in found.items() if k.startswith("2/")}
  after = {k[2:]: v for k, v in found.items() if k.startswith("3/")}
  assert before.keys() == after.keys()
  changed = [
    name
    for name, array in before.items()
    if array.tobytes() != after[name].tobytes()
  ]
  assert changed == ["optimizer/step"]
  rows = [r for r in tiny.lines(tmp_path) if "train/skipped" in r]
  assert [r["train/skipped"] for r in rows] == [0, 0, 1]
  assert rows[2]["train/loss"] in ("nan", "inf")
  rates = [r["train/learning_rate"] for r in rows]
  assert len(set(rates)) == 3


def test_skip_ends_where_nothing_else_comes(tmp_path, poison):
  poison(*range(2, 9))
  settings = config("sft", nonfinite="skip", nonfinite_limit=3, steps=8)
  message = stopped(settings, tmp_path / "run")
  assert message.startswith("Step 4: ")
  assert "3 updates in a row were skipped" in message

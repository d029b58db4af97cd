"""Members of a run: each is what a run of its own would have made."""

import json

import numpy as np
import pytest

from perl_jax import checkpoint, tasks
from perl_jax.data import loader
from perl_jax.hosts import signals
from perl_jax.tasks.initial import restore
from perl_jax.tasks.training import inputs
from tests.tasks import test_export, test_nonfinite, test_resume, tiny

pytestmark = pytest.mark.slow
poison = test_nonfinite.poison

# What is summed in another order, over 4 steps: in float32.
RELATIVE, ABSOLUTE = 1e-3, 2e-5
# Of eight pairs: one that is all but a tie counts whole.
COUNTS = {
  "accuracy", "accuracy_low", "accuracy_high", "auroc", "calibration_error",
}  # fmt: skip
FAST = {"optimizer__learning_rate": 0.05}


def close(mine, theirs, step=4):
  """Compares the states of two runs, optimiser included, and their lines."""
  arrays = [
    {k: v for k, v in tiny.checkpoints(w).items() if k.startswith(f"{step}/")}
    for w in (mine, theirs)
  ]
  assert arrays[0].keys() == arrays[1].keys()
  assert any("lora_b" in name for name in arrays[0])
  for name, array in arrays[0].items():
    np.testing.assert_allclose(
      array, arrays[1][name], rtol=RELATIVE, atol=ABSOLUTE, err_msg=name
    )
  lines = [
    [x for x in tiny.lines(w) if x["step"] <= step] for w in (mine, theirs)
  ]
  for here, there in zip(*lines, strict=True):
    assert here.keys() == there.keys()
    for name, value in here.items():
      if name.rpartition("/")[2] in COUNTS:
        continue
      assert value == pytest.approx(there[name], rel=2e-3, abs=1e-3), name


def apart(workdir, number, other):
  """Members differ by more than what `close` allows."""
  first, second = (
    tiny.checkpoints(workdir / "members" / str(k)) for k in (number, other)
  )
  name = next(k for k in first if "4/trainable" in k and "lora_b" in k)
  assert np.abs(first[name] - second[name]).max() > 100 * ABSOLUTE


def place(workdir, number):
  return workdir / "members" / str(number)


@pytest.fixture(scope="module")
def by_seed(tmp_path_factory, finished):
  """Two reward models on packed rows of other widths; left as they are."""
  workdir = tmp_path_factory.mktemp("members") / "run"
  tiny.run(
    workdir, "reward", reward__init=str(finished / "sft"), members=2, seed=4,
    microbatches=2, **FAST,
  )  # fmt: skip
  return workdir


def test_reward_models_by_seed(tmp_path, finished, by_seed):
  for k in range(2):
    tiny.run(
      tmp_path / str(k), "reward", reward__init=str(finished / "sft"),
      seed=4 + k, microbatches=2, **FAST,
    )  # fmt: skip
    close(place(by_seed, k), tmp_path / str(k))
  apart(by_seed, 0, 1)


def test_adapters_by_learning_rate_and_alpha(
  tmp_path, finished, placed_bases, monkeypatch
):
  """Of SFT: rows of one seed are read once, and one base is on the devices."""
  read, targets = [], inputs.targets

  def spy(config, tokenization):
    read.append(config.seed)
    return targets(config, tokenization)

  monkeypatch.setattr(inputs, "targets", spy)
  fields = {"policy__init": str(finished / "sft"), "tuning": "lora"}
  rates, alphas = (0.01, 0.05), (16.0, 48.0)
  vary = "optimizer.learning_rate=0.01,0.05 lora.alpha=16,48"
  tiny.run(tmp_path / "all", "sft", vary=vary, **fields)
  assert read == [0] and len(placed_bases) == 1
  for k in range(2):
    tiny.run(
      tmp_path / str(k), "sft", optimizer__learning_rate=rates[k],
      lora__alpha=alphas[k], **fields,
    )  # fmt: skip
    close(place(tmp_path / "all", k), tmp_path / str(k))
  apart(tmp_path / "all", 0, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("size", [24, 48])
def test_policies_by_beta_and_seed(tmp_path, finished, size):
  """Of DPO, with a warm-up; of less than an epoch, and of more."""
  fields = {
    "policy__init": str(finished / "sft"), "optimizer__warmup_steps": 2,
    "data__options__size": size,
  }  # fmt: skip
  tiny.run(tmp_path / "all", "dpo", vary="beta=0.2,2 seed=1,3", **fields)
  for k, (beta, seed) in enumerate(((0.2, 1), (2.0, 3))):
    tiny.run(tmp_path / str(k), "dpo", beta=beta, seed=seed, **fields)
    close(place(tmp_path / "all", k), tmp_path / str(k))


def test_updates_of_rl_on_the_same_rollouts(tmp_path, finished):
  """Of the first iteration, whose rollouts no update has touched."""
  fields = {
    "policy__init": str(finished / "sft"), "steps": 2, "eval_every": 1,
    "reward__init": str(finished / "reward"), "estimator": "ppo",
    "ppo__minibatches": 2, "microbatches": 2,
  }  # fmt: skip
  rates, value_rates = (0.01, 0.03), (0.02, 0.005)
  vary = (
    "seed=0,5 beta=0.05,0.3 optimizer.learning_rate=0.01,0.03"
    " value.learning_rate=0.02,0.005"
  )
  tiny.run(tmp_path / "all", "rl", vary=vary, **fields)
  for k in range(2):
    tiny.run(
      tmp_path / str(k), "rl", seed=(0, 5)[k], beta=(0.05, 0.3)[k],
      optimizer__learning_rate=rates[k], value__learning_rate=value_rates[k],
      **fields,
    )  # fmt: skip
    close(place(tmp_path / "all", k), tmp_path / str(k), step=1)


def tell_at_batch(monkeypatch, count):
  """A signal comes while the loops ask for their `count`-th batch."""
  left, told = iter(range(count - 1)), []
  real = loader.TrainBatches.__next__

  def draw(self):
    if next(left, None) is None:
      told.append("SIGTERM")
    return real(self)

  monkeypatch.setattr(loader.TrainBatches, "__next__", draw)
  monkeypatch.setattr(signals, "told", lambda: "".join(told[:1]))


def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch, finished):
  """Killed between two steps, and where one member has saved and one not."""
  fields = {
    "reward__init": str(finished / "sft"), "lora__dropout": 0.1,
    "vary": "seed=0,1", **test_resume.STEPS, **FAST,
  }  # fmt: skip
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  tiny.run(whole, "reward", **fields)
  real, others = checkpoint.Checkpointer.save, []

  def save(self, step, *args):
    if step == 4 and self.path(step).parents[1] == place(broken, 1):
      others[-1].wait()
      raise test_resume.Killed
    others.append(self)
    real(self, step, *args)

  def ended(kill, *args, by=test_resume.Killed):
    with monkeypatch.context() as patches:
      kill(patches, *args)
      with pytest.raises(by):
        tiny.run(broken, "reward", **fields)
    assert not (broken / "summary.json").exists()
    return [max(tiny.kept(place(broken, k)), default=0) for k in range(2)]

  assert ended(test_resume.kill_before_batch, 4) == [0, 0]
  # Told when the first has its batch of step 2: both save what they have.
  assert ended(tell_at_batch, 3, by=signals.Stopped) == [1, 1]
  found = ended(
    lambda patches: patches.setattr(checkpoint.Checkpointer, "save", save)
  )
  assert found == [4, 2]
  # Two steps of the one that is behind, and then one of both.
  assert ended(test_resume.kill_before_batch, 4) == [4, 4]
  tiny.run(broken, "reward", **fields)
  for k in range(2):
    test_resume.same(place(whole, k), place(broken, k))
  assert (
    tiny.untimed(tiny.summary(whole)).keys()
    == tiny.untimed(tiny.summary(broken)).keys()
  )


def test_one_that_is_not_finite_goes_on_at_a_lower_rate(
  tmp_path, finished, poison
):
  workdir = tmp_path / "run"

  def run(*rates):
    first, second = rates
    return tiny.run(
      workdir, "reward", reward__init=str(finished / "sft"),
      vary=f"optimizer.learning_rate={first},{second}",
    )  # fmt: skip

  poison(6)  # that of the second one's third step
  with pytest.raises(FloatingPointError, match="Member 1: Step 3: the loss"):
    run(0.01, 0.02)
  assert [max(tiny.kept(place(workdir, k))) for k in range(2)] == [3, 2]
  poison()
  with pytest.raises(ValueError, match=r"members/0 belongs [^;]*0.01 -> 0.005"):
    run(0.005, 0.02)
  assert run(0.01, 0.005)["members"] == 2
  for k, rate in enumerate((0.01, 0.005)):
    assert [x["step"] for x in tiny.lines(place(workdir, k))] == [
      1, 2, 2, 3, 4, 4,
    ]  # fmt: skip
    config = json.loads((place(workdir, k) / "config.json").read_text())
    assert config["optimizer"]["learning_rate"] == rate


@pytest.mark.nightly
def test_a_finished_run_goes_on_to_more_steps(tmp_path, finished):
  fields = {
    "reward__init": str(finished / "sft"), "vary": "seed=0,1",
    "optimizer__schedule": "constant", **FAST,
  }  # fmt: skip
  whole, longer = tmp_path / "whole", tmp_path / "longer"
  tiny.run(whole, "reward", **fields | {"steps": 6})
  tiny.run(longer, "reward", **fields)
  tiny.run(longer, "reward", **fields | {"steps": 6})
  for k in range(2):
    test_resume.same(place(whole, k), place(longer, k))


def test_a_member_is_an_ordinary_workdir(tmp_path, by_seed, finished):
  member = place(by_seed, 1)
  fields = {"reward__init": str(finished / "sft"), "microbatches": 2} | FAST
  own = tiny.config("reward", seed=5, **fields)
  found = json.loads((member / "config.json").read_text())
  assert found == json.loads(own.to_json())
  summary = tiny.summary(member)
  assert tasks.run(own, member) == summary  # it has finished
  whole = tiny.summary(by_seed)
  assert whole["members"] == 2
  assert whole["members.1.accuracy"] == summary["accuracy"]
  assert tiny.run(by_seed, "reward", members=2, seed=4, **fields) == whole

  again = tiny.run(
    tmp_path / "evaluated", "evaluate", reward__init=str(member), seed=5
  )
  assert again["reward_model.log_loss"] == pytest.approx(
    summary["log_loss"], rel=1e-5
  )
  test_export.export(tmp_path / "hf", member, role="reward")
  assert (tmp_path / "hf" / "adapter_config.json").is_file()
  read = restore.load(str(member), "last", "reward", "x")
  assert read.role.members == 1
  judged = tiny.run(
    tmp_path / "judged", "judge", policy__init=str(finished / "rl"),
    judges=f"reward:{member}",
  )  # fmt: skip
  assert judged
  report = tasks.TASKS["report"].module()
  text = report.write_report(member).read_text()
  assert "Reward model" in text and "<title>run/1" in text


def test_the_run_itself_is_no_model(tmp_path, by_seed):
  with pytest.raises(FileNotFoundError, match="members/0"):
    tiny.run(tmp_path / "run", "evaluate", reward__init=str(by_seed))


def test_another_config_is_refused(by_seed, finished):
  fields = {"reward__init": str(finished / "sft"), "microbatches": 2} | FAST
  with pytest.raises(ValueError, match=r"config.members: 2 -> 3"):
    tiny.run(by_seed, "reward", members=3, seed=4, **fields)


def test_a_report_compares_the_members(by_seed):
  report = tasks.TASKS["report"].module()
  text = report.write_report(by_seed).read_text()
  assert "seed" in text and "members/1" in text


@pytest.mark.nightly
def test_members_are_spread_over_a_mesh(tmp_path, finished, by_seed):
  """Four devices make the same members, but for rounding."""
  tiny.run(
    tmp_path / "run", "reward", reward__init=str(finished / "sft"), members=2,
    seed=4, microbatches=2, mesh__data=2, mesh__fsdp=2, **FAST,
  )  # fmt: skip
  for k in range(2):
    close(place(tmp_path / "run", k), place(by_seed, k))

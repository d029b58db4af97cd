"""Each field of TRL's, PEFT's and Tunix' configs is on the page about them.

The classes are read in the sources of these packages, where they are installed
in the version that the page names; nothing of them is imported.
"""

import ast
import fnmatch
import importlib.metadata
import importlib.util
import pathlib
import re

import pytest

from tests import documents

ALL = "All trainers: `TrainingArguments`, `ModelConfig`"
ARGUMENTS = "Arguments of the trainers, data of the scripts"
TRL, TUNIX = "docs/from-trl.md", "docs/from-tunix.md"
# Names of packages in the index, where they are others than of the modules.
PACKAGES = {"tunix": "google-tunix"}
TRAINING = "`ClusterConfig`, `RLTrainingConfig`, `TrainingConfig`"
RL = "`GRPOConfig`, `PPOConfig`"
# The page, the file and the class, and under which headings its fields stand.
CLASSES = [
  (TRL, "transformers/training_args.py", "TrainingArguments", (ALL,)),
  (TRL, "trl/trainer/base_config.py", "_BaseConfig", (ALL,)),
  (TRL, "trl/trainer/model_config.py", "ModelConfig", (ALL, "`LoraConfig`")),
  (TRL, "peft/tuners/lora/config.py", "LoraConfig", ("`LoraConfig`",)),
  (TRL, "trl/trainer/sft_config.py", "SFTConfig", (ALL, "`SFTConfig`")),
  (TRL, "trl/trainer/reward_config.py", "RewardConfig",
   (ALL, "`RewardConfig`")),
  (TRL, "trl/trainer/dpo_config.py", "DPOConfig", (ALL, "`DPOConfig`")),
  (TRL, "trl/trainer/grpo_config.py", "GRPOConfig",
   (ALL, "`RLOOConfig`, `GRPOConfig`")),
  (TRL, "trl/trainer/rloo_config.py", "RLOOConfig",
   (ALL, "`RLOOConfig`, `GRPOConfig`")),
  (TRL, "trl/experimental/ppo/ppo_config.py", "PPOConfig",
   (ALL, "`PPOConfig`")),
  (TRL, "trl/scripts/utils.py", "ScriptArguments", (ARGUMENTS,)),
  (TRL, "trl/scripts/utils.py", "DatasetMixtureConfig", (ARGUMENTS,)),
  (TRL, "trl/scripts/utils.py", "DatasetConfig", (ARGUMENTS,)),
  (TUNIX, "tunix/sft/peft_trainer.py", "TrainingConfig", (TRAINING,)),
  (TUNIX, "tunix/sft/metrics_logger.py", "MetricsLoggerOptions", (TRAINING,)),
  (TUNIX, "tunix/sft/profiler.py", "ProfilerOptions", (TRAINING,)),
  (TUNIX, "tunix/rl/rl_cluster.py", "RLTrainingConfig", (TRAINING,)),
  (TUNIX, "tunix/rl/rl_cluster.py", "ClusterConfig", (TRAINING,)),
  (TUNIX, "tunix/rl/rollout/base_rollout.py", "RolloutConfig",
   ("`RolloutConfig`",)),
  (TUNIX, "tunix/rl/algorithm_config.py", "AlgorithmConfig", (RL,)),
  (TUNIX, "tunix/rl/grpo/grpo_learner.py", "GRPOConfig", (RL,)),
  (TUNIX, "tunix/rl/grpo/dapo_learner.py", "DAPOConfig", (RL,)),
  (TUNIX, "tunix/rl/grpo/drgrpo_learner.py", "DrGRPOConfig", (RL,)),
  (TUNIX, "tunix/rl/ppo/ppo_learner.py", "PPOConfig", (RL,)),
  (TUNIX, "tunix/sft/dpo/dpo_trainer.py", "DPOTrainingConfig",
   ("`DPOTrainingConfig`, LoRA",)),
]  # fmt: skip


def fields(source, name):
  """Fields of a dataclass in a source, without those of its parents."""
  (found,) = [
    node
    for node in ast.parse(source).body
    if isinstance(node, ast.ClassDef) and node.name == name
  ]
  return [
    node.target.id
    for node in found.body
    if isinstance(node, ast.AnnAssign)
    and "ClassVar" not in ast.unparse(node.annotation)
  ]


def sections(page):
  """The text under each heading of a page."""
  parts = re.split(r"^#+ +(.+)$", documents.prose(page), flags=re.MULTILINE)
  return dict(zip(parts[1::2], parts[2::2], strict=True))


def versions(page, package):
  """The versions of a package that a page was checked against."""
  return re.findall(rf"{package}\s+([0-9.]+[0-9])", page, re.IGNORECASE)


def unnamed(wanted, text):
  """The fields that no span of a text names, by itself or with a "*"."""
  names = {span.partition("=")[0] for span in documents.spans(text)}
  names = {name for name in names if re.fullmatch(r"\w+\*?", name)}
  return [
    field
    for field in wanted
    if not any(fnmatch.fnmatchcase(field, name) for name in names)
  ]


@pytest.mark.parametrize(
  "page, file, name, headings", CLASSES, ids=lambda value: str(value)
)
def test_every_field_is_on_the_page(page, file, name, headings):
  package, _, below = file.partition("/")
  spec = importlib.util.find_spec(package)
  if spec is None:
    pytest.skip(f"{package} is not installed")
  read = documents.text(documents.ROOT / page)
  version = importlib.metadata.version(PACKAGES.get(package, package))
  if version not in versions(read, package):
    pytest.skip(f"{package} {version} is not what the page is about")
  path = pathlib.Path(spec.submodule_search_locations[0]) / below
  if not path.exists():
    pytest.skip(f"{package} {version} has no {below}")
  found = sections(read)
  text = "\n".join(found[heading] for heading in headings)
  assert unnamed(fields(path.read_text(), name), text) == []


def test_headings_are_there():
  for page, _, _, headings in CLASSES:
    assert {*headings} <= {*sections(documents.text(documents.ROOT / page))}


def test_fields_that_are_not_named_are_found():
  source = "class C:\n  a: int = 1\n  b_x: int = 2\n  c: ClassVar[int] = 3\n"
  assert fields(source, "C") == ["a", "b_x"]
  assert unnamed(["a", "b_x"], "`a=1` and `b_*`") == []
  assert unnamed(["a", "b_x", "d"], "`a b` and `--config.d`") == [
    "a",
    "b_x",
    "d",
  ]

"""Each field and metric of TRL, PEFT and Tunix is on the page about them.

Both are read in the sources of these packages, where they are installed in the
version that the page names; nothing of them is imported.
"""

import ast
import fnmatch
import importlib.metadata
import importlib.util
import pathlib
import re

import pytest

from perl_jax.reporting import vocabulary
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
EVERY, RLOO = "Metrics of all trainers", "Metrics of RLOO and GRPO"
REWARD = "Metrics of the reward model"
TUNIX_EVERY, TUNIX_RL = "Metrics of every trainer", "Metrics of GRPO and PPO"
# The page, a file that logs metrics, and under which headings they stand.
LOGS = [
  (TRL, "transformers/trainer.py", (EVERY, REWARD, RLOO)),
  (TRL, "transformers/trainer_utils.py", (EVERY,)),
  (TRL, "trl/trainer/sft_trainer.py", (EVERY, "Metrics of SFT")),
  (TRL, "trl/trainer/reward_trainer.py", (EVERY, REWARD)),
  (TRL, "trl/trainer/dpo_trainer.py", (EVERY, "Metrics of DPO")),
  (TRL, "trl/trainer/rloo_trainer.py", (EVERY, RLOO)),
  (TRL, "trl/trainer/grpo_trainer.py", (EVERY, RLOO)),
  (TRL, "trl/extras/profiling.py", (RLOO,)),
  (TRL, "trl/experimental/ppo/ppo_trainer.py", ("Metrics of PPO",)),
  (TUNIX, "tunix/sft/peft_trainer.py", (TUNIX_EVERY,)),
  (TUNIX, "tunix/sft/dpo/dpo_trainer.py", ("Metrics of DPO",)),
  (TUNIX, "tunix/rl/reward_manager.py", (TUNIX_RL,)),
  (TUNIX, "tunix/rl/rl_learner.py", (TUNIX_RL,)),
  (TUNIX, "tunix/rl/grpo/grpo_learner.py", (TUNIX_RL,)),
  (TUNIX, "tunix/rl/ppo/ppo_learner.py", (TUNIX_RL,)),
  (TUNIX, "tunix/perf/export.py", (TUNIX_RL,)),
]  # fmt: skip
# What holds metrics by name in these files, and what is given them.
HOLDERS = re.compile(
  r"self\._metrics\[.+\]|metrics|logs|\w+_to_log"
  r"|self\._aux_metrics_to_log"
)
TAKERS = re.compile(r"buffer_metrics(_async)?|with_rl_metrics_to_log")


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


def logged(source):
  """Names of the metrics that a source logs; "*" is what a run puts in."""
  found = []
  for node in ast.walk(ast.parse(source)):
    found += _logged(node)
  names = {_pattern(node) for node in found} - {None}
  return {name for name in names if re.search(r"[^*_]", name)}


def _logged(node):
  """What a node names metrics by."""
  match node:
    case ast.Subscript(holder, name) if HOLDERS.fullmatch(ast.unparse(holder)):
      return [name]
    case ast.Assign([ast.Name("metric_name")], name):
      return [name]
    case ast.Assign([holder], ast.Dict(names)) | ast.AnnAssign(
      holder, value=ast.Dict(names)
    ) if HOLDERS.fullmatch(ast.unparse(holder)):
      return names
    case ast.keyword("additional_metrics", ast.Dict(names)):
      return names
    case ast.Call(ast.Attribute(attr=taker), [ast.Dict(names), *_]) if (
      TAKERS.fullmatch(taker)
    ):
      return names
    case ast.Call(ast.Attribute(attr="log"), [_, name, _, *_]):
      return [name]
    case ast.FunctionDef(name=name) if "metrics" in name:
      return [name for inner in ast.walk(node) for name in _returned(inner)]
  return []


def _returned(node):
  """What a node in a function that returns metrics names them by."""
  match node:
    case ast.Return(ast.Dict(names)):
      return names
    case ast.Assign([ast.Name("result")], ast.Dict(names)):
      return names
    case ast.Assign([ast.Subscript(ast.Name("result"), name)], _):
      return [name]
  return []


def _pattern(node):
  """The text of a string in a source; None of anything else."""
  match node:
    case ast.Constant(str(text)):
      return text
    case ast.JoinedStr(parts):
      return "".join(_pattern(part) or "*" for part in parts)
  return None


def same(name, pattern):
  """Whether a name of a page is one that a source logs; either may have "*"."""
  name = re.sub(r"\b[A-Z]+\b", "*", name)
  return any(
    fnmatch.fnmatchcase(one, other)
    for plain in {name, name.removeprefix("eval_")}
    for one, other in ((plain, pattern), (pattern, plain))
  )


def unnamed_metrics(wanted, text):
  """The metrics that no span of a text names."""
  names = [name for name in documents.spans(text) if re.search(r"\w", name)]
  return sorted(
    metric for metric in wanted if not any(same(name, metric) for name in names)
  )


def unlogged(names, known):
  """The names of a page that no source logs."""
  return [n for n in names if not any(same(n, metric) for metric in known)]


def not_ours(text):
  """Names in the column of ours that are no metrics."""
  ours = re.compile(r"(train|rollout|validation|seconds|rate)/\w+")
  return [
    name
    for _, name in documents.metrics(text, "here")
    if not ours.fullmatch(name)
    or vocabulary.row_of(name).name not in vocabulary.METRICS
  ]


def source(page, file):
  """The source of a file of an installed package; skips if it is another's."""
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
  return path.read_text()


def under(page, headings):
  """The text under some headings of a page."""
  found = sections(documents.text(documents.ROOT / page))
  return "\n".join(found[heading] for heading in headings)


@pytest.mark.parametrize(
  "page, file, name, headings", CLASSES, ids=lambda value: str(value)
)
def test_every_field_is_on_the_page(page, file, name, headings):
  wanted = fields(source(page, file), name)
  assert unnamed(wanted, under(page, headings)) == []


@pytest.mark.parametrize("page, file, headings", LOGS, ids=str)
def test_every_metric_is_on_the_page(page, file, headings):
  wanted = logged(source(page, file))
  assert wanted
  assert unnamed_metrics(wanted, under(page, headings)) == []


@pytest.mark.parametrize(
  "page, heading", sorted({(page, one) for page, _, of in LOGS for one in of})
)
def test_every_metric_of_theirs_is_logged(page, heading):
  files = [file for on, file, of in LOGS if on == page and heading in of]
  known = set().union(*(logged(source(page, file)) for file in files))
  text = documents.text(documents.ROOT / page)
  named = documents.metrics(text, "theirs")
  names = [name for under, name in named if under == heading]
  assert names
  assert unlogged(names, known) == []


@pytest.mark.parametrize("page", [TRL, TUNIX])
def test_every_metric_of_ours_is_one(page):
  text = documents.text(documents.ROOT / page)
  assert len([*documents.metrics(text, "here")]) > 30
  assert not_ours(text) == []


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


def test_metrics_that_are_not_named_are_found():
  source = (
    "self._metrics[mode]['a'].append(1)\n"
    "self._metrics[mode][f'rewards/{name}/mean'].append(1)\n"
    "cluster.buffer_metrics({'b/x': (1, mean)}, mode=mode)\n"
    "logger.log(prefix, 'c', 1, mode)\n"
    "metrics[f'{prefix}_{key}'] = config['d']\n"
  )
  known = logged(source)
  assert known == {"a", "rewards/*/mean", "b/x", "c"}
  assert unnamed_metrics(known, "`a`, `rewards/FUNC/mean` and `b/*`") == ["c"]
  assert unlogged(["a", "eval_a", "rewards/FUNC/std", "d"], known) == [
    "rewards/FUNC/std",
    "d",
  ]


def test_slips_in_our_metrics_are_found():
  page = "### Metrics of PPO\n\n| TRL | here |\n| --- | --- |\n| `a` | {} |\n"
  for here, said in (
    ("`train/loss`, `rollout/reward_fn_LABEL`", []),
    ("`train/los`", ["train/los"]),
    ("`rolout/kl`, `beta`", ["rolout/kl", "beta"]),
  ):
    assert not_ours(page.format(here)) == said

"""A command of the pages as it is run at small size, or why it is not.

A command is run as it is printed, in a directory that has what it names
(places.py), with flags behind it that make it small. It is left out only for a
reason that stands here.
"""

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from perl_jax import tasks
from perl_jax.tasks.settings import config_files
from tests import documents
from tests.commands import PLACEHOLDERS
from tests.nightly import places
from tests.tasks import tiny

# Flags that are small whatever the page says; others where it says nothing.
SIZES = {
  "steps", "batch_size", "eval_every", "eval.rows", "data.max_len",
  "data.buckets", "model",
}  # fmt: skip
# A plan takes the compiler a quarter of an hour for billions of parameters.
PLANNED = {"model": "tiny", "vocab_size": 400} | {
  f"{task}.{field.replace('__', '.')}": value
  for task in tasks.TRAINING
  for field, value in places.LENGTHS.items()
}
NOTHING = "benchmarks.from_nothing runs it"
# Programs that stand for what is run elsewhere.
SUITES = {
  "make quickstart": NOTHING,
  "make smollm2": "an hour; tests/tasks/test_smollm2.py has a small one",
  "make smollm2 DATA=DIR": "as make smollm2",
  "make test": "CI runs it",
  "make test-slow": "CI runs it",
  "make nightly": "this is it",
  "make lint": NOTHING,
  "make docs": NOTHING,
  "python -m pytest tests/test_scoring.py": "CI runs it",
}
HOSTS = "several hosts; tests/hosts has several processes"
# By a part of the command: what it needs that is not to be had here.
ELSEWHERE = {
  "endpoint.url=https": "a key of that server; tests/tasks/judging has another",
  "--config.push=": "an account; tests/tasks/test_export_push.py has a stub",
  "hf://": "the hub; tests/data/sources/jsonl has a stub",
  "--distributed": HOSTS,
  "--coordinator_address": HOSTS,
  "benchmarks.pair_baseline:judge": (
    "a variable in front; tests/benchmarks/test_pair_baseline.py"
  ),
  "configs/smollm2.py": "an hour; tests/tasks/test_smollm2.py",
}
PEERS = "TRL and Tunix beside it; tests/benchmarks/test_rl_speed.py"
PLANS = "large models, compiled; tests/benchmarks/test_plans.py"
# Flags that make a benchmark small, or why it is left out.
BENCHMARKS: Mapping[str, Sequence[str] | str] = {
  "read_rows": ("--rows=200", "--rounds=1"),
  "load_checkpoint": ("--layers=1",),
  "plan_vs_truth": ("--model=tiny", "--batch=2", "--length=32", "--vocab=300"),
  "reward_baseline": (),
  "pair_baseline": (),
  "curves": ("--out=curves.svg",),
  "refusals": "a trained model; tests/benchmarks/test_refusals.py",
  "likelihood_margin": (f"--base={places.BASE}", "--max_len=160"),
  "padding": (f"--base={places.BASE}", "--batch_sizes=4"),
  "reward_rows": "minutes; tests/benchmarks/test_reward_rows.py",
  "rl_rows": "TRL beside it; tests/benchmarks/test_rl_rows.py",
  "from_nothing": "ten minutes; tests/nightly/test_from_nothing.py",
  "paper": "hours; --show is run",
  "compare_reward": "five folds; tests/benchmarks/test_compare_reward.py",
  "slot_refill": "minutes; tests/benchmarks/test_slot_refill.py",
  "rl_memory": PLANS,
  "efficiency": PLANS,
  "long_sequences": PLANS,
  "rl_speed": PEERS,
  "shorter": ("--iterations=2", "--prompts=4", "--prompt=16", "--response=16"),
  "decoding": "minutes; tests/benchmarks/test_decoding.py",
  "lora_vs_full": "minutes; tests/benchmarks/test_lora_vs_full.py",
  "checkpoint_cost": "minutes; tests/benchmarks/test_checkpoint_cost.py",
  "soak": "an hour; tests/benchmarks/test_soak.py",
  "first_step": "the released model; tests/benchmarks/test_first_step.py",
  "quantized_base": "minutes; tests/benchmarks/test_quantized_base.py",
  "estimators": "an hour; tests/benchmarks/test_estimators.py",
  "overoptimisation": "an hour; tests/benchmarks/test_estimators.py",
  "reward_ensemble": "minutes; tests/benchmarks/test_reward_ensemble.py",
  "members": "minutes; tests/benchmarks/test_members.py",
}
TRACKERS = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


def commands() -> list[documents.Command]:
  """Each command of the pages once; names of commands alone are left out."""
  found: dict[tuple[str, ...], documents.Command] = {}
  for path in documents.PAGES:
    page = path.relative_to(documents.ROOT).as_posix()
    for command in documents.commands(page, documents.text(path)):
      words, (first, *rest) = command.words, command.words
      is_name = first == "python" and rest[0] == "-m" and len(rest) == 2
      if not is_name and not (first.startswith("launch/") and not rest):
        found.setdefault(words, command)
  return list(found.values())


def why_not(words: Sequence[str]) -> str:
  """Why a command is not run; "" if it is."""
  line = " ".join(words)
  if line in SUITES:
    return SUITES[line]
  if PLACEHOLDERS & set(words) and "--config=mine.py" not in words:
    return "ARGUMENTS stands for those of another command"
  for part, why in ELSEWHERE.items():
    if part in line and not words[0].startswith(("launch/", "sbatch")):
      return why
  for tracker, module in TRACKERS.items():
    missing = importlib.util.find_spec(module) is None
    if missing and "--config.trackers" in line and tracker in line:
      return f"{module} is not installed; tests/tasks/test_tracked.py"
  if words[1:3] == ("-m", "benchmarks.paper") and "--show" in words:
    return ""
  if ":taskmaster_coffee" in line and "data.dir" not in line:
    return "a download; the same command is run with copies"
  if "benchmarks." in line:
    flags = BENCHMARKS[words[2].removeprefix("benchmarks.")]
    return flags if isinstance(flags, str) else ""
  if "--config.plan.topology" in line:
    missing = importlib.util.find_spec("libtpu") is None
    return "libtpu is not installed" if missing else ""
  return ""


def named(words: Iterable[str]) -> dict[str, str]:
  """Flags of a command by name, without the dashes."""
  flags = (word[2:].partition("=") for word in words if word[:2] == "--")
  return {name: value for name, _, value in flags}


def flags_of(words: Sequence[str]) -> list[str]:
  """Flags that make a command of perl_jax small."""
  given = named(words)
  name, _, data_set = (
    Path(given["config"]).name.replace(".py", "").partition(":")
  )
  if name == "mine":
    name = "sft"
  if name == "quickstart":
    small = {
      f"{task}.{field}": value
      for task in ("sft", "reward", "rl", "evaluate")
      for field, value in tiny.fields(task).items()
    }
  elif name in ("export", "report"):
    return []
  elif name == "plan":
    small = PLANNED
  else:
    data_set = data_set or (
      "jsonl" if "data.path" in str(given) else "coffee_bar"
    )
    small = dict(tiny.fields(name, data_set))
    if (
      data_set == "jsonl" and "config.base" in given
    ) or "runs/my" in " ".join(words):
      small |= {k.replace("__", "."): v for k, v in places.LENGTHS.items()}
    if name in ("generate", "score") and data_set == "jsonl":
      small |= {
        "data.max_len": 48,
        "data.prompt_len": 40,
        "data.response_len": 8,
      }
  known = _fields(config_files.load(given["config"].replace("mine.py", "sft")))
  return [
    f"--config.{field}={value}"
    for field, value in small.items()
    if field in known
    and (f"config.{field}" not in given or field.rpartition(".")[2] in SIZES
         or field in SIZES)
  ]  # fmt: skip


def _fields(config: Mapping, above: str = "") -> set[str]:
  found = set()
  for name, value in config.items():
    path = f"{above}{name}"
    found |= _fields(value, f"{path}.") if hasattr(value, "items") else {path}
  return found


def in_place(words: Sequence[str]) -> list[str]:
  """Words of a command with what is somewhere else on a machine put here."""
  found = [
    re.sub(r"/(?:mnt|shared)/runs", "runs", word)
    .replace(", ...)", ")")
    .replace("gs://my-bucket", places.IN_BUCKET)
    for word in words
  ]
  if f"--config.base={places.BASE}" in words:
    # The reader's own reward model, on that base.
    found = [
      re.sub(r"(reward.init=)runs/(my/)?reward", r"\1runs/qwen/reward", word)
      for word in found
    ]
  return found


def small(words: Sequence[str], python: str) -> list[str]:
  """The command that is run."""
  program, *rest = in_place(words)
  if program == "pip":
    return [python, "-m", "pip", *rest, "--dry-run", "--no-deps", "--quiet"]
  if program == "make":
    return ["make", "--dry-run", *rest]
  if program == "sbatch":
    script = next(n for n, w in enumerate(rest) if w.startswith("launch/"))
    return ["bash", rest[script], "--dry-run", *rest[script + 1 :]]
  if program.startswith("launch/"):
    return ["bash", program, "--dry-run", *rest]
  if program == "bash":
    return ["bash", "-n", *rest]
  if program == "perl_jax":
    program, rest = python, ["-m", "perl_jax.main", *rest]
  if rest[:2] == ["-m", "pip"]:
    return [python, *rest, *(["--dry-run"] if rest[2] == "install" else [])]
  if rest[0] == "launch/sweep.py" or rest[1] == "perl_jax.main":
    return [python, *rest, *(flags_of(rest) if "config" in named(rest) else [])]
  flags = BENCHMARKS[rest[1].removeprefix("benchmarks.")]
  return [python, *rest, *(() if "--show" in rest else flags)]


def rows_for(words: Sequence[str]) -> str:
  """The file that `my.jsonl` is for a command: what its stage learns from."""
  line = " ".join(words)
  pairs = re.search(r"--config=(configs/)?(reward|dpo)", line)
  return "pairs.jsonl" if pairs or "Qwen" in line else "demonstrations.jsonl"

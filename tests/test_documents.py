"""What the pages tell a reader to type is what the parsers take.

Commands are parsed by what would run them (tests/commands.py), not run.
"""

import ast
import importlib
import re
import textwrap

import pytest

from perl_jax.reporting import vocabulary
from tests import commands, documents
from tests.nightly import small

OURS = ("perl_jax", "configs")
PAGES = [str(page.relative_to(documents.ROOT)) for page in documents.PAGES]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_flags_of_a_page(page, monkeypatch):
  text = documents.text(documents.ROOT / page)
  assert "\n".join(commands.faults(page, text, monkeypatch)) == ""


MODULES = [
  path.relative_to(documents.ROOT).as_posix()
  for folder in ("configs", "benchmarks", "launch")
  for path in sorted((documents.ROOT / folder).glob("*.py"))
]


@pytest.mark.parametrize("module", MODULES)
def test_commands_of_a_docstring(module, monkeypatch):
  page = documents.docstring_page(documents.ROOT / module)
  assert "\n".join(commands.faults(module, page, monkeypatch)) == ""


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page(page):
  """It can be parsed, and what it imports of this project is there."""
  text = documents.text(documents.ROOT / page)
  for block in documents.python_blocks(text):
    for node in ast.walk(ast.parse(textwrap.dedent(block))):
      package = getattr(node, "module", None) or ""
      if isinstance(node, ast.ImportFrom) and package.split(".")[0] in OURS:
        for alias in node.names:
          if not hasattr(importlib.import_module(package), alias.name):
            importlib.import_module(f"{package}.{alias.name}")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names(page):
  named = set(documents.paths(documents.text(documents.ROOT / page)))
  assert {path for path in named if not (documents.ROOT / path).exists()} == (
    set()
  )


def test_every_command_is_run_by_night_or_has_a_reason():
  """tests/nightly/small.py makes each small, or says why it is left out."""
  nightly = small.commands()
  left_out = {c.words: small.why_not(c.words) for c in nightly}
  run = [small.small(words, "python") for words, why in left_out.items()
         if not why]  # fmt: skip
  assert len(run) > len(nightly) / 2 > 40
  trained = [words for words in run if "perl_jax.main" in words]
  assert any("--config.steps=4" in words for words in trained)
  for why in left_out.values():
    for named in re.findall(r"tests/[\w/.]+", why):
      assert (documents.ROOT / named).exists(), named


def test_no_plan_by_night_compiles_a_large_model():
  """Of two flags of one name the last counts."""
  words = [
    small.small(command.words, "python")
    for command in small.commands()
    if "--config=configs/plan.py" in command.words
  ]
  assert {small.named(of)["config.model"] for of in words} == {"tiny"}


@pytest.mark.parametrize(
  "text, said",
  [
    ("`python -m perl_jax.mian --config=configs/rl.py`", "no module"),
    ("`python -m perl_jax.main --config=configs/lr.py`", "No such file"),
    ("`python -m perl_jax.main --wrokdir=x`", "no flag --wrokdir"),
    ("```bash\npython -m perl_jax.main --config=configs/rl.py \\\n"
     "  --config.betta=1\n```\n", "'beta'"),
    ("```\npython -m perl_jax.main --config=configs/rl.py --config.beta=x\n"
     "```\n", "could not convert"),
    ("`python -m perl_jax.main --config=configs/rl.py:coffe`", "coffee_bar"),
    ("`python -m benchmarks.first_stop`", "no module"),
    ("`python -m benchmarks.soak --workdir=x --iterations=many`", "status 2"),
    ("`python -m benchmarks.process --workdir=x`", "takes no flags"),
    ("`perl_jax --config=quickstrat --workdir=x`", "quickstart"),
    ("`pip install '.[cuda14]'`", "no extra cuda14"),
    ("`make quickstrat`", "Makefile"),
    ("`make smollm2 DATE=x`", "Makefile"),
    ("`launch/gpu.sh --cud=12 -- ARGUMENTS`", "no option --cud"),
    ("`launch/gpu.sh -- --config=configs/rl.py --config.lora.rnk=1`", "rank"),
    ("`sbatch --ntasks=2 launch/slurm.batch`", "no launch/slurm.batch"),
    ("`python launch/sweep.py --workdir=x --config=configs/rl.py"
     " --config.betta=1,2`", "'beta'"),
    ("`--config.lora.rnk=4`", "no config"),
    ("`--config.lora.rank=four`", "four"),
    ("`--join_second`", "nothing has"),
  ],
)  # fmt: skip
def test_slips_are_found(text, said, monkeypatch, capsys):
  (found,) = commands.faults("page", text, monkeypatch)
  assert said in found


@pytest.mark.parametrize("page", PAGES)
def test_tables_of_fields(page):
  """The first column of a table headed "field" has fields of configs."""
  known = set().union(*commands.fields().values())
  for name in documents.fields(documents.text(documents.ROOT / page)):
    section = name.removesuffix("*")
    assert name in known or (
      section != name and any(field.startswith(section) for field in known)
    ), f"{page}: no config has {name}"


# The pages that are for users of another project, and what their tables are of:
# headings by the configs whose fields stand under them.
FROM = ("docs/from-trl.md", "docs/from-tunix.md")
TRAINING = ("sft", "reward", "rl", "dpo")
TABLES = {
  "From TRL": TRAINING,
  "From Tunix": TRAINING,
  "Arguments of the trainers, data of the scripts": TRAINING,
  "All trainers: `TrainingArguments`, `ModelConfig`": (*TRAINING, "export"),
  "`LoraConfig`": TRAINING,
  "`SFTConfig`": ("sft",),
  "`RewardConfig`": ("reward",),
  "`RLOOConfig`, `GRPOConfig`": ("rl",),
  "`PPOConfig`": ("rl",),
  "`DPOConfig`": ("dpo",),
  "`ClusterConfig`, `RLTrainingConfig`, `TrainingConfig`": TRAINING,
  "The YAML of `tunix.cli`": TRAINING,
  "`RolloutConfig`": ("rl",),
  "`GRPOConfig`, `PPOConfig`": ("rl",),
  "`DPOTrainingConfig`, LoRA": ("dpo",),
  "Metrics of all trainers": TRAINING,
  "Metrics of every trainer": TRAINING,
  "Metrics of SFT": ("sft",),
  "Metrics of the reward model": ("reward",),
  "Metrics of DPO": ("dpo",),
  "Metrics of RLOO and GRPO": ("rl",),
  "Metrics of GRPO and PPO": ("rl",),
  "Metrics of PPO": ("rl",),
}


def wrong_equivalents(text):
  """Fields of tables of equivalents that are not there, or begin otherwise."""
  wrong = []
  for row in documents.equivalents(text):
    configs = [commands.defaults(name) for name in TABLES[row.heading]]
    known = set().union(*configs)
    wrong += [
      f"{row.theirs}: there is no {name}"
      for name in documents.dotted(f"{row.here} {row.differs}")
      if name not in known
    ]
    for name, said in documents.defaults(f"{row.here} {row.differs}"):
      found = {str(config[name]) for config in configs if name in config}
      if found != {said}:
        wrong.append(f"{row.theirs}: {name} is {found}, not {said}")
  return wrong


@pytest.mark.parametrize("page", FROM)
def test_equivalents_are_there_and_have_the_defaults_that_are_said(page):
  text = documents.text(documents.ROOT / page)
  headings = {row.heading for row in documents.equivalents(text)}
  assert len(headings) > 3
  assert wrong_equivalents(text) == []
  unknown = set(documents.dotted(documents.prose(text))) - set().union(
    *commands.fields().values()
  )
  assert unknown <= {"trl.experimental", "tunix.cli"}


@pytest.mark.parametrize(
  "cells, said",
  [
    ("`beta` (0.1)", []),
    ("`beta` (0.05)", ["x: beta is {'0.1'}, not 0.05"]),
    ("`data.max_len` (512), `save.keep` (3)",
     ["x: save.keep is {'2'}, not 3"]),
    ("| as `data.max_length` says", ["x: there is no data.max_length"]),
    ("`ppo.epochs` | of RL alone", ["x: there is no ppo.epochs"]),
    ("`betta` (0.1)", ["x: betta is set(), not 0.1"]),
    ("| in `samples.jsonl`", []),
  ],
)  # fmt: skip
def test_slips_in_equivalents_are_found(cells, said):
  page = f"## `DPOConfig`\n\n| TRL | here | |\n| --- |\n| x | {cells} |\n"
  assert wrong_equivalents(page) == said


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
  text = documents.text(documents.ROOT / page)
  assert documents.broken_links(page, text) == []


def test_broken_links_are_found():
  text = "[a](stages.md#metrics) [b](stagse.md) [c](stages.md#metric) [d](#x)"
  assert [line.split(": ")[1] for line in documents.broken_links(
    "docs/README.md", text)] == [
      "stagse.md is not there",
      "stages.md#metric has no such heading",
      "#x has no such heading"]  # fmt: skip


def test_every_page_is_listed():
  """In the table of docs/README.md, and in the navigation of the site."""
  site = documents.text(documents.ROOT / "mkdocs.yml")
  table = set(documents.links(documents.text(documents.DOCS / "README.md")))
  for page in documents.PAGES:
    if not page.is_relative_to(documents.DOCS):
      continue
    name = page.relative_to(documents.DOCS).as_posix()
    in_site = name.replace(".ipynb", ".md")
    assert f"- {in_site}\n" in site, f"{name} is not in the nav of mkdocs.yml"
    if "/" not in name and name != "README.md":
      assert name in table, f"{name} is not in the table of docs/README.md"


def test_metrics_are_those_that_a_run_writes():
  """Names such as `validation/kl` are in the vocabulary of metrics."""
  name = re.compile(r"(train|rollout|validation|seconds|rate)/[a-z_0-9]+")
  found = {
    (page, span)
    for page in PAGES
    for span in documents.spans(documents.text(documents.ROOT / page))
    if name.fullmatch(span)
  }
  assert len(found) > 50
  unknown = {
    (page, key)
    for page, key in found
    if vocabulary.row_of(key).name not in vocabulary.METRICS
  }
  assert not unknown


# What the project exists for, its commands, and modules of a few lines.
PURPOSE = {
  *("objectives", "roles", "scoring", "segments", "steps"),
  *("__init__", "__main__", "main", "names"),
}


def rooms():
  """Names of the modules and folders of the package."""
  return {
    path.stem
    for path in (documents.ROOT / "perl_jax").iterdir()
    if path.suffix == ".py" or (path / "__init__.py").is_file()
  }


def test_every_room_is_on_the_page_of_what_libraries_do():
  page = (documents.ROOT / "docs/by-hand.md").read_text()
  named = set(re.findall(r"perl_jax/(\w+)", page))
  assert sorted(rooms() - named) == sorted(PURPOSE)


def test_every_room_is_on_the_map_of_the_code():
  page = documents.text(documents.ROOT / "README.md")
  (code,) = re.findall(r"## Map of the code\n+```\n(.*?)```", page, re.DOTALL)
  named = set(re.findall(r"\b(\w+)(?:/|\.py)", code))
  assert rooms() - named == {"__init__"}

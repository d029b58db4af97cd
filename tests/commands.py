"""What would be said of a command of the documentation, without running it.

Each function returns what is wrong, or None: config flags with their types, the
argument parsers of benchmarks and of the sweep, options of the scripts in
launch/, targets of the Makefile. Used by test_documents.py.
"""

import argparse
import functools
import re
import runpy
import sys
import tomllib

from absl import flags
from ml_collections import ConfigDict

from launch import sweep, sweep_grid
from perl_jax import main
from perl_jax.tasks.settings import overrides
from tests import documents

CONFIGS = sorted(
  path
  for path in (documents.ROOT / "configs").glob("*.py")
  if path.stem not in ("__init__", "common")
)
# What stands for arguments, for example in "launch/gpu.sh -- ARGUMENTS".
PLACEHOLDERS = {"ARGUMENTS", "...", "--config=mine.py"}
# Of sbatch itself, in front of the script.
SBATCH = {"--ntasks", "--nodes", "--ntasks-per-node", "--gres"}
# What docs/reliability.md shows to be refused.
MISSPELT = {"--config.lorra.rank=4", "--config.batch-size=4"}


def shell_options(script):
  """(with a value, without one) of a script of launch/, as it reads them."""
  text = (documents.ROOT / script).read_text()
  found = re.search(r"^options [^']*'([^']*)'\s[^']*'([^']*)'", text, re.M)
  return found[1].split(), [*found[2].split(), "dry-run", "help"]


def wrong_of_main(arguments):
  """What `python -m perl_jax.main` would say of its arguments, or None."""
  given = [word for word in arguments if word not in PLACEHOLDERS]
  if given in (["--version"], ["--help"]):
    return None
  known = flags.FLAGS.flags_by_module_dict()[main.__name__]
  for word in given:
    name = word.partition("=")[0].removeprefix("--").removeprefix("no")
    if not word.startswith("--"):
      return f"{word} is not a flag"
    if not name.startswith("config") and name not in {f.name for f in known}:
      return f"there is no flag {word}"
  if any(word.startswith("--config=") for word in given):
    return overrides.refusal(["main", *given])
  return None


def wrong_of_benchmark(module, arguments, monkeypatch):
  """What a module with an argument parser would say of its arguments."""
  path = documents.ROOT / f"{module.replace('.', '/')}.py"
  if not path.exists():
    return f"there is no module {module}"
  if not re.search(r"parse_args\(|command_line\(", path.read_text()):
    return f"{module} takes no flags" if arguments else None
  parsed, parse = RuntimeError("parsed"), argparse.ArgumentParser.parse_args

  def parse_only(parser, *args, **kwargs):
    # "module" in the text alone names the command, without what it requires.
    if arguments:
      parse(parser, *args, **kwargs)
    raise parsed

  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
  monkeypatch.setattr(sys, "argv", [module, *arguments])
  try:
    runpy.run_path(str(path), run_name="__main__")
  except SystemExit as error:
    return f"exit status {error.code}"
  except RuntimeError as error:
    return None if error is parsed else str(error)
  return "it did not read its arguments"


def wrong_of_launch(words):
  """What a script of launch/ would say of its options and arguments."""
  script, *rest = words
  if not (documents.ROOT / script).exists():
    return f"there is no {script}"
  if script.endswith(".sbatch"):
    return wrong_of_main(rest)
  values, alone = shell_options(script)
  options = rest[: rest.index("--")] if "--" in rest else rest
  for option in options:
    name, equals, _ = option.removeprefix("--").partition("=")
    if name not in (values if equals else alone):
      return f"{script} has no option {option}"
  return wrong_of_main(rest[len(options) + 1 :])


def wrong_of_make(words):
  """Targets and variables that the Makefile does not have."""
  text = (documents.ROOT / "Makefile").read_text()
  for word in words:
    name, equals, _ = word.partition("=")
    pattern = rf"^{name} \?=" if equals else rf"^{name}:"
    if not re.search(pattern, text, re.M):
      return f"the Makefile has no {word}"
  return None


def wrong_of_sweep(arguments):
  """What launch/sweep.py would refuse before the first run starts."""
  try:
    options, rest = sweep.parse(arguments)
    return "; ".join(sweep.refusals(sweep.grid(rest, options.workdir))) or None
  except SystemExit:
    return "its parser refuses it"


def wrong_of_module(words, monkeypatch):
  """The same for `python -m MODULE`, of whichever program that is."""
  module, *arguments = words
  if module == "perl_jax.main":
    return wrong_of_main(arguments)
  if module in ("pip", "pytest"):
    return wrong_of_pip(arguments)
  return wrong_of_benchmark(module, arguments, monkeypatch)


def wrong_of_pip(arguments):
  """Files and extras of this project that are not there."""
  known = tomllib.loads((documents.ROOT / "pyproject.toml").read_text())
  for word in arguments:
    if word.endswith((".txt", ".py")) and not (documents.ROOT / word).exists():
      return f"there is no {word}"
    found = re.fullmatch(r"(?:\.|perl_jax)\[(.*)\]", word)
    for extra in found[1].split(",") if found else ():
      if extra not in known["project"]["optional-dependencies"]:
        return f"there is no extra {extra}"
  return None


def wrong(words, monkeypatch):
  """What is wrong with a command, None if nothing is."""
  program, *rest = words
  if program == "make":
    return wrong_of_make(rest)
  if program == "pip":
    return wrong_of_pip(rest)
  if program == "perl_jax":
    return wrong_of_main(rest)
  if program == "sbatch":
    options = [word for word in rest if word.partition("=")[0] in SBATCH]
    return wrong_of_launch(rest[len(options) :])
  if program == "bash":
    return None if (documents.ROOT / rest[0]).exists() else "no such script"
  if program == "python" and rest[0] == "-m":
    return wrong_of_module(rest[1:], monkeypatch)
  if program == "python" and rest[0] == "launch/sweep.py":
    return wrong_of_sweep(rest[1:])
  if program.startswith("launch/"):
    return wrong_of_launch(words)
  return f"nobody checks {program} {rest[0]}"


def wrong_flag(flag, page):
  """What is wrong with a flag that a page names outside a command.

  Flags of benchmarks are known from the commands of the page, which their
  parsers take.
  """
  name, equals, value = flag.partition("=")
  if name == "--config" and equals:
    return overrides.refusal(["main", flag])
  if not name.startswith("--config."):
    known = known_flags() | {
      word.partition("=")[0]
      for command in documents.commands("", page)
      for word in command.words
    }
    return None if name in known else f"nothing has a flag {flag}"
  said = ["it is a field of no config"]
  for file, paths in fields().items():
    if name.removeprefix("--config.") not in paths:
      continue
    if not equals or value in PLACEHOLDERS:
      return None
    # Several values are an axis of a sweep.
    refusals = [
      overrides.refusal(["main", f"--config={file}", f"{name}={one}"])
      for one in sweep_grid.values_of(value)
    ]
    if not any(refusals):
      return None
    said += refusals
  return "; ".join(filter(None, said))


@functools.cache
def fields():
  """Names of the fields of each config file, sections left out."""
  found = {}
  for file in CONFIGS:
    config = runpy.run_path(str(file))["get_config"]()
    known = dict(overrides.fields(config)).items()
    found[file] = {k for k, v in known if not isinstance(v, ConfigDict)}
  return found


@functools.cache
def defaults(name):
  """Values of the fields of a config file, for one's own rows if it has any."""
  get_config = runpy.run_path(str(documents.ROOT / f"configs/{name}.py"))[
    "get_config"
  ]
  known = overrides.fields(get_config(None if name == "export" else "jsonl"))
  return {k: v for k, v in known if not isinstance(v, ConfigDict)}


@functools.cache
def known_flags():
  """Flags of everything of ours that a page can speak of."""
  known = {"--help", *(f"--{name}" for name in flags.FLAGS)}
  known |= {f"--no{name}" for name in flags.FLAGS if flags.FLAGS[name].boolean}
  for script in (documents.ROOT / "launch").glob("*.sh"):
    if script.stem != "lib":
      known |= {f"--{name}" for part in shell_options(script) for name in part}
  for folder in ("benchmarks", "launch"):
    for path in (documents.ROOT / folder).glob("*.py"):
      known |= set(re.findall(r"\"(--[\w-]+)\"", path.read_text()))
  return known


def faults(page, text, monkeypatch):
  """Everything on a page that a parser would refuse."""
  monkeypatch.chdir(documents.ROOT)
  found = []
  for command in documents.commands(page, text):
    with monkeypatch.context() as patch:
      said = wrong(command.words, patch)
    found += [f"{' '.join(command.words)}: {said}"] if said else []
  for flag in documents.flags(text):
    said = None if flag in MISSPELT else wrong_flag(flag, text)
    found += [f"{flag}: {said}"] if said else []
  return found

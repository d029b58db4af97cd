"""The task `report`: one HTML page about what a run has written.

A workdir is a single stage, or a pipeline with a directory for each stage, or a
run of several members, which are compared.
With `config.runs` the page compares several runs, and is all that is written.
Every file and every key is optional, so a run can be looked at while it is
still going or after it was killed; a section without data is left out.
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from perl_jax import files as files_lib
from perl_jax import hosts, json_text, tasks
from perl_jax.data.sources import registry
from perl_jax.reporting import comparison, page, settings
from perl_jax.tasks.initial import saved
from perl_jax.tasks.settings import paths, shared

_LINES = ("metrics.jsonl", "samples.jsonl", "scores.jsonl", "verdicts.jsonl")
_FILES = (*_LINES, "summary.json", "benchmark.json", "config.json")


def run(config: shared.Config, workdir: str | Path) -> dict[str, float]:
  """Writes the report of `workdir`, or that of `config.runs` into it."""
  if not hosts.is_primary():
    return {}
  if config.get("runs"):
    path = write_comparison(workdir, config.runs)
  else:
    path = write_report(workdir)
  logging.info("report: %s", path)
  return {}  # it measures nothing


def write_report(
  workdir: str | Path, summary: Mapping[str, object] | None = None
) -> Path:
  """Writes `report.html` into the workdir and returns its path.

  Args:
    workdir, summary: See `render`.
  """
  return _write(Path(workdir), render(workdir, summary))


def render(
  workdir: str | Path,
  summary: Mapping[str, object] | None = None,
  *,
  samples: bool = True,
  command: bool = True,
) -> str:
  """The report of a run as one HTML page.

  Args:
    workdir: Directory of a stage, or of a pipeline with `sft/`, `reward/`,
      `rl/`, `dpo/`, `evaluate/`, `judge_reward/`, `judge/`. Read of each:
      `metrics.jsonl`, `samples.jsonl`, `scores.jsonl`, `verdicts.jsonl`,
      `summary.json`, `benchmark.json`, `config.json`. The command is `command`
      in the root's summary, or in `command.txt` there.
    summary: The root's summary; None reads it.
    samples: Whether prompts and responses are shown.
    command: Whether the command is, which may have passwords in it.

  Members of a run are compared, and shown whole by their own workdirs.

  Raises:
    ValueError: None of the files has anything in it, or one is malformed.
    FileNotFoundError: There is no such directory.
  """
  workdir = Path(workdir)
  members = saved.members(workdir)
  if members:
    return _compared(paths.name_of(workdir.resolve()), list(map(str, members)))
  if summary is None and workdir.is_dir():
    summary = _read_object(workdir, "summary")
  stages, config, flat = _read(workdir, summary or {})
  if not samples:
    stages = [stage._replace(samples=(), verdicts=()) for stage in stages]
  return page.render(
    title=paths.name_of(workdir.resolve()),
    when=_when(workdir),
    summary={k: v for k, v in flat.items() if k != "command"},
    stages=stages,
    config=config if _parts(workdir) else {},
    command=_command(workdir, summary or {}) if command else "",
  )


def write_comparison(workdir: str | Path, runs: Sequence[str]) -> Path:
  """Writes `report.html` of several runs into the workdir.

  Args:
    workdir: Directory of the report; made if need be.
    runs: Directories as of `write_report`, each alone, or several seeds of one
      setting as "LABEL=DIR,DIR"; see `reporting.settings.gather`.

  Raises:
    ValueError: One of them has nothing to report, or a file is malformed.
    FileNotFoundError: One of them is no directory.
  """
  title = Path(workdir).resolve().name
  text = _compared(title, runs)
  Path(workdir).mkdir(parents=True, exist_ok=True)
  return _write(Path(workdir), text)


def _compared(title: str, runs: Sequence[str]) -> str:
  """The report of several runs; see `write_comparison`."""
  found = []
  for given in runs:
    label, places = _labelled(given)
    for place in places:
      path = Path(place).expanduser()
      summary = _read_object(path, "summary") if path.is_dir() else {}
      stages, config, flat = _read(path, summary)
      fields = _fields(path, config)
      run = settings.Run(place, fields, stages, flat, label)
      found.append(run)
  gathered = settings.gather(found, paths.OF_STAGES)
  return comparison.render(title, gathered, paths.OF_STAGES)


def _labelled(given: str) -> tuple[str, list[str]]:
  """(label, directories) of "LABEL=DIR,DIR"; directories may have "=" too."""
  if Path(given).expanduser().is_dir():
    return "", [given]
  label, equals, places = given.partition("=")
  if not equals or "/" in label:
    label, places = "", given
  return label, places.split(",")


def _fields(workdir: Path, config: Mapping[str, object]) -> dict[str, object]:
  """What a run is compared by: its config, and what that stands on.

  A judgement or an evaluation has the fields of its policy in the place of
  where that lies, "policy.beta"; its seed is that of both.
  """
  fields = settings.flat(config) | _members(workdir, config)
  if config.get("task") not in ("judge", "evaluate"):
    return fields
  place = _start(workdir, config, "policy")
  made = json_text.object_or_none(place / "config.json") if place else None
  if not made:
    return fields
  del fields["policy.init"]
  own = settings.flat(made) | _members(place, made)
  seed = f"{own.pop(settings.SEED, None)} of the policy, {config.get('seed')}"
  return (
    fields
    | {f"policy.{name}": value for name, value in own.items()}
    | {settings.SEED: seed}
  )


def _start(
  workdir: Path, config: Mapping[str, object], role: str
) -> Path | None:
  """Where a role of a run was read from; None if it was not, or is gone."""
  section = config.get(role)
  init = section.get("init") if isinstance(section, Mapping) else ""
  if not isinstance(init, str) or not init:
    return None
  place = Path(paths.absolute(init))
  if not place.is_dir():  # the command was started elsewhere
    place = workdir.resolve().parent / place.name
  return place


def _members(workdir: Path, config: Mapping[str, object]) -> dict[str, object]:
  """How many models the reward model of an RL run is, by "reward.ensemble".

  A single one and an ensemble may lie under names that end alike. Nothing where
  the reward model is gone; a pipeline has the field in its config.
  """
  place = _start(workdir, config, "reward")
  if config.get("task") != "rl" or place is None:
    return {}
  found = json_text.object_or_none(place / "model.json") or {}
  name = "ensemble"
  return {f"reward.{name}": found[name]} if name in found else {}


def _parts(workdir: Path) -> list[tuple[str, Path]]:
  """(name, directory) of the stages of a pipeline; none of a single stage."""
  return [
    (name, workdir / name)
    for name in tasks.STAGES
    if any((workdir / name / file).exists() for file in _FILES)
  ]


def _read(
  workdir: Path, root_summary: Mapping[str, object]
) -> tuple[list[page.Stage], dict[str, object], dict[str, object]]:
  """(all stages, config, flat summary) of a run; see `write_report`."""
  if not workdir.is_dir():
    raise FileNotFoundError(
      f"{workdir}: no such directory; give the --workdir of a run"
    )
  config, summary = _read_object(workdir, "config"), {}
  found = _parts(workdir) or [(_guess(workdir, config), workdir)]
  directories = dict(found)
  stages = [_stage(name, directories.get(name)) for name in tasks.STAGES]
  for name, directory in found:
    own = _read_object(directory, "summary")
    summary |= {_full_key(name, key): value for key, value in own.items()}
  if found[0][1] != workdir:
    summary = dict(root_summary) | {
      key: value for key, value in summary.items() if key not in root_summary
    }
  if not summary and not any(
    s.metrics or s.samples or s.scores or s.verdicts for s in stages
  ):
    raise ValueError(
      f"{workdir}: nothing to report; a run leaves at least one of "
      f"{', '.join(_FILES[:-1])} there or in {', '.join(tasks.STAGES)}"
    )
  return stages, config, summary


def _write(workdir: Path, text: str) -> Path:
  path = workdir / "report.html"
  # A model can write half of a surrogate pair; a page can not hold it.
  files_lib.write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
  return path


def _command(workdir: Path, summary: Mapping[str, object]) -> str:
  path = workdir / "command.txt"
  if path.is_file():
    return path.read_text(encoding="utf-8").strip()
  return str(summary.get("command", ""))


def _stage(name: str, directory: Path | None) -> page.Stage:
  """What a stage has written; nothing if it has no directory."""
  task = tasks.STAGES[name]
  stage = page.Stage(name, task.title, task.result)
  if directory is None:
    return stage
  lines = {}
  for file in _LINES:
    path = directory / file
    lines[file.removesuffix(".jsonl")] = (
      files_lib.read_jsonl(path, torn_end=True) if path.exists() else []
    )
  config = _read_object(directory, "config")
  if "field" in config:  # rows of a user's file, with their scores
    lines["scores"] = [_scores(row, config["field"]) for row in lines["scores"]]
  return stage._replace(
    config=config,
    notice=_notice(config),
    benchmark=_read_object(directory, "benchmark"),
    **lines,
  )


def _scores(row: Mapping[str, object], field: object) -> dict[str, object]:
  """The scores of a row of task `score`, by the names of an evaluation."""
  names = {"score": field, "chosen": f"{field}_chosen", "label": "label"}
  names["rejected"] = f"{field}_rejected"
  found = {ours: row[name] for ours, name in names.items() if name in row}
  label = f"{field}_label"  # the number of one that is a word
  return found | ({"label": row[label]} if label in row else {})


def _notice(config: Mapping[str, object]) -> str:
  """What to know before reading the data of a stage; "" if nothing is."""
  data = config.get("data")
  name = data.get("name") if isinstance(data, Mapping) else None
  notices = {key: s.notice for key, s in registry.describe().items()}
  return notices.get(str(name), "")


def _read_object(directory: Path, name: str) -> dict[str, object]:
  path = directory / f"{name}.json"
  return json_text.read_object(path) if path.exists() else {}


def _guess(workdir: Path, config: Mapping[str, object]) -> str:
  """The stage that wrote a directory, by its config, its name or its files."""
  for name in (config.get("task"), workdir.resolve().name):
    if name in tasks.SHOWN:
      return name
  if (workdir / "scores.jsonl").exists():
    return "reward"
  path = workdir / "metrics.jsonl"
  rows = files_lib.read_jsonl(path, torn_end=True) if path.exists() else []
  keys = {key for row in rows for key in row}
  if any(key.startswith("rollout/") for key in keys):
    return "rl"
  return "reward" if "validation/auroc" in keys else "sft"


def _full_key(stage: str, key: str) -> str:
  """A key of a stage's own summary as the pipeline's summary spells it.

  `gold_after` -> `rl.gold_after`, `seconds` -> `seconds.rl`, `peak_bytes` ->
  `memory.rl`.
  """
  if "." in key and key.split(".")[0] in tasks.STAGES:
    return key
  key = key.replace("peak_bytes", "memory").replace("/", ".")
  kind, _, rest = key.partition(".")
  if kind in ("seconds", "memory") and rest in ("", "total", "peak", stage):
    return f"{kind}.{stage}"
  return f"{stage}.{key}"


def _when(workdir: Path) -> str:
  """The time at which the newest of the files was written, in UTC."""
  places = [workdir, *(workdir / name for name in tasks.STAGES)]
  files = [place / file for place in places for file in _FILES]
  times = [file.stat().st_mtime for file in files if file.exists()]
  if not times:
    return ""
  moment = datetime.datetime.fromtimestamp(max(times), datetime.UTC)
  return moment.strftime("%d %B %Y, %H:%M UTC").lstrip("0")

"""Loading each data set by name: kinds, disjoint folds, limits and errors."""

import json
import pathlib
import subprocess
import sys

import pytest

from perl_jax.data.records import Demonstration, Labelled, Preference, Prompt
from perl_jax.data.sources import registry
from perl_jax.data.sources.coffee_bar import rows as rows_lib
from perl_jax.data.sources.jsonl import files as files_lib
from perl_jax.data.sources.taskmaster import checks as checks_lib
from perl_jax.data.sources.upstream import BUILDERS
from tests.data import shared_files
from tests.data.sources import upstream_rows

RECORDS = {
  "demonstrations": Demonstration,
  "preferences": Preference,
  "labelled": Labelled,
  "prompts": Prompt,
}


CASES = [
  (name, kind)
  for name, source in registry.describe().items()
  for kind in source.kinds
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_kind_of_every_source_is_split_without_leaks(options, name, kind):
  split = registry.load(name, kind, **options[name])
  rows = [*split.train, *split.validation]
  assert split.train and split.validation
  assert all(type(row) is RECORDS[kind] for row in rows)
  assert len({row.id for row in rows}) == len(rows)
  train = {row.group for row in split.train}
  assert not train & {row.group for row in split.validation}
  assert split.counts
  assert split == registry.load(name, kind, **options[name])


@pytest.mark.parametrize("name", list(registry.describe()))
def test_kinds_of_a_source_hold_out_the_same_groups(options, name):
  loaded = [
    registry.load(name, kind, **options[name])
    for kind in registry.describe()[name].kinds
  ]
  train = {row.group for split in loaded for row in split.train}
  held_out = {row.group for split in loaded for row in split.validation}
  assert not train & held_out


def test_dialogs_follow_the_folds_of_the_rated_turns(options):
  public = options["taskmaster_coffee"]
  for fold in range(3):
    labelled, dialogs, prompts = (
      registry.load("taskmaster_coffee", kind, folds=3, fold=fold, **public)
      for kind in ("labelled", "demonstrations", "prompts")
    )
    rated_groups = {row.group for row in labelled.validation}
    both = {row.group for row in dialogs.validation} & rated_groups
    assert both == rated_groups & {f"order {n}" for n in range(30)}
    assert {r.group for r in prompts.train} == {r.group for r in dialogs.train}
    assert len(labelled.train) + len(labelled.validation) == 90
    # Dialogs that begin like a rated turn are in no training set at all.
    everywhere = rated_groups | {row.group for row in labelled.train}
    assert not everywhere & {row.group for row in dialogs.train}
    left_out = dialogs.counts["begin_as_rated"]
    assert left_out == 2 * (10 - len(both))
    assert len(dialogs.train) + len(dialogs.validation) == 60 - left_out


@pytest.mark.parametrize("name", ["taskmaster_ticketing", "hh_rlhf", "jsonl"])
def test_another_seed_holds_out_the_same_rows(options, name):
  """The seed of a run is not that of its folds."""

  def held_out(**given):
    split = registry.load(name, "prompts", folds=3, **given, **options[name])
    return {row.id for row in split.validation}

  assert held_out(seed=1, split_seed=0) == held_out(seed=2, split_seed=0)
  assert held_out(split_seed=0) != held_out(split_seed=1)
  assert held_out(seed=1) == held_out(split_seed=1)


@pytest.mark.parametrize("name", ["taskmaster_ticketing", "hh_rlhf", "jsonl"])
def test_folds_hold_out_every_row_once(options, name):
  ids = []
  kind = registry.describe()[name].kinds[0]
  for fold in range(4):
    split = registry.load(name, kind, folds=4, fold=fold, **options[name])
    ids += [row.id for row in split.validation]
  everything = [row.id for row in [*split.train, *split.validation]]
  assert sorted(ids) == sorted(everything)
  other = registry.load(name, kind, folds=4, fold=3, seed=1, **options[name])
  assert other.validation != split.validation


def test_prompts_of_coffee_have_the_turn_of_the_dialog_as_reference(options):
  public = options["taskmaster_coffee"]
  dialogs = registry.load("taskmaster_coffee", "demonstrations", **public)
  prompts = registry.load("taskmaster_coffee", "prompts", **public)
  turns = [
    message["content"]
    for row in dialogs.train
    for message in row.turns
    if message["role"] == "assistant"
  ]
  assert [row.reference for row in prompts.train] == turns
  assert json.loads(turns[0]) and turns[1] == "Anything else?"


def test_hh_reads_the_parts_that_are_there(options, tmp_path):
  only_test = registry.load("hh_rlhf", "preferences", **options["hh_rlhf"])
  assert only_test.counts["test_rows"] == 20
  assert "train_rows" not in only_test.counts
  for part, count in (("train", 30), ("test", 20)):
    upstream_rows.spread(
      tmp_path,
      "hh_rlhf",
      part,
      [upstream_rows.pair(n, part) for n in range(count)],
    )
  public = {"data_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
  split = registry.load("hh_rlhf", "preferences", **public)
  assert split.counts["train_rows"] == 30 and split.counts["test_rows"] == 20
  assert split.counts["rows"] == 50
  assert len(split.train) + len(split.validation) == 50
  assert {row.id.split(":")[0] for row in split.train} == {
    "hh_rlhf/train",
    "hh_rlhf/test",
  }


@pytest.mark.parametrize("name", ["coffee_bar", "taskmaster_coffee", "jsonl"])
def test_limit_cuts_training_rows_only(options, name):
  whole = registry.load(name, "prompts", **options[name])
  cut = registry.load(name, "prompts", limit=7, **options[name])
  assert cut.train == whole.train[:7]
  assert cut.validation == whole.validation
  assert cut.counts == whole.counts | {"over_limit": len(whole.train) - 7}
  same = registry.load(name, "prompts", limit=10_000, **options[name])
  assert same == whole


@pytest.mark.parametrize("name", ["taskmaster_coffee", "hh_rlhf", "jsonl"])
def test_folds_to_train_on(options, name):
  whole = registry.load(name, "prompts", folds=3, **options[name])
  parts = [
    registry.load(name, "prompts", folds=3, train_folds=(n,), **options[name])
    for n in (1, 2)
  ]
  assert all(part.validation == whole.validation for part in parts)
  ids = [{row.id for row in split.train} for split in (whole, *parts)]
  assert ids[0] == ids[1] | ids[2] and not ids[1] & ids[2]
  assert all(part.counts["in_other_folds"] for part in parts)


def test_folds_to_train_on_beside_a_file_to_validate_on(tmp_path):
  lines = [json.dumps({"prompt": f"question {n}"}) for n in range(20)]
  for name, part in (("a", lines[:15]), ("b", lines[15:])):
    (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
  given = {
    "path": str(tmp_path / "a.jsonl"),
    "validation_path": str(tmp_path / "b.jsonl"),
  }
  parts = [
    registry.load("jsonl", "prompts", folds=3, train_folds=(n,), **given)
    for n in range(3)
  ]
  assert [len(part.validation) for part in parts] == [5, 5, 5]
  assert [len(part.train) for part in parts] == [5, 5, 5]
  ids = {row.id for part in parts for row in part.train}
  assert len(ids) == 15
  with pytest.raises(ValueError, match="train_folds=3 is out of range"):
    registry.load("jsonl", "prompts", folds=3, train_folds=(3,), **given)


def test_a_generator_has_no_folds_to_train_on():
  with pytest.raises(ValueError, match="no option 'train_folds'"):
    registry.load("coffee_bar", "prompts", train_folds=(1,))


def test_options_of_the_generator_reach_it():
  split = registry.load(
    "coffee_bar",
    "demonstrations",
    seed=5,
    size=40,
    validation_size=3,
    demo_quality=1.0,
  )
  assert split == rows_lib.load(
    "demonstrations", seed=5, size=40, validation_size=3, demo_quality=1.0
  )
  assert split.counts["train_right"] == 40


def test_validation_path_reaches_jsonl(options):
  path = str(pathlib.Path(options["jsonl"]["path"]) / "labelled.jsonl")
  split = registry.load("jsonl", "labelled", path=path, validation_path=path)
  assert split == files_lib.load(path, "labelled", validation_path=path)
  assert len(split.train) == len(split.validation) == 20


@pytest.mark.parametrize("name", list(registry.describe()))
def test_checkers_find_the_reference_right(options, name):
  check = registry.checker(name)
  prompt = registry.load(name, "prompts", **options[name]).validation[0]
  checks = registry.describe()[name].checks
  if not checks:
    assert check(prompt, "anything") == {}
    return
  if prompt.reference is None:
    prompt = next(
      row
      for row in registry.load(name, "prompts", **options[name]).train
      if row.reference
    )
  results = check(prompt, prompt.reference)
  assert results and set(results) <= set(checks)
  assert set(results.values()) == {1.0}
  assert check(prompt, prompt.reference + "?")[checks[-1]] == 0.0
  if name.startswith("taskmaster"):
    assert results == checks_lib.make_checker(name)(prompt, prompt.reference)


def test_describe_says_what_a_newcomer_needs():
  described = registry.describe()
  assert list(described) == [
    "coffee_bar", "taskmaster_coffee", "taskmaster_ticketing", "hh_rlhf",
    "jsonl",
  ]  # fmt: skip
  for source in described.values():
    assert source.about and source.licence and source.kinds
    assert set(source.kinds) <= set(RECORDS)
  assert described["coffee_bar"].options == (
    "size", "validation_size", "demo_quality", "label_noise",
  )  # fmt: skip
  described.clear()
  assert registry.describe()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      {"name": "cofee_bar"},
      "no data set 'cofee_bar': there is coffee_bar, .* mean 'coffee_bar'",
    ),
    (
      {"kind": "preference"},
      "coffee_bar has no 'preference': .* mean 'preferences'",
    ),
    (
      {"name": "hh_rlhf", "kind": "labelled"},
      "hh_rlhf has no 'labelled': it has preferences, prompts. coffee_bar, .*"
      " have labelled",
    ),
    ({"limit": -1}, "limit=-1 must be"),
    ({"name": "jsonl"}, "jsonl needs `path`"),
    (
      {"path": "rows.jsonl"},
      "coffee_bar has no option 'path'.*the data set jsonl",
    ),
    (
      {"data_dir": "copies"},
      "coffee_bar has no option 'data_dir'.*taskmaster_coffee or",
    ),
    (
      {"demo_qualty": 1.0},
      "has no option 'demo_qualty': .* Did you mean 'demo_quality'",
    ),
    (
      {"name": "jsonl", "path": "x", "size": 3},
      "jsonl has no option 'size'.*the data set coffee_bar",
    ),
    (
      {"name": "taskmaster_coffee", "validation_path": "x"},
      "has no option 'validation_path'.*the data set jsonl",
    ),
    ({"label_noise": 0.7}, "label_noise is a share from 0 to 0.5, got 0.7"),
  ],
)
def test_what_does_not_belong_together_is_refused(arguments, message):
  arguments = {"name": "coffee_bar", "kind": "prompts"} | arguments
  with pytest.raises(ValueError, match=message):
    registry.load(**arguments)


def test_unknown_name_of_a_checker():
  with pytest.raises(ValueError, match="mean 'hh_rlhf'"):
    registry.checker("hh_rhlf")


@pytest.mark.parametrize("name", ["taskmaster_coffee", "hh_rlhf"])
def test_a_missing_local_copy_is_named(tmp_path, name):
  local = BUILDERS[name].PARTS[list(BUILDERS[name].PARTS)[-1]][0].local
  folder = local.split("/")[0]
  with pytest.raises(FileNotFoundError, match=folder):
    registry.load(
      name, "prompts", data_dir=str(tmp_path), cache_dir=str(tmp_path / "c")
    )
  assert not (tmp_path / "c").exists()


def test_generated_orders_need_neither_tfds_nor_jax():
  code = (
    "import sys; from perl_jax.data.sources import registry;"
    "registry.load('coffee_bar', 'prompts', size=5, validation_size=5);"
    "print({'jax', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules))"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
  ("name", "kind", "rows"),
  [
    ("taskmaster_coffee", "prompts", 21112),
    ("taskmaster_ticketing", "labelled", 2787),
    ("hh_rlhf", "preferences", 2008),
  ],
)
def test_real_rows_are_all_there(tmp_path_factory, name, kind, rows):
  cache = tmp_path_factory.getbasetemp() / "cache"
  copy = shared_files.find()
  split = registry.load(name, kind, data_dir=str(copy), cache_dir=str(cache))
  left_out = split.counts.get("begin_as_rated", 0)
  assert len(split.train) + len(split.validation) == rows - left_out
  assert left_out < 0.02 * rows
  assert 0.1 < len(split.validation) / rows < 0.3
  train = {row.group for row in split.train}
  assert not train & {row.group for row in split.validation}

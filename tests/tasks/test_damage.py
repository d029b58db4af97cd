"""Each kind of file of a workdir cut, emptied, removed, or with a bit flipped.

Nothing may happen silently: a damaged file is refused by its name, said in a
warning, written anew, or was not needed. docs/reliability.md has the outcomes,
and is compared with what comes out here; with -s the test prints them.
"""

import logging
import pathlib
import shutil

import numpy as np
import pytest

from perl_jax import params, tasks
from perl_jax.tasks.initial import restore
from perl_jax.tasks.training import facts, finished
from tests.tasks import tiny

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reliability.md"
# Kind of file -> where one lies; `{last}` is the newest checkpoint.
KINDS = {
  "config.json": "config.json",
  "model.json": "model.json",
  "tokenizer/tokenizer.json": "tokenizer/tokenizer.json",
  "tokenizer/tokenizer_config.json": "tokenizer/tokenizer_config.json",
  "sha256.txt": "sha256.txt",
  "summary.json": "summary.json",
  "metrics.jsonl": "metrics.jsonl",
  "samples.jsonl": "samples.jsonl",
  "command.txt": "command.txt",
  "tensorboard/": "tensorboard/*",
  "checkpoints/N/sha256.txt": "checkpoints/4/sha256.txt",
  "checkpoints/N/meta/": "checkpoints/4/meta/metadata",
  "checkpoints/N/trainable/": "checkpoints/4/trainable/d/*",
  "checkpoints/N/optimizer/": "checkpoints/4/optimizer/d/*",
  "checkpoints/N/metrics/": "checkpoints/4/metrics/metrics",
}
DAMAGES = ("cut", "emptied", "removed", "bit flipped")
READERS = ("export",)
# Nobody reads these: people do.
FOR_PEOPLE = ("command.txt", "tensorboard/")


def damage(path, how):
  whole = path.read_bytes()
  if how == "removed":
    path.unlink()
  elif how == "emptied":
    path.write_bytes(b"")
  elif how == "cut":
    path.write_bytes(whole[: len(whole) // 2])
  else:
    at = len(whole) // 2
    while not chr(whole[at]).isalnum() and len(whole) > at + 1:
      at += 1
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


def bits(tree):
  return params.fingerprint(tree, np.asarray)


def later_stage(workdir, config):
  del config
  start = restore.load(workdir, "last", "policy", "policy.init")
  start.load_tokenizer()
  return start.fingerprint, start.config, bits(start.role.frozen)


def export(workdir, config):
  """Reads the model; its card; and what a finished command says it achieved."""
  later_stage(workdir, config)
  found = facts.training_facts(workdir, "last")
  return found, finished.summary_of(config, workdir, trains=True)


READ = dict(zip(READERS, (export,), strict=True))


def outcome(whole, config, reader, kind, how, caplog, scratch):
  """What happens, in the words of the table; None where it is silent."""
  copy = scratch / "run"
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(whole, copy)
  expected = READ[reader](copy, config)
  shutil.rmtree(copy)
  shutil.copytree(whole, copy)
  (path, *_) = sorted(copy.glob(KINDS[kind]))
  damage(path, how)
  caplog.clear()
  try:
    with caplog.at_level(logging.WARNING, "absl"):
      found = READ[reader](copy, config)
  except (ValueError, FileNotFoundError, FloatingPointError) as error:
    text = str(error)
    named = path.name in text or str(path.parent) in text
    known = "config.json" in kind and "another config" in text
    return "refused" if named or known else f"raw: {text[:200]}"
  except Exception as error:  # a raw error of a library is what is looked for
    return f"raw: {type(error).__name__}: {error}"[:200]
  said = [m for m in caplog.messages if path.name in m or "step 4 is" in m]
  if found == expected:
    if kind in FOR_PEOPLE:
      return "not read"
    return "said, goes on" if said else "goes on as before"
  return "said, goes on" if said else None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(workdir, config) of a run that has finished."""
  workdir = tmp_path_factory.mktemp("damage") / "run"
  config = tiny.config("sft")
  tasks.run(config, workdir)
  return workdir, config


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_nothing_happens_silently(trained, reader, caplog, tmp_path):
  workdir, config = trained
  whole = tmp_path / "whole"
  shutil.copytree(workdir, whole)
  found = {
    (kind, how): outcome(whole, config, reader, kind, how, caplog, tmp_path)
    for kind in KINDS
    for how in DAMAGES
  }
  wrong = {k: v for k, v in found.items() if not v or v.startswith("raw")}
  for key, value in found.items():
    print(reader, *key, value, sep=" | ")
  assert not wrong
  if PAGE.exists():
    for (kind, how), value in found.items():
      assert expected_of(reader, kind, how) == value, (kind, how)


def expected_of(reader, kind, how):
  """A cell of the page."""
  part = PAGE.read_text().partition(f"## {reader[0].upper()}{reader[1:]}\n")[2]
  for line in part.partition("\n## ")[0].splitlines():
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    if cells[0] == f"`{kind}`":
      return cells[1 + DAMAGES.index(how)]
  return None

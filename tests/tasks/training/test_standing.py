"""A run that goes on stands on what it began with, or is refused.

No run is trained: its checkpoint is what a checkpoint says of itself.
"""

import importlib
import json
import logging
import os
import shutil
import sys

import pytest

from perl_jax import tasks
from perl_jax.tasks.training import loop, standing, together
from tests.tasks import tiny
from tests.tasks.initial.test_adapter import write_adapter, write_base

WORDS = ("mocha", "latte", "tea", "cortado", "chai", "water", "milk", "cocoa")
PAIRS = [
  {"prompt": f"a {word} please", "chosen": word, "rejected": f"no {word}"}
  for word in WORDS
]
LABELS = [
  {"prompt": f"a {word} please", "response": word, "label": i % 2}
  for i, word in enumerate(WORDS)
]
TALKS = [{"prompt": f"a {w} please", "response": w, "level": 1} for w in WORDS]
ROWS = {"sft": TALKS, "rl": TALKS, "dpo": PAIRS, "reward": PAIRS,
        "labelled": LABELS}  # fmt: skip
FUNCTION = "def f(prompts, responses, rows):\n  return [1.0] * len(prompts)\n"


class Stop(BaseException):
  """The run has been prepared; nothing compiles after this."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A base, another, an adapter and reward models, as others write them."""
  root = tmp_path_factory.mktemp("written")
  config = write_base(root / "base", max_len=256)
  write_base(root / "other", seed=1, max_len=256)
  write_adapter(root / "adapter", config, str(root / "base"))
  write_base(root / "judge", head=True, max_len=256)
  write_base(root / "other_judge", seed=1, head=True, max_len=256)
  return root


class Run:
  """A stage in a workdir, with everything that it stands on beside it."""

  def __init__(self, root, monkeypatch, kind):
    self.root, self.workdir = root, root / "run"
    self.task = "reward" if kind == "labelled" else kind
    self.rows(ROWS[kind])
    self.rows(ROWS[kind][:4], "held_out.jsonl")
    self.fields = {
      "data__path": str(root / "rows.jsonl"),
      "data__validation_path": str(root / "held_out.jsonl"),
      "base": str(root / "base"), "batch_size": 2, "tuning": "lora",
    }  # fmt: skip
    if kind == "labelled":
      self.fields["loss"] = "pointwise"
    if kind == "rl":
      (root / "judged.py").write_text(FUNCTION)
      monkeypatch.syspath_prepend(root)
      monkeypatch.delitem(sys.modules, "judged", raising=False)
      self.fields |= {
        "policy__init": str(root / "adapter"), "microbatches": 1,
        "reward__init": str(root / "judge"), "reward__fn": "judged:f",
      }  # fmt: skip
    self.found = None

    def stop(*args, stands_on, **options):
      self.found = dict(stands_on)
      raise Stop

    monkeypatch.setattr(loop, "open_run", stop)

  def rows(self, rows, name="rows.jsonl"):
    lines = [json.dumps(row) + "\n" for row in rows]
    (self.root / name).write_text("".join(lines))

  def replace(self, name, other):
    shutil.rmtree(self.root / name)
    shutil.copytree(self.root / other, self.root / name)

  def train(self, config):
    stage = tasks.TASKS[self.task].module().stage
    together.alone(stage(config, self.workdir))

  def prepare(self, **changes):
    config = tiny.config(self.task, "jsonl", **self.fields, **changes)
    with pytest.raises(Stop):
      self.train(config)
    return self.found

  def save(self, step=2, **changes):
    """Leaves what a checkpoint of this run would say."""
    meta = {standing.ENTRY: self.prepare()} | changes
    directory = self.workdir / "checkpoints" / str(step) / "meta"
    directory.mkdir(parents=True)
    (directory / "metadata").write_text(json.dumps(meta))

  def refused(self, *texts):
    before = tiny.tree(self.workdir)
    config = tiny.config(self.task, "jsonl", **self.fields)
    with pytest.raises(ValueError) as caught:
      self.train(config)
    message = str(caught.value)
    for text in (str(self.workdir), "step 2", "--workdir", *texts):
      assert text in message, message
    assert tiny.tree(self.workdir) == before
    return message


@pytest.fixture
def make(tmp_path, monkeypatch, written):
  shutil.copytree(written, tmp_path, dirs_exist_ok=True)
  path = tmp_path / "adapter" / "adapter_config.json"
  told = json.loads(path.read_text())
  told["base_model_name_or_path"] = str(tmp_path / "base")
  path.write_text(json.dumps(told))
  return lambda kind: Run(tmp_path, monkeypatch, kind)


def swapped(rows, first="chosen", second="rejected"):
  return [{**row, first: row[second], second: row[first]} for row in rows]


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ("kind", "rows", "what"),
  [
    ("reward", PAIRS[::-1], "training rows (preferences)"),
    ("reward", swapped(PAIRS), "training rows (preferences)"),
    slow("dpo", swapped(PAIRS), "training rows (preferences)"),
    slow("labelled", [{**r, "label": 1 - r["label"]} for r in LABELS],
         "training rows (labelled)"),
    slow("sft", TALKS[::-1], "training rows (demonstrations)"),
    slow("rl", [{**row, "level": 2} for row in TALKS],
         "training rows (prompts)"),
  ],
)  # fmt: skip
def test_other_training_rows_under_the_same_path(make, kind, rows, what):
  run = make(kind)
  run.save()
  run.rows(rows)
  message = run.refused(f"{what}: ", str(run.root / "rows.jsonl"))
  assert len([line for line in message.splitlines() if " -> " in line]) == 2
  # The way out: what was there is put back.
  run.rows(ROWS[kind])
  run.prepare()


@pytest.mark.slow
@pytest.mark.slow
def test_labels_turned_round_in_a_table(make):
  """A Parquet file is compared by its rows, as lines of JSON are."""
  pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow for Parquet")
  parquet = importlib.import_module("pyarrow.parquet")
  run = make("labelled")
  path = run.root / "rows.parquet"
  run.fields["data__path"] = str(path)
  parquet.write_table(pyarrow.Table.from_pylist(LABELS), path)
  run.save()
  about = path.stat()
  turned = [{**row, "label": 1 - row["label"]} for row in LABELS]
  parquet.write_table(pyarrow.Table.from_pylist(turned), path)
  os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
  run.refused("training rows (labelled)")
  parquet.write_table(pyarrow.Table.from_pylist(LABELS), path)
  run.prepare()


def test_other_validation_rows_under_the_same_path(make):
  run = make("reward")
  run.save()
  run.rows(PAIRS[1:5], "held_out.jsonl")
  run.refused("validation rows (preferences): ", "held_out.jsonl")


def test_another_base_under_the_same_path(make):
  run = make("dpo")
  run.save()
  run.replace("base", "other")
  message = run.refused("base: ", str(run.root / "base"))
  assert "rows (" not in message and "tokenizer: " not in message
  run.workdir = run.root / "afresh"  # the other way out
  run.prepare()


@pytest.mark.slow
def test_another_anchor_under_the_same_path(make):
  """It is what the policy starts from; here an adapter."""
  run = make("rl")
  run.save()
  weights = run.root / "adapter" / "adapter_model.safetensors"
  whole = weights.read_bytes()
  weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  run.refused("adapter and head that the policy starts from: ")


def test_another_reward_model_under_the_same_path(make):
  run = make("rl")
  run.save()
  run.replace("judge", "other_judge")
  run.refused("reward model: ", "base of the reward model: ", "judge")


def test_another_judge_under_the_same_path(make, caplog):
  """A reward model beside the reward; the run may go on without it."""
  run = make("rl")
  shutil.copytree(run.root / "other_judge", run.root / "third")
  run.fields |= {"judge__by": f"reward:{run.root / 'third'}"}
  run.save()
  run.replace("third", "judge")
  message = run.refused("adapter of the judge: ", "base of the judge: ")
  assert "reward model: " not in message
  del run.fields["judge__by"]
  run.prepare()


@pytest.mark.slow
def test_another_function_that_judges_is_said(make, caplog):
  run = make("rl")
  path = run.root / "mine.py"
  path.write_text(FUNCTION)
  run.fields |= {"judge__by": f"{path}:f"}
  run.save()
  path.write_text(FUNCTION.replace("1.0", "2.0"))
  run.prepare()
  assert f"config.judge.by='{path}:f' has changed since step 2" in caplog.text


@pytest.mark.slow
def test_another_reward_function_is_said(make, caplog):
  """It may have had to be mended: the run goes on, aloud."""
  run = make("rl")
  run.save()
  path = run.root / "judged.py"
  path.write_text(FUNCTION + "# well\n")
  with caplog.at_level(logging.WARNING, "absl"):
    run.prepare()
    assert "has changed since" not in caplog.text
    path.write_text(FUNCTION.replace("1.0", "2.0"))
    run.prepare()
  assert "'judged:f' has changed since step 2" in caplog.text


@pytest.mark.slow
def test_another_chat_template_under_the_same_path(make):
  """Which no row need show."""
  run = make("labelled")
  run.save()
  path = run.root / "base" / "tokenizer_config.json"
  told = json.loads(path.read_text())
  file = run.root / "base" / "chat_template.jinja"
  text = file.read_text() if file.exists() else told["chat_template"]
  text += "{# #}"
  if file.exists():
    file.write_text(text)
  else:
    path.write_text(json.dumps(told | {"chat_template": text}))
  run.refused("tokenizer: ")


@pytest.mark.slow
def test_a_checkpoint_of_an_older_version(make, caplog):
  """Says so, and looks at the base, which model.json has noted."""
  run = make("reward")
  run.save()
  path = run.workdir / "checkpoints" / "2" / "meta" / "metadata"
  path.write_text("{}")
  with caplog.at_level(logging.WARNING, "absl"):
    run.prepare()
  assert "written by an older version" in caplog.text
  run.replace("base", "other")
  run.refused("base: ")


@pytest.mark.slow
def test_a_tree_that_was_moved_goes_on(make, caplog):
  run = make("dpo")
  run.save()
  (run.root / "base").rename(run.root / "elsewhere")
  run.fields["base"] = str(run.root / "elsewhere")
  with caplog.at_level(logging.INFO, "absl"):
    run.prepare()
  assert "what lies there is compared" in caplog.text
  run.fields["base"] = str(run.root / "other")
  run.refused("base: ", str(run.root / "other"))

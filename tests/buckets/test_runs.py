"""Whole runs in a bucket, each as on a machine that has nothing yet."""

import json
import signal
import subprocess
import sys
import time

import pytest

from perl_jax import buckets, checkpoint, files, tasks
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.training import lock
from tests.buckets import fixtures, servers
from tests.tasks import test_resume, tiny

pytestmark = [
  *servers.WARNINGS,
  pytest.mark.slow,
]


@pytest.fixture
def other_machine(monkeypatch, tmp_path):
  """Returns a function that makes this the first process of a new machine."""
  count = iter(range(100))

  def machine():
    fixtures.fresh_machine(monkeypatch, tmp_path / f"machine{next(count)}")

  return machine


def read(address, name):
  content = buckets.Store(address).read(name)
  return None if content is None else json.loads(content)


@pytest.mark.parametrize("bucket_server", fixtures.REAL[:1], indirect=True)
def test_stages_follow_each_other(address, store, other_machine, tmp_path):
  tasks.run(tiny.config("sft", steps=2), f"{address}/sft")
  names = set(store.listed())
  assert {"sft/config.json", "sft/model.json", "sft/summary.json"} <= names
  assert any(name.startswith("sft/checkpoints/2/trainable/") for name in names)
  assert not any("lock" in name or ".tmp" in name for name in names)

  other_machine()
  fields = {"reward__init": f"{address}/sft", "steps": 2}
  config = tiny.config("reward", **fields)
  found = tasks.run(config, f"{address}/reward")
  assert read(address, "reward/config.json")["reward"]["init"] == (
    f"{address}/sft"
  )
  assert read(address, "reward/model.json")["init"]["init"] == "../sft"
  other_machine()
  assert tasks.run(config, f"{address}/reward") == pytest.approx(found)
  with pytest.raises(ValueError, match="belongs to a run with another config"):
    tasks.run(tiny.config("reward", seed=5, **fields), f"{address}/reward")
  from configs import report

  tasks.run(report.get_config().lock(), f"{address}/reward")
  assert store.read("reward/report.html").startswith(b"<!")

  # A workdir of this machine from one in a bucket; its anchor is found there.
  other_machine()
  config = tiny.config("sft", policy__init=f"{address}/sft", steps=2)
  tasks.run(config, tmp_path / "more")
  described = json.loads((tmp_path / "more" / "model.json").read_text())
  assert described["init"]["init"] == f"{address}/sft"
  other_machine()
  config = tiny.config("evaluate", policy__init=str(tmp_path / "more"))
  tasks.run(config, f"{address}/evaluated")
  assert read(address, "evaluated/summary.json")


@pytest.mark.parametrize("bucket_server", fixtures.REAL[1:], indirect=True)
def test_an_export_is_a_base(address, store, other_machine):
  from configs import export

  tasks.run(tiny.config("sft", steps=2), f"{address}/sft")
  other_machine()
  tuned = {"policy__init": f"{address}/sft", "tuning": "lora"}
  tasks.run(tiny.config("sft", steps=2, **tuned), f"{address}/lora")
  for form, of in (("merged", "sft"), ("adapter", "lora")):
    other_machine()
    config = tiny.override(
      export.get_config(), {"init": f"{address}/{of}", "format": form}
    )
    tasks.run(config, f"{address}/{form}")
    other_machine()
    with pytest.raises(ValueError, match=f"{address}/{form} exists"):
      tasks.run(config, f"{address}/{form}")
  adapter = read(address, "adapter/adapter_config.json")
  assert adapter["base_model_name_or_path"] == f"{address}/adapter/base"
  here = str(buckets.addresses.root()).encode()
  texts = (".json", ".md", ".txt", ".html", ".jsonl")
  assert [
    name
    for name in store.listed()
    if name.endswith(texts) and here in store.read(name)
  ] == []
  other_machine()
  tasks.run(
    tiny.config("sft", base=f"{address}/merged", steps=2), f"{address}/again"
  )
  base = read(address, "again/model.json")["base"]
  assert base["path"] == f"{address}/merged"
  other_machine()
  # The base is found by what the workdir says of it.
  config = tiny.config("evaluate", policy__init=f"{address}/again")
  assert tasks.run(config, f"{address}/judged")


@pytest.mark.nightly
@pytest.mark.parametrize("bucket_server", fixtures.REAL[:1], indirect=True)
def test_members_go_on_elsewhere(
  address, store, other_machine, tmp_path, monkeypatch
):
  """Killed where one member has saved and one has not; then one is used."""
  tasks.run(tiny.config("sft", steps=2), f"{address}/sft")
  fields = {"reward__init": f"{address}/sft", "members": 2}
  config = tiny.config("reward", **fields, **test_resume.STEPS)
  real = checkpoint.Checkpointer.save

  def save(self, step, *args):
    if step == 4 and self.path(step).parents[1].name == "1":
      raise test_resume.Killed
    real(self, step, *args)

  other_machine()
  with monkeypatch.context() as patches:
    patches.setattr(checkpoint.Checkpointer, "save", save)
    with pytest.raises(test_resume.Killed):
      tasks.run(config, f"{address}/run")
  names = store.listed()
  made = {name.partition("/trainable")[0] for name in names}
  assert "run/members/0/checkpoints/4" in made
  assert "run/members/1/checkpoints/2" in made
  assert "run/members/1/checkpoints/4" not in made
  left = {name for name in names if name.startswith("run/")}
  assert not any("lock" in name or "summary" in name for name in left)

  other_machine()
  found = tasks.run(config, f"{address}/run")
  assert found["members"] == 2
  other_machine()
  assert tasks.run(config, f"{address}/run") == found  # nothing is left to do
  from configs import report

  tasks.run(report.get_config().lock(), f"{address}/run")
  assert b"members/1" in store.read("run/report.html")
  tasks.run(config, tmp_path / "whole")
  there = buckets.fetch(f"{address}/run")
  for name in ("members/0", "members/1"):
    test_resume.same(tmp_path / "whole" / name, there / name)
  other_machine()
  member = tiny.config("evaluate", reward__init=f"{address}/run/members/1")
  assert tasks.run(member, tmp_path / "evaluated")


SCRIPT = """
import sys
from perl_jax import tasks
from tests.tasks import tiny
tasks.run(tiny.config("sft", **{fields}), sys.argv[1])
"""


@pytest.mark.parametrize("bucket_server", fixtures.REAL[:1], indirect=True)
def test_a_run_that_was_killed_goes_on_elsewhere(
  address, store, other_machine, tmp_path, monkeypatch
):
  fields = {"steps": 120, "eval_every": 8, "log_every": 1, "eval__rows": 0}
  script = tmp_path / "train.py"
  script.write_text(SCRIPT.replace("{fields}", repr(fields)))
  other_machine()
  command = [sys.executable, str(script), address]
  monkeypatch.setenv("PYTHONPATH", ".")
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  while not any("checkpoints/" in name for name in store.listed()):
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.2)
  # Nobody else may have it, also from another machine.
  other_machine()
  config = tiny.config("sft", **fields)
  with pytest.raises(ValueError, match=f"{address} is in use by"):
    tasks.run(config, address)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert read(address, "summary.json") is None
  assert read(address, "lock.json")["pid"] == process.pid
  # As if it had been another host, which is silent for long.
  monkeypatch.setattr(lock, "OLD_SECONDS", -1.0)
  tasks.run(config, address)
  rows = [json.loads(line) for line in store.read("metrics.jsonl").splitlines()]
  trained = [row["step"] for row in rows if "train/loss" in row]
  assert trained == list(range(1, 121))
  tasks.run(config, tmp_path / "whole")
  whole = files.read_jsonl(tmp_path / "whole" / "metrics.jsonl")
  for ours, theirs in zip(rows, whole, strict=True):
    assert ours.get("train/loss") == theirs.get("train/loss")


GENERATE = """
import os, signal, sys, time
from perl_jax import buckets, tasks
from perl_jax.buckets import mirror
from perl_jax.tasks.evaluation import policy
from tests.tasks import tiny

def evaluate(*args):
  calls.append(args)
  while len(calls) == 3:
    time.sleep(0.2)
    kept = buckets.Store(sys.argv[1]).read("so_far.jsonl") or b""
    if kept.count(b"\\n") == 3:  # two batches below what they are made from
      os.kill(os.getpid(), signal.SIGKILL)
  return real(*args)

calls, real = [], policy.PolicyEvaluator._evaluate_batch
policy.PolicyEvaluator._evaluate_batch = evaluate
mirror.LINES_SECONDS = 0.0  # as if each batch took a minute
tasks.run(tiny.config("generate", **{fields}), sys.argv[1])
"""


@pytest.mark.parametrize("bucket_server", fixtures.REAL[:1], indirect=True)
def test_responses_are_not_lost_with_their_machine(
  address, other_machine, tmp_path, monkeypatch
):
  """Killed in the third of four batches; two are answered elsewhere."""
  tasks.run(tiny.config("sft", steps=2), f"{address}/sft")
  fields = {"policy__init": f"{address}/sft", "eval__batch_size": 2}
  script, workdir = tmp_path / "generate.py", f"{address}/run"
  script.write_text(GENERATE.replace("{fields}", repr(fields)))
  monkeypatch.setenv("PYTHONPATH", ".")
  other_machine()
  command = [sys.executable, str(script), workdir]
  done = subprocess.run(command, capture_output=True, text=True, timeout=400)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert {"run/config.json", "run/so_far.jsonl"} <= {
    *buckets.Store(address).listed()
  }
  other_machine()
  # As if it had been another host, which is silent for long.
  monkeypatch.setattr(lock, "OLD_SECONDS", -1.0)
  calls, real = [], policy_evaluation.PolicyEvaluator._evaluate_batch

  def evaluate(*args):
    calls.append(args)
    return real(*args)

  monkeypatch.setattr(
    policy_evaluation.PolicyEvaluator, "_evaluate_batch", evaluate
  )
  config = tiny.config("generate", **fields)
  tasks.run(config, workdir)
  assert len(calls) == 2
  there = buckets.Store(workdir)
  assert not {"so_far.jsonl", "lock.json"} & {*there.listed()}
  tasks.run(config, tmp_path / "whole")
  found = there.read("responses.jsonl")
  assert found == (tmp_path / "whole" / "responses.jsonl").read_bytes()

"""A workdir in a bucket of a run on several hosts.

Each process has a cache of its own, as hosts without a common disk have, or all
have one, as on one machine.
"""

import json

import pytest

from perl_jax import tasks
from tests.buckets import fixtures, servers
from tests.hosts import group
from tests.tasks import tiny

pytestmark = [*servers.WARNINGS, pytest.mark.slow]
# As tests/hosts/test_same.py has them for two processes.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
IN_BUCKET = pytest.mark.parametrize(
  "bucket_server", fixtures.REAL[:1], indirect=True
)
# All is tuned, and each host holds a part of it.
IN_PARTS = {"tuning": "full", "mesh__data": 1, "mesh__fsdp": 2}
PIPELINE = """
from tests.buckets import test_hosts

def get_config():
  return test_hosts.pipeline().unlock()
"""


def pipeline():
  data = {f"{stage}__mesh__data": 2 for stage in tiny.STAGES}
  return tiny.pipeline(sft__tuning="full", **data)


@pytest.fixture
def start(tmp_path, address, bucket_server, cache_settings):
  """Returns `start(name, arguments, apart) -> Group` of two new machines."""
  _, found = bucket_server
  settings = {name.upper(): str(v) for name, v in cache_settings.items()}

  def begin(name, arguments, apart=True, **more):
    def cache(number):
      host = f"host{number}" if apart else "host"
      return {"PERL_JAX_CACHE": str(tmp_path / name / host)}

    return group.Group(
      arguments,
      count=2,
      directory=tmp_path / name,
      environment=settings | found | more,
      own=cache,
    )

  return begin


def finish(processes, status=0):
  with processes as running:
    assert running.wait() == [status] * 2, "\n----\n".join(running.logs)


def lines(store, name="metrics.jsonl"):
  content = store.read(name)
  return [tiny.untimed(json.loads(line)) for line in content.splitlines()]


def files_below(directory):
  return {
    path.relative_to(directory).as_posix()
    for path in directory.rglob("*")
    if path.is_file()
  }


def texts(names):
  """Those that a run has once, whatever Orbax splits and trackers name.

  A report is there if a run took more than half a minute.
  """
  others = {"checkpoints", "tensorboard", "report.html"}
  return {name for name in names if not others & {*name.split("/")}}


@IN_BUCKET
@pytest.mark.parametrize("apart", [True, False])
def test_it_is_what_one_host_writes(start, address, store, tmp_path, apart):
  arguments = group.arguments("sft", address, **IN_PARTS)
  finish(start("machines", arguments, apart))
  alone = tmp_path / "alone"
  tasks.run(tiny.config("sft", **IN_PARTS), alone)
  group.assert_same_lines(lines(store), tiny.lines(alone), **CLOSE)
  assert texts(store.listed()) == texts(files_below(alone))
  # The same command has nothing left to do, wherever it runs.
  before = store.listed()
  finish(start("later", arguments, apart))
  after = store.listed()
  before.pop("report.html", None)
  after.pop("report.html")  # of a run that has finished, when it is asked for
  assert after == before


@IN_BUCKET
@pytest.mark.parametrize("lost", [False, True])
def test_it_goes_on_elsewhere(start, address, store, tmp_path, lost):
  """One process is told to stop, or its host is lost."""
  fields = IN_PARTS | {"steps": 40, "eval_every": 20, "log_every": 1}
  arguments = group.arguments("sft", address, **fields)
  with start("machines", arguments) as running:
    root = tmp_path / "machines" / "host0" / "buckets"
    here = root / address.replace("://", "/")
    running.wait_for_line(here / "metrics.jsonl", 21 if lost else 3)
    if lost:
      running.kill(1)
    else:
      running.processes[1].terminate()
    status = [1, -9] if lost else [75, 75]
    assert running.wait() == status, "\n----\n".join(running.logs)
  assert store.read("summary.json") is None
  assert store.read("lock.json") is None
  saved = {name.split("/")[1] for name in store.listed() if "checkp" in name}
  assert saved and "40" not in saved
  finish(start("elsewhere", arguments))
  tasks.run(tiny.config("sft", **fields), tmp_path / "alone")
  alone = tiny.lines(tmp_path / "alone")
  group.assert_same_lines(lines(store), alone, **CLOSE)


@IN_BUCKET
def test_another_process_fails(start, address, store):
  """What process 0 has is sent, the lock is removed, and it is said once."""
  tasks.run(tiny.config("sft", steps=2), f"{address}/sft")
  fields = {
    "policy__init": f"{address}/sft",
    "reward__fn": "tests.hosts.rewards:fails_later",
    "estimator": "rloo",
    "samples_per_prompt": 2,
    "eval_every": 4,
  }
  arguments = group.arguments("rl", f"{address}/rl", **fields)
  fails = {"PERL_JAX_FAILS": "--process_id=1"}
  with start("machines", arguments, **fails) as running:
    assert running.wait() == [1, 1], "\n----\n".join(running.logs)
    said = "".join(running.logs)
  assert said.count("error: ") == 1
  names = store.listed()
  assert "rl/metrics.jsonl" in names and "rl/lock.json" not in names
  assert any(name.startswith("rl/checkpoints/1/trainable/") for name in names)


@IN_BUCKET
def test_a_stage_reads_what_an_earlier_one_has_sent(
  start, address, store, tmp_path
):
  config = tmp_path / "config.py"
  config.write_text(PIPELINE)
  finish(start("machines", [f"--config={config}", f"--workdir={address}"]))
  alone = tmp_path / "alone"
  tasks.run(pipeline(), alone)
  assert texts(store.listed()) == texts(files_below(alone))
  for stage in ("sft", "reward", "rl"):
    mine = lines(store, f"{stage}/metrics.jsonl")
    group.assert_same_lines(mine, tiny.lines(alone / stage), **CLOSE)

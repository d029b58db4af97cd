"""A trace holds the steps that were asked for, and the phases in them."""

import gzip
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from perl_jax import checkpoint, steps
from perl_jax.planning import libtpu
from perl_jax.tasks.settings import shared
from perl_jax.tasks.training import profile
from tests.tasks import tiny
from tests.tasks.training import test_loop


@pytest.fixture
def traces(monkeypatch):
  """What the profiler begins and ends, and the steps between."""
  calls = []
  monkeypatch.setattr(
    jax.profiler,
    "start_trace",
    lambda place, **_: calls.append(("start", place)),
  )
  monkeypatch.setattr(
    jax.profiler, "stop_trace", lambda: calls.append(("stop",))
  )
  return calls


def train(tmp_path, traces, traced, **changes):
  def update(state, batch, step):
    traces.append(step)
    return test_loop.update(state, batch, step)

  profile_ = profile.Profile(traced, tmp_path / "profile")
  test_loop.run(tmp_path, update=update, profile=profile_, **changes)


def test_both_ends_are_traced(tmp_path, traces):
  place = str(tmp_path / "profile")
  train(tmp_path, traces, (3, 5))
  start, stop = ("start", place), ("stop",)
  assert traces == [1, 2, start, 3, 4, 5, stop, 6, 7]


def test_the_last_step_and_none(tmp_path, traces):
  train(tmp_path / "last", traces, (7, 7))
  assert traces[6:] == [("start", str(tmp_path / "last/profile")), 7, ("stop",)]
  traces.clear()
  train(tmp_path / "none", traces, None)
  assert traces == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_that_fails_still_writes_its_trace(tmp_path, traces):
  def fail(state, step):
    raise RuntimeError("no disk")

  with pytest.raises(RuntimeError, match="no disk"):
    train(tmp_path, traces, (2, 5), evaluate=fail)
  assert traces[-2:] == [3, ("stop",)]


def test_a_run_that_goes_on_in_the_middle(tmp_path, traces):
  _, _, saver = test_loop.run(tmp_path)
  value, meta, _ = saver.saved[3]
  state = steps.TrainState(jnp.int32(value), (), jnp.int32(3))
  resumed = checkpoint.Resumed(state, meta)
  train(tmp_path, traces, (2, 5), resumed=resumed)
  assert [t if isinstance(t, int) else t[0] for t in traces] == [
    "start", 4, 5, "stop", 6, 7,
  ]  # fmt: skip


@pytest.mark.parametrize("traced", [(1,), (3, 2), (1, 5), (1, 2, 3)], ids=str)
def test_steps_of_a_trace(traced):
  config = tiny.config("sft", profile__steps=traced, steps=4)
  with pytest.raises(ValueError, match=r"config.profile.steps=.*steps=4"):
    shared.profiled_steps(config)
  config = tiny.config("sft", profile__steps=(2, 4), steps=4)
  assert shared.profiled_steps(config) == (2, 4)
  assert shared.profiled_steps(tiny.config("sft")) is None


def test_where_the_profiler_would_end_the_process(tmp_path, monkeypatch):
  monkeypatch.setattr(libtpu, "is_idle", lambda: True)
  config = tiny.config("sft", profile__steps=(2, 4), steps=4)
  with pytest.raises(ValueError, match=r"profile\.steps.*JAX_PLATFORMS=cpu"):
    profile.of(config, tmp_path)
  profile.of(tiny.config("sft"), tmp_path)


TRACED = """
import pathlib, sys
import jax, jax.numpy as jnp
from perl_jax.tasks.training import profile
double = jax.jit(lambda x: x * 2)
with profile.Profile((1, 1), pathlib.Path(sys.argv[1])) as trace:
  with trace.step(1), profile.named(profile.ROLLOUT):
    x = double(jnp.ones(8))
  trace.made(1, x)
"""


def test_a_trace_can_be_read(tmp_path):
  """Names of phases and steps, in the file that Perfetto opens.

  In a process of its own: a test that has planned for TPUs has loaded their
  library, whose profiler ends a process without one.
  """
  place = str(tmp_path / "trace")
  subprocess.run([sys.executable, "-c", TRACED, place], check=True)
  names = names_in(tmp_path / "trace")
  assert {"rollout"} <= names and any(n.startswith("step") for n in names)
  assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def names_in(place):
  """Names of the events of the only trace in a directory."""
  (path,) = place.rglob("perfetto_trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  return {event.get("name", "") for event in events}

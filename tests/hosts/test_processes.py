"""What a process knows of the others, as far as one process can show it.

tests/hosts/ runs several.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from perl_jax import hosts, main, sharding
from perl_jax.hosts import environment, processes


def test_one_process_waits_for_nobody(tmp_path):
  done = []
  hosts.barrier("here")
  hosts.on_primary("act", lambda: done.append("acted"))
  assert hosts.primary_first("make", lambda: 3) == 3
  assert hosts.is_primary() and done == ["acted"]
  assert hosts.sees(tmp_path) and not hosts.sees(tmp_path / "a" / "b")
  with pytest.raises(SystemExit, match=r"^error: no such row$"):
    hosts.fail("no such row")


def test_to_host():
  tree = {"a": jnp.arange(3), "b": np.ones(2), "c": (4, None)}
  found = hosts.to_host(tree)
  assert isinstance(found["a"], np.ndarray) and found["c"] == (4, None)
  np.testing.assert_array_equal(found["a"], [0, 1, 2])


@pytest.mark.parametrize(
  "message",
  [
    "UNKNOWN: Gloo AllGather failed: Connection reset by peer\nmore",
    "Failed to send RPC to coordination service. Either the leader task died",
  ],
)
def test_a_broken_connection_is_said_as_what_it_means(message):
  said = processes.reworded(message)
  assert said.startswith("another process of the run has ended")
  assert message.splitlines()[0] in said and "\n" not in said


def test_other_errors_are_left_alone():
  assert processes.reworded("config.steps=0") == "config.steps=0"


def mesh_of(processes_, tensor):
  """A mesh of devices of these processes, in their order."""
  devices = np.array(
    [types.SimpleNamespace(process_index=p) for p in processes_], dtype=object
  )
  return types.SimpleNamespace(
    devices=devices.reshape(-1, 1, tensor), shape={"tensor": tensor}
  )


@pytest.mark.parametrize(
  "owners, tensor, held",
  [
    ([0, 0, 1, 1], 1, {0: (0, 1), 1: (2, 3)}),
    ([0, 1, 1, 0], 1, {0: (0, 3), 1: (1, 2)}),  # as a TPU's links want it
    ([0, 0, 1, 1], 2, {0: (0,), 1: (1,)}),
    ([0, 1, 0, 1], 2, {0: (0, 1), 1: (0, 1)}),  # they split widths
    ([0, 1, 2, 3], 4, dict.fromkeys(range(4), (0,))),
  ],
)
def test_shards_of_each_process(monkeypatch, owners, tensor, held):
  for process, shards in held.items():
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    found, count = sharding.held_shards(mesh_of(owners, tensor))
    assert (found, count) == (shards, len(owners) // tensor)


def test_whole_batches_and_local_rows():
  mesh = sharding.make_mesh(data=4, fsdp=2, tensor=1)
  rows = np.arange(16 * 3).reshape(16, 3)
  for place in (sharding.place_batch, sharding.place_whole):
    (placed,) = place(mesh, (rows,))
    assert placed.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(placed, rows)
    # Laid out otherwise, as a compiled function may leave it.
    moved = jax.device_put(placed, jax.NamedSharding(mesh, jax.P()))
    np.testing.assert_array_equal(sharding.local_rows(mesh, moved), rows)


@pytest.fixture
def join(monkeypatch):
  """Returns `join(environment, **flags)`: what `hosts.join` gets, or None."""
  saved = flagsaver.save_flag_values(flags.FLAGS)
  joined = []
  monkeypatch.setattr(hosts, "join", lambda **given: joined.append(given))
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

  def join(environment=None, /, **values):
    for name, value in values.items():
      flags.FLAGS[name].value = value
    main.join_others(environment or {})
    return joined.pop() if joined else None

  yield join
  flagsaver.restore_flag_values(saved)


def test_alone_by_default(join):
  assert join() is None
  # In a batch script of SLURM, outside of srun, there is one process.
  assert join({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_flags_reach_jax(join):
  nothing = dict.fromkeys(
    ("coordinator_address", "num_processes", "process_id")
  )
  assert join(distributed=True) == nothing | {"timeout_seconds": 300}
  given = {
    "coordinator_address": "10.0.0.2:8476",
    "num_processes": 4,
    "process_id": 3,
  }
  assert join(**given, join_seconds=9) == given | {"timeout_seconds": 9}


def test_some_of_them_where_jax_finds_the_rest(join):
  found = join(coordinator_address="host:1")
  assert found["coordinator_address"] == "host:1"
  assert found["num_processes"] is None


@pytest.mark.parametrize("name", environment.LAUNCHERS.values())
def test_several_tasks_that_are_not_told_to_be_one_run(join, name):
  with pytest.raises(SystemExit, match=f"{name}=2.*Add --distributed"):
    join({name: "2"})
  assert join({name: "2"}, distributed=True) is not None
  assert join({name: "2"}, distributed=False) is None


@pytest.mark.parametrize(
  "values, said",
  [
    ({"distributed": False, "process_id": 0}, "--nodistributed and --process"),
    ({"coordinator_address": "10.0.0.2"}, "not HOST:PORT"),
    (
      {"coordinator_address": "a:1", "num_processes": 2, "process_id": 2},
      "--process_id=2 is not one of --num_processes=2",
    ),
  ],
)
def test_flags_that_are_refused(join, values, said):
  with pytest.raises(SystemExit, match=f"^error: .*{said}"):
    join(**values)


def test_what_jax_does_not_find(monkeypatch):
  """One line, with what it was given and the way out."""

  def initialize(*args, **kwargs):
    raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nRPC: ...")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  monkeypatch.setattr(jax.config, "update", lambda *args: None)
  with pytest.raises(ValueError, match="nobody there") as caught:
    hosts.join(coordinator_address="a:1", num_processes=2, process_id=0)
  message = str(caught.value)
  assert "a:1" in message and "--coordinator_address=HOST:PORT" in message
  assert "\n" not in message

"""What a checkpoint holds, which are kept, what is refused on the way back."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perl_jax import checkpoint, hosts, params, roles, sharding, steps
from perl_jax.models.lora import LoraSpec
from tests import padded, toys

# Wide, so that files around the arrays do not hide what the arrays take.
CONFIG = toys.config("small", vocab_size=400)
SPEC = LoraSpec(rank=2)
BACKBONE = roles.Backbone(CONFIG, SPEC)
OPTIMIZER = optax.adam(1e-3)


@functools.cache
def reward_role():
  """(trainable, frozen) of a reward model with every leaf drawn."""
  tree = toys.random_params(CONFIG, SPEC, head=True)
  return params.partition(tree, "lora")


@functools.cache
def mesh():
  return sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


def state(step):
  """A state in which every leaf tells the step."""
  trainable, _ = reward_role()
  start = steps.init_state(trainable, OPTIMIZER)
  moved = jax.tree.map(
    lambda x: np.asarray(x + x.dtype.type(step)), jax.device_get(start)
  )
  return sharding.place(mesh(), moved)


def write(workdir, scores, mode="max"):
  """Saves one checkpoint for each of {step: score}."""
  with checkpoint.Checkpointer(workdir, metric="m", mode=mode) as saver:
    for step, score in scores.items():
      saver.save(step, state(step), {"data": {"next": step}}, {"m": score})


def kept(workdir):
  return sorted(
    int(path.name)
    for path in (workdir / "checkpoints").iterdir()
    if path.name.isdigit()
  )


def same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for mine, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert mine.dtype == theirs.dtype
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("mode, best", [("max", 2), ("min", 3)])
def test_best_and_last_are_kept(tmp_path, mode, best):
  write(tmp_path, {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.4, 5: 0.6}, mode)
  assert kept(tmp_path) == [best, 4, 5]
  with checkpoint.Checkpointer(tmp_path, metric="m", mode=mode) as saver:
    assert (saver.best_step, saver.latest_step) == (best, 5)
    like = state(0)
    same(saver.best_trainable(like.trainable), state(best).trainable)
  trainable, _ = reward_role()
  for which, step in (("best", best), ("last", 5)):
    found = checkpoint.load_trainable(tmp_path, which, trainable)
    same(found, state(step).trainable)


def test_a_whole_model_is_read_to_where_it_belongs(tmp_path):
  """Each device gets its part, whatever mesh the writer had."""
  tree = jax.device_get(reward_role()[1])
  full = steps.init_state(sharding.place(mesh(), tree), OPTIMIZER)
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    saver.save(1, sharding.place(mesh(), full), {}, {"m": 1.0})
  spread = sharding.make_mesh(data=1, fsdp=2, tensor=2)
  found = checkpoint.load_trainable(tmp_path, "last", tree, spread)
  same(jax.device_get(found), tree)
  wanted = sharding.shardings(spread, tree)
  assert jax.tree.map(lambda x: x.sharding, found) == wanted
  kernel = found["layers"]["mlp"]["up"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_resumes_from_the_last(tmp_path):
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    assert saver.latest_step is None
    assert saver.restore(state(0)) is None
  write(tmp_path, {2: 0.9, 4: 0.1})
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    resumed = saver.restore(state(0))
  same(resumed.state, state(4))
  assert type(resumed.state) is steps.TrainState
  assert int(resumed.state.step) == 4
  assert resumed.meta == {"data": {"next": 4}}
  for leaf in jax.tree.leaves(resumed.state):
    assert leaf.sharding.mesh == mesh()


def test_best_counts_across_restarts(tmp_path):
  write(tmp_path, {1: 0.9, 2: 0.1, 3: 0.3})
  write(tmp_path, {4: 0.2})
  assert kept(tmp_path) == [1, 3, 4]


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
  """The loop goes on at once; what is written is what was there."""
  double = jax.jit(
    lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0
  )
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    now = state(1)
    saver.save(1, now, {}, {"m": 1.0})
    for _ in range(5):
      now = double(now)
  found = checkpoint.load_trainable(tmp_path, "last", reward_role()[0])
  same(found, state(1).trainable)


def test_only_what_is_trained_is_on_disk(tmp_path):
  """Walks the directory: no leaf of the base by name, nor its bytes by size."""
  write(tmp_path, {1: 0.5})
  trainable, frozen = reward_role()
  files = [p for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()]
  size = sum(path.stat().st_size for path in files)
  # Adam holds two moments; Orbax adds a few files of its own and compresses
  # all of them, by a little more or less from run to run.
  adapter, base = params.nbytes(trainable), params.nbytes(frozen)
  assert adapter < size < 3 * adapter + 40_000
  assert size < base / 8
  assert adapter / base < 0.03

  named = set()
  for path in files:
    if path.name == "_METADATA":
      tree = json.loads(path.read_text())["tree_metadata"]
      named |= {
        tuple(key["key"] for key in entry["key_metadata"])
        for entry in tree.values()
      }
  leaves = {"/".join(map(str, name)) for name in named}
  for path in params.flatten(trainable):
    assert sum(name.endswith(path) for name in leaves) == 3, path
  for path in params.flatten(frozen):
    assert not any(name.endswith(path) for name in leaves), path
  everything = b"".join(path.read_bytes() for path in files)
  assert b"lora_a" in everything
  for word in (b"embedding", b"attention_norm", b"mlp/", b"mlp."):
    assert word not in everything


def test_scores_are_the_same_after_a_reload(tmp_path):
  """A head that is lost or drawn anew would show here, bit by bit."""
  trainable, frozen = reward_role()
  tokens = toys.random_tokens(3, 4, 6, vocab=400)
  lengths = np.array([6, 2, 5, 1], np.int32)

  @jax.jit
  def scores(trainable):
    tree = params.combine(trainable, frozen)
    return padded.reward_scores(
      BACKBONE, tree, tokens, lengths, lengths - 1, max_response=1
    )

  before = scores(trainable)
  write(tmp_path, {0: 0.5})
  after = scores(checkpoint.load_trainable(tmp_path, "best", trainable))
  np.testing.assert_array_equal(before, after)
  assert len(set(np.asarray(before).tolist())) == 4
  headless = scores(trainable | roles.init_head(CONFIG))
  assert np.all(np.asarray(headless) == 0.0)


def without_head(trainable):
  return {name: leaf for name, leaf in trainable.items() if name != "head"}


def test_leaves_that_do_not_fit_are_refused(tmp_path):
  write(tmp_path, {1: 0.5})
  trainable, _ = reward_role()
  load = functools.partial(checkpoint.load_trainable, tmp_path, "best")
  with pytest.raises(ValueError, match=r"extra: \['head/bias', 'head/kernel'"):
    load(without_head(trainable))
  more = trainable | {"value_head": {"kernel": np.zeros(3, np.float32)}}
  with pytest.raises(ValueError, match=r"missing: \['value_head/kernel'\]"):
    load(more)
  other = jax.eval_shape(
    lambda: (
      roles.init_adapter(jax.random.key(0), CONFIG, LoraSpec(rank=3))
      | roles.init_head(CONFIG)
    )
  )
  layers = CONFIG.num_layers
  with pytest.raises(ValueError, match=rf"a: \({layers}, 128, 2\), expected"):
    load(other)


def test_half_written_checkpoints_are_ignored(tmp_path):
  """A kill leaves a directory under Orbax's temporary name."""
  write(tmp_path, {1: 0.9, 2: 0.5})
  directory = tmp_path / "checkpoints"
  torn = directory / "3.orbax-checkpoint-tmp"
  (torn / "trainable.orbax-checkpoint-tmp").mkdir(parents=True)
  (torn / "trainable.orbax-checkpoint-tmp" / "_METADATA").write_text('{"tre')
  trainable, _ = reward_role()
  same(
    checkpoint.load_trainable(tmp_path, "last", trainable), state(2).trainable
  )
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    resumed = saver.restore(state(0))
    assert int(resumed.state.step) == 2
    saver.save(3, state(3), {}, {"m": 0.1})
  assert not torn.exists()
  assert kept(tmp_path) == [1, 2, 3]


def test_nothing_to_load(tmp_path):
  trainable, _ = reward_role()
  with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
    checkpoint.load_trainable(tmp_path, "best", trainable)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
    checkpoint.load_trainable(tmp_path, "last", trainable)
  with pytest.raises(ValueError, match="choose 'best' or 'last'"):
    checkpoint.load_trainable(tmp_path, "newest", trainable)
  assert list((tmp_path / "checkpoints").iterdir()) == []


def test_mode_is_checked(tmp_path):
  with pytest.raises(ValueError, match="mode='most'"):
    checkpoint.Checkpointer(tmp_path, metric="m", mode="most")
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_score_that_is_not_finite_stops_the_run(tmp_path, score):
  """Orbax takes NaN for the best and would remove what really is."""
  with pytest.raises(FloatingPointError, match=r"m=\w+ after step 3"):
    write(tmp_path, {1: 0.5, 2: 0.1, 3: score})
  assert kept(tmp_path) == [1, 2]


def test_state_that_holds_counters_alone(tmp_path):
  """A plain optimiser has no arrays; step and counters are still restored."""
  trainable, _ = reward_role()
  start = steps.init_state(trainable, optax.sgd(1.0))
  placed = sharding.place(mesh(), start)._replace(step=jnp.int32(7))
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    saver.save(7, placed, {}, {"m": 1.0})
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    resumed = saver.restore(sharding.place(mesh(), start))
  assert int(resumed.state.step) == 7
  same(resumed.state.opt_state, placed.opt_state)


def test_controls_are_restored(tmp_path):
  """What a task adapts goes on where it was; a state without has none."""
  trainable, _ = reward_role()
  start = steps.init_state(trainable, optax.sgd(1.0), beta=0.5)
  assert start.controls == {"beta": np.float32(0.5)}
  placed = sharding.place(mesh(), start)
  moved = placed._replace(controls={"beta": placed.controls["beta"] * 3})
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    saver.save(1, moved, {}, {"m": 1.0})
  with checkpoint.Checkpointer(tmp_path, metric="m", mode="max") as saver:
    resumed = saver.restore(placed)
  same(resumed.state.controls, moved.controls)
  assert steps.init_state(trainable, optax.sgd(1.0)).controls == ()


def test_processes_wait_for_each_other_before_the_first_makes_a_directory(
  tmp_path, monkeypatch
):
  """Else one that is late sees the directory, and waits where nobody comes."""
  waits = []

  def barrier(name):
    waits.append((name, (tmp_path / checkpoint.DIRECTORY).exists()))

  monkeypatch.setattr(hosts, "barrier", barrier)
  for _ in range(2):
    checkpoint.Checkpointer(tmp_path, metric="loss", mode="min").close()
  names = [name for name, _ in waits]
  assert names[:2] == names[2:] == ["checkpoints looked at", names[1]]
  assert [there for _, there in waits] == [False, False, True, True]

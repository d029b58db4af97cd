"""Ensembles: members trained together are members trained alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import optim, params, roles, scoring, steps
from perl_jax.data import packed_loader
from perl_jax.data.batches import member_rows
from perl_jax.data.batches.packed_responses import Layout
from perl_jax.models.lora import LoraSpec
from tests import toys
from tests.steps import cases

MEMBERS, UPDATES = 3, 3


BASE = toys.random_params(cases.CONFIG)


def adam():
  """Clips, so that a norm over all members would show."""
  return optim.make_optimizer(
    name="adamw",
    schedule=optim.make_schedule(
      name="constant", learning_rate=1e-2, warmup_steps=0, total_steps=9
    ),
    b1=0.9,
    b2=0.99,
    weight_decay=0.0,
    clip_norm=0.05,
  )


@functools.cache
def adapters(spec=cases.SPEC, members=MEMBERS):
  trees = [
    params.partition(
      toys.random_params(cases.CONFIG, spec, head=True, seed=k), "lora"
    )[0]
    for k in range(members)
  ]
  return [jax.tree.map(jnp.asarray, tree) for tree in trees]


def loss(name):
  if name == "pairwise":
    batch = cases.preference_batch()
    return steps.pairwise_loss(cases.DROPOUT, max_response=6), batch
  batch = cases.labelled_batch()
  return steps.pointwise_loss(cases.DROPOUT, max_response=6), batch


@pytest.mark.parametrize(
  "name, own_rows", [("pairwise", False), ("pointwise", True)]
)
def test_members_end_where_they_would_have_alone(name, own_rows):
  """With dropout, clipping and microbatches, over several updates."""
  loss_fn, batch = loss(name)
  given = batch
  if own_rows:
    pack = packed_loader.TrainPacker(
      Layout(responses=1),
      rows={0: 2},
      members=member_rows.Subsets(7, members=MEMBERS, share=0.5, seed=0),
    )
    given = pack(cases.labelled(), 0, 7)
    assert given.valid.shape == (2, MEMBERS, 4) and given.valid.sum() == 12
  step = jax.jit(
    steps.make_ensemble_step(
      loss_fn, adam(), members=MEMBERS, own_rows=own_rows, microbatches=2
    )
  )
  trees = [{"reward": tree} for tree in adapters()]
  state = steps.init_ensemble(params.stack(trees), adam())
  metrics = []
  for number in range(UPDATES):
    state, found = step(state, BASE, given, jax.random.key(number))
    metrics.append(found)
  assert state.step == UPDATES
  alone_step = jax.jit(steps.make_train_step(loss_fn, adam(), microbatches=2))
  alone_metrics = [[] for _ in range(UPDATES)]
  for k in range(MEMBERS):
    mine = batch
    if own_rows:
      mine = type(batch)(*(leaf[:, k] for leaf in given))
    alone = steps.init_state(trees[k], adam())
    for number in range(UPDATES):
      key = jax.random.fold_in(jax.random.key(number), k)
      alone, found = alone_step(alone, BASE, mine, key)
      alone_metrics[number].append(found)
    cases.close_trees(
      params.member(state.trainable, k), alone.trainable, trees[k], 1e-3
    )
    for leaf, other in zip(
      jax.tree.leaves(params.member(state.opt_state, k)),
      jax.tree.leaves(alone.opt_state),
      strict=True,
    ):
      np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-7)
  for found, each in zip(metrics, alone_metrics, strict=True):
    for key, value in found.items():
      mean = np.mean([m[key] for m in each])
      np.testing.assert_allclose(value, mean, rtol=1e-4, atol=1e-5)


def rollouts():
  batch = cases.rl_batch()
  return (
    batch.prompts,
    batch.prompt_lengths,
    batch.responses[:, 0],
    batch.response_mask[:, 0],
  )


def test_scores_of_all_members_in_one_pass():
  backbone = roles.Backbone(cases.CONFIG, cases.SPEC)
  together = jax.jit(scoring.make_rewards(backbone, members=MEMBERS))
  found = together(params.stack(adapters()), BASE, *rollouts())
  assert found.shape == (MEMBERS, cases.ROWS)
  one = jax.jit(scoring.make_rewards(backbone))
  for k, tree in enumerate(adapters()):
    np.testing.assert_allclose(
      found[k], one(tree, BASE, *rollouts()), rtol=1e-5, atol=1e-5
    )
  assert np.ptp(found, axis=0).min() > 0.01


@pytest.mark.parametrize("rslora", [False, True])
def test_average_is_that_of_the_merged_kernels(rslora):
  """Not of A and B apart: that would mix members."""
  spec = LoraSpec(rank=2, alpha=3.0, rslora=rslora, targets="all")
  trees = adapters(spec)
  wide, shape = params.average_members(params.stack(trees), spec)
  assert shape.rank == 2 * MEMBERS and shape.rslora == rslora
  merged = params.flatten(params.merge(BASE, wide, shape))
  each = [params.flatten(params.merge(BASE, tree, spec)) for tree in trees]
  scales = []
  for path, leaf in merged.items():
    mean = np.mean([np.asarray(e[path], np.float64) for e in each], axis=0)
    np.testing.assert_allclose(leaf, mean, rtol=1e-5, atol=1e-6, err_msg=path)
    scales.append(np.abs(mean - params.flatten(BASE)[path]).max())
  assert max(scales) > 0.1  # the adapters do something
  for name, leaf in params.flatten(wide[params.HEAD]).items():
    expected = np.mean([t[params.HEAD][name] for t in trees], axis=0)
    np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_average_scores_as_the_merged_model():
  spec = LoraSpec(rank=2, alpha=3.0)
  wide, shape = params.average_members(params.stack(adapters(spec)), spec)
  score = jax.jit(scoring.make_rewards(roles.Backbone(cases.CONFIG, shape)))
  found = score(wide, BASE, *rollouts())
  plain = jax.jit(
    scoring.make_rewards(roles.Backbone(cases.CONFIG, toys.NO_LORA))
  )
  each = [params.merge(BASE, tree, spec) for tree in adapters(spec)]
  mean = jax.tree.map(lambda *x: sum(x) / len(x), *each)
  head = {params.HEAD: wide[params.HEAD]}
  expected = plain(mean | head, {}, *rollouts())
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

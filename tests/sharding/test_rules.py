"""Rules that cover every leaf, meshes, and sharding that changes nothing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from perl_jax import optim, roles, sharding, steps
from perl_jax import params as params_lib
from perl_jax.models import presets
from perl_jax.models.lora import LoraSpec
from tests import padded, toys

LORA = LoraSpec(rank=4, targets="all")
MESHES = {
  "data": dict(data=8, fsdp=1, tensor=1),
  "fsdp": dict(data=4, fsdp=2, tensor=1),
  "tensor": dict(data=2, fsdp=2, tensor=2),
}


def test_eight_devices():
  """conftest.py came before jax."""
  assert jax.default_backend() == "cpu"
  assert len(jax.devices()) == 8


@pytest.mark.parametrize(
  ("sizes", "expected"),
  [
    (dict(data=-1, fsdp=1, tensor=1), (8, 1, 1)),
    (dict(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
    (dict(data=8, fsdp=1, tensor=1), (8, 1, 1)),
    (dict(data=1, fsdp=1, tensor=1), (1, 1, 1)),
    (dict(data=1, fsdp=3, tensor=2), (1, 3, 2)),
  ],
)
def test_mesh_sizes(sizes, expected):
  mesh = sharding.make_mesh(**sizes)
  assert tuple(mesh.shape.values()) == expected
  assert mesh.axis_names == ("data", "fsdp", "tensor")
  # Explicit axes would make an embedding look-up fail.
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  first = jax.devices()[: np.prod(expected)]
  assert {d.id for d in mesh.devices.flat} == {d.id for d in first}


@pytest.mark.parametrize(
  "sizes",
  [
    dict(data=9, fsdp=1, tensor=1),
    dict(data=4, fsdp=4, tensor=1),
    dict(data=-1, fsdp=3, tensor=1),
    dict(data=-1, fsdp=-1, tensor=1),
    dict(data=0, fsdp=1, tensor=1),
    dict(data=-1, fsdp=0, tensor=1),
    dict(data=-2, fsdp=1, tensor=1),
    dict(data=-1, fsdp=16, tensor=1),
  ],
)
def test_meshes_that_do_not_fit_are_refused(sizes):
  named = f"data={sizes['data']}, fsdp={sizes['fsdp']}, tensor=1 does not fit"
  with pytest.raises(ValueError, match=f"{named} 8 devices"):
    sharding.make_mesh(**sizes)


def optimizer_states(trainable):
  schedule = optim.make_schedule(
    name="cosine", learning_rate=0.1, warmup_steps=2, total_steps=9
  )
  for name in optim.OPTIMIZERS:
    optimizer = optim.make_optimizer(
      name=name,
      schedule=schedule,
      b1=0.9,
      b2=0.99,
      weight_decay=0.1 if name == "adamw" else 0.0,
      clip_norm=1.0,
    )
    yield jax.eval_shape(
      functools.partial(steps.init_state, optimizer=optimizer), trainable
    )


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_rules_cover_every_leaf_and_every_shape_divides(name):
  """Of LoRA and full tuning, with heads, and of each optimiser's state."""
  cfg = presets.preset(name, vocab_size=4096)
  adapted = toys.shapes(cfg, LORA, head=True)
  trainable, _ = params_lib.partition(adapted, "lora")
  whole = toys.shapes(cfg, head=True)
  trees = [adapted, *optimizer_states(whole)]
  trees += optimizer_states({"policy": trainable, "value": trainable})
  for mesh, tree in itertools.product(MESHES, trees):
    found = sharding.shardings(sharding.make_mesh(**MESHES[mesh]), tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for leaf, where in zip(jax.tree.leaves(tree), jax.tree.leaves(found)):
      where.shard_shape(leaf.shape)  # raises where an axis does not divide


@pytest.mark.parametrize(
  ("path", "ndim", "expected"),
  [
    ("embedding", 2, P("tensor", "fsdp")),
    ("lm_head", 2, P("fsdp", "tensor")),
    ("layers/attention/q/kernel", 3, P(None, "fsdp", "tensor")),
    ("layers/attention/o/kernel", 3, P(None, "tensor", "fsdp")),
    ("layers/mlp/down/kernel", 3, P(None, "tensor", "fsdp")),
    ("layers/mlp/up/bias", 2, P(None, "tensor")),
    ("layers/attention/o/bias", 2, P()),
    ("layers/attention/q/lora_a", 3, P()),
    ("layers/mlp/down/lora_b", 3, P()),
    ("layers/attention/q_norm/scale", 2, P()),
    ("final_norm/scale", 1, P()),
    ("head/kernel", 1, P()),
    ("opt_state/1/0/mu/layers/mlp/gate/kernel", 3, P(None, "fsdp", "tensor")),
    ("opt_state/1/0/mu/policy/head/bias", 0, P()),
    # A factored moment of Adafactor has lost an axis.
    ("opt_state/0/v_row/layers/mlp/gate/kernel", 2, P()),
    ("step", 0, P()),
  ],
)
def test_rules(path, ndim, expected):
  assert sharding.spec_for(path, ndim) == expected


def test_a_path_without_a_rule_is_an_error():
  with pytest.raises(
    ValueError, match=r"'layers/router/kernel'.*sharding\.RULES"
  ):
    sharding.spec_for("layers/router/kernel", 3)
  mesh = sharding.make_mesh(**MESHES["data"])
  with pytest.raises(ValueError, match=r"'layers/mlp/gate/scales'"):
    sharding.shardings(
      mesh, {"layers": {"mlp": {"gate": {"scales": np.zeros(3)}}}}
    )


def test_path_string_of_nested_states():
  state = optax.adamw(0.1).init({"a": {"b": jnp.zeros(2)}})
  paths = [
    sharding.path_string(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(state)
  ]
  assert paths == ["0/count", "0/mu/a/b", "0/nu/a/b"]


@pytest.mark.parametrize("mesh", ["one", "tensor"])
def test_placed_leaves_survive_the_donation_of_their_source(mesh):
  """Policy and anchor start from the same arrays, and a step donates one."""
  sizes = MESHES.get(mesh, dict(data=1, fsdp=1, tensor=1))
  mesh = sharding.make_mesh(**sizes)
  first = sharding.place(mesh, {"embedding": np.ones((4, 4), np.float32)})
  second = sharding.place(mesh, first)
  bump = jax.jit(
    lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0
  )
  bumped = bump(first)
  np.testing.assert_array_equal(bumped["embedding"], np.full((4, 4), 2.0))
  np.testing.assert_array_equal(second["embedding"], np.ones((4, 4)))
  assert first["embedding"].is_deleted()
  assert second["embedding"].sharding.spec == P("tensor", "fsdp")


def test_place_batch_splits_rows():
  mesh = sharding.make_mesh(**MESHES["tensor"])
  batch = {"tokens": np.arange(24).reshape(8, 3), "lengths": np.arange(8)}
  found = sharding.place_batch(mesh, batch)
  for name, leaf in found.items():
    np.testing.assert_array_equal(leaf, batch[name])
    assert leaf.sharding.spec == P(("data", "fsdp"))
    assert {s.data.shape[0] for s in leaf.addressable_shards} == {2}


def test_place_batch_refuses_rows_that_do_not_divide():
  mesh = sharding.make_mesh(**MESHES["fsdp"])
  with pytest.raises(ValueError, match=r"batch of 6 rows.*mesh\.fsdp = 8"):
    sharding.place_batch(mesh, {"tokens": np.zeros((6, 3))})


CONFIG = toys.config("gemma3_tiny", vocab_size=32)
BACKBONE = roles.Backbone(CONFIG, LORA)


def score(params, tokens, lengths):
  """Everything that a role measures, and a gradient of it."""

  def total(head):
    sequence = roles.right_padded(tokens, lengths)
    scores = roles.response_logprobs(
      BACKBONE, params, sequence, response_len=4, temperature=1.0
    )
    rewards = padded.reward_scores(
      BACKBONE, params | head, tokens, lengths, lengths - 1, max_response=1
    )
    return jnp.sum(rewards**2), (scores.logprobs, rewards)

  head = {params_lib.HEAD: params[params_lib.HEAD]}
  (_, found), grads = jax.value_and_grad(total, has_aux=True)(head)
  return found, grads


@functools.cache
def inputs():
  params = toys.random_params(CONFIG, LORA, head=True)
  lengths = np.array([9, 5, 7, 9, 6, 8, 9, 5], np.int32)
  return params, toys.random_tokens(70, 8, 9, vocab=32), lengths


@functools.cache
def unsharded():
  params, tokens, lengths = inputs()
  return jax.device_get(jax.jit(score)(params, tokens, lengths))


@pytest.mark.parametrize("name", MESHES)
def test_sharded_equals_unsharded(name):
  """Log-probs, rewards and the head's gradient, up to reassociation."""
  mesh = sharding.make_mesh(**MESHES[name])
  params, tokens, lengths = inputs()
  placed = sharding.place(mesh, params)
  kernel = placed["layers"]["attention"]["q"]["kernel"]
  assert kernel.sharding.spec == P(None, "fsdp", "tensor")
  shard = kernel.addressable_shards[0].data.shape
  sizes = MESHES[name]
  assert shard == (2, 32 // sizes["fsdp"], 32 // sizes["tensor"])
  batch = sharding.place_batch(mesh, (tokens, lengths))
  with jax.set_mesh(mesh):
    found, grads = jax.jit(score)(placed, *batch)
  (logprobs, rewards), expected_grads = unsharded()
  # Of float32 sums in another order, over two layers.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
  close(found[0], logprobs)
  close(found[1], rewards)
  jax.tree.map(close, grads, expected_grads)

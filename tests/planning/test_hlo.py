"""What a compiled program moves: of texts by hand, and of programs of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from perl_jax import params as params_lib
from perl_jax import roles, sharding
from perl_jax.models import presets, quantization
from perl_jax.models.lora import LoraSpec
from perl_jax.planning import hlo, hlo_text
from perl_jax.tasks.dry_run import abstract


def moved(text):
  return hlo.Module(text).moved()


def compiled(fn, *args):
  return jax.jit(fn).lower(*args).compile().as_text()


@pytest.mark.parametrize(
  "shape, whole, in_hbm",
  [
    ("f32[4,8]{1,0}", 128, 128),
    ("bf16[3]{0:T(256)(128)(2,1)}", 6, 6),
    ("bf16[3]{0:T(256)S(1)}", 6, 0),
    ("(f32[2]{0}, s4[8]{0}, pred[])", 8 + 4 + 1, 8 + 4 + 1),
    ("f8e4m3fn[10]", 10, 10),
    ("token[]", 0, 0),
  ],
)
def test_bytes_of_a_shape(shape, whole, in_hbm):
  assert hlo_text.shape_bytes(shape) == whole
  assert hlo_text.shape_bytes(shape, hbm=True) == in_hbm


LOOP = """HloModule m

%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[], /*index=1*/f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[4,4]{1,0} fusion(%x), kind=kOutput, calls=%inside, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %t = (s32[], f32[4,4]{1,0}) tuple(%next, %y)
}

%inside (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  ROOT %b = f32[4,4]{1,0} negate(%a)
}

%condition (q: (s32[], f32[4,4])) -> pred[] {
  %q = (s32[], f32[4,4]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (z: f32[4,4]) -> f32[4,4] {
  %z = f32[4,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,4]{1,0}) tuple(%zero, %z)
  %kernel = f32[4,4]{1,0} custom-call(%z), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": "{}"
}}, metadata={op_name="splash"}
  %w = (s32[], f32[4,4]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[4,4]{1,0} get-tuple-element(%w), index=1
}
"""  # noqa: E501


def test_a_loop_counts_each_trip():
  found = moved(LOOP)
  assert found.loops == [("w", 6)]
  assert found.cycles == 6 * 100
  counter = 2 * 4 + 4  # read i and 1 (a constant is free), write the sum
  fusion, kernel = 2 * 64, 2 * 64
  assert found.hbm_bytes == 6 * (fusion + counter - 4) + kernel


def test_a_loop_without_a_limit_is_an_error():
  with pytest.raises(ValueError, match="trip count of w is unknown"):
    moved(LOOP.replace("constant(6)", "parameter(1)"))


def test_no_program_is_an_error():
  with pytest.raises(ValueError, match="not the text of an HLO"):
    moved("hello")


def entry(line, *, others=""):
  return (
    f"HloModule m\n{others}\nENTRY %main (x: f32[8,16]) -> f32[] {{\n"
    "  %x = f32[8,16]{1,0} parameter(0)\n"
    f"  {line}\n}}\n"
  )


@pytest.mark.parametrize(
  "groups, devices",
  [
    ("{{0,1,2,3},{4,5,6,7}}", 4),
    ("[2,4]<=[8]", 4),
    ("mesh['a'=2,'b'=4] {'b'}", 4),
    ("mesh['a'=2,'b'=4] {'a','b'}", 8),
  ],
)
@pytest.mark.parametrize(
  "kind, factor",
  [
    ("all-gather", lambda n: n - 1),
    ("all-reduce", lambda n: 2 * (n - 1) / n),
    ("reduce-scatter", lambda n: (n - 1) / n),
    ("all-to-all", lambda n: (n - 1) / n),
  ],
)
def test_what_a_device_sends(kind, factor, groups, devices):
  line = f"ROOT %y = f32[8,16]{{1,0}} {kind}(%x), replica_groups={groups}"
  found = moved(entry(line))
  assert found.collective_bytes == {kind: 8 * 16 * 4 * factor(devices)}
  assert found.collectives == 1


def test_a_collective_spread_over_fusions_counts_once():
  part = """
%part{n} (a: f32[8,16]) -> f32[16,16] {{
  %a = f32[8,16]{{1,0}} parameter(0)
  ROOT %g = f32[16,16]{{1,0}} all-gather(%a), channel_id=7, replica_groups={{{{0,1}}}}
}}
"""  # noqa: E501
  lines = "\n  ".join(
    f"%f{n} = f32[16,16]{{1,0}} fusion(%x), calls=%part{n}" for n in range(3)
  )
  others = "".join(part.format(n=n) for n in range(3))
  found = moved(entry(lines, others=others))
  assert found.collective_bytes == {"all-gather": 8 * 16 * 4}


def test_slices_pay_for_the_slice_and_updates_for_the_update():
  slicing = """
%inside (a: f32[8,16], i: s32[]) -> f32[1,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %s = f32[1,16]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,16}
}
"""  # noqa: E501
  line = (
    "%c = s32[] constant(3)\n"
    "  ROOT %y = f32[1,16]{1,0} fusion(%x, %c), kind=kLoop, calls=%inside"
  )
  # A slice read, the same written; the index is small change.
  assert moved(entry(line, others=slicing)).hbm_bytes == 2 * 16 * 4 + 4
  line = (
    "%u = f32[1,16]{1,0} slice(%x), slice={[0:1], [0:16]}\n"
    "  %c = s32[] constant(3)\n"
    "  ROOT %y = f32[8,16]{1,0} dynamic-update-slice(%x, %u, %c, %c)"
  )
  assert moved(entry(line)).hbm_bytes == (2 + 2) * 16 * 4


def test_a_slice_within_a_fusion_within_a_fusion():
  others = """
%inner (a: f32[128], i: s32[]) -> f32[16] {
  %a = f32[128]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[16]{0} dynamic-slice(%a, %i), dynamic_slice_sizes={16}
}

%outer (b: f32[8,16], j: s32[]) -> f32[16] {
  %b = f32[8,16]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %flat = f32[128]{0} bitcast(%b)
  %part = f32[16]{0} fusion(%flat, %j), kind=kLoop, calls=%inner
  ROOT %n = f32[16]{0} negate(%part)
}
"""
  line = (
    "%c = s32[] constant(3)\n"
    "  ROOT %y = f32[16]{0} fusion(%x, %c), kind=kLoop, calls=%outer"
  )
  assert moved(entry(line, others=others)).hbm_bytes == 2 * 16 * 4 + 4
  # Read as a whole beside, it is all there is to pay for.
  whole = others.replace("negate(%part)", "add(%part, %b)")
  assert moved(entry(line, others=whole)).hbm_bytes == (128 + 16) * 4 + 4


def test_on_chip_memory_is_free():
  line = "ROOT %y = f32[8,16]{1,0:T(8,128)S(1)} negate(%x)"
  assert moved(entry(line)).hbm_bytes == 8 * 16 * 4


def test_a_program_of_jax_counts_its_loop():
  def fn(x, w):
    return jax.lax.scan(lambda c, k: (jnp.tanh(c @ k), None), x, w)[0]

  trips, width = 11, 64
  args = (
    np.ones((8, width), np.float32),
    np.ones((trips, width, width), np.float32),
  )
  found = moved(compiled(fn, *args))
  assert [n for _, n in found.loops] == [trips]
  weights = trips * width * width * 4
  assert weights <= found.hbm_bytes < 4 * weights


@pytest.mark.parametrize("axis, kind", [("fsdp", "all-gather")])
def test_a_program_of_jax_sends_what_it_gathers(axis, kind):
  mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
  split, whole = NamedSharding(mesh, P(axis)), NamedSharding(mesh, P())
  x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split)
  text = (
    jax.jit(lambda x: x * 2, out_shardings=whole).lower(x).compile().as_text()
  )
  assert moved(text).collective_bytes == {kind: 64 * 32 * 4 * 7 / 8}


@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
def test_training_gathers_kernels_and_moves_no_activations(base_dtype):
  """What a layer computes with is gathered; see `sharding.gather`."""
  mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
  model = presets.preset("tiny", vocab_size=64, max_len=16)
  backbone = roles.Backbone(model, LoraSpec())
  base = abstract.abstract_base(mesh, model, base_dtype)
  rows = NamedSharding(mesh, P(sharding.BATCH_AXES))
  tokens = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=rows)

  def forward(base, tokens):
    lengths = jnp.full(8, 16)
    sequence = roles.right_padded(tokens, lengths)
    return roles.hidden_states(backbone, base, sequence)

  with jax.set_mesh(mesh):
    jitted = jax.jit(forward, out_shardings=rows)
    found = moved(jitted.lower(base, tokens).compile().as_text())
  leaves = params_lib.flatten(base)
  kernels = quantization.nbytes(
    [leaf for path, leaf in leaves.items() if path.endswith("kernel")]
  )
  others = {
    k: v for k, v in found.collective_bytes.items() if k != "all-gather"
  }
  embedded = 8 * 16 * model.width * 4 * 8  # looked up by parts of the width
  assert sum(others.values()) <= embedded
  assert 0 < found.collective_bytes["all-gather"] <= kernels

"""The decoder against a slow NumPy one, and what must not change its states.

All of it for each family of open models at toy size. One compiled forward pass
of shape [4, 14] serves most tests of a family.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perl_jax import params as params_lib
from perl_jax import roles
from perl_jax.models import kv_cache, transformer
from perl_jax.objectives import language_model
from perl_jax.segments import PREFIX
from tests import toys
from tests.models import reference
from tests.models.rows import BATCH, TIME, A, B, C, D, layout

# States have size 1 to 4, logits up to 10; float32 against float64.
AGAINST_NUMPY = dict(rtol=2e-5, atol=2e-5)
# The same numbers added in another order.
REASSOCIATED = dict(rtol=1e-5, atol=1e-5)
families = pytest.mark.parametrize("name", toys.FAMILIES)


@functools.cache
def model(name):
  """(config, params, forward) of a family; forward gives (states, logits)."""
  cfg = toys.config(name)
  backbone = roles.Backbone(cfg, toys.NO_LORA)

  @jax.jit
  def forward(params, tokens, positions, segments):
    sequence = roles.Sequence(tokens, positions, segments)
    hidden = roles.hidden_states(backbone, params, sequence)
    kernel = roles.head_kernel(cfg, params)
    return hidden, language_model.head_logits(
      hidden, kernel, softcap=cfg.final_softcap
    )

  return cfg, toys.random_params(cfg), forward


def refilled(arrays, fill):
  """The same rows with other tokens in the padding."""
  tokens, positions, segments = arrays
  return np.where(segments > 0, tokens, fill), positions, segments


def states(name, arrays):
  _, params, forward = model(name)
  return np.asarray(forward(params, *arrays)[0])


@families
def test_forward_equals_numpy(name):
  cfg, params, forward = model(name)
  arrays = layout([[(0, A)], [(0, B)], [(5, B)], [(0, C), (6, D)]])
  hidden, logits = jax.device_get(forward(params, *arrays))
  for row, start, ids in (
    (0, 0, A),
    (1, 0, B),
    (2, 5, B),
    (3, 0, C),
    (3, 6, D),
  ):
    columns = slice(start, start + len(ids))
    np.testing.assert_allclose(
      hidden[row, columns],
      reference.hidden_states(cfg, params, ids),
      **AGAINST_NUMPY,
    )
    np.testing.assert_allclose(
      logits[row, columns],
      reference.logits(cfg, params, ids),
      **AGAINST_NUMPY,
    )


@families
def test_padding_side_changes_nothing(name):
  arrays = layout([[(0, B)], [(5, B)], [(2, B)], [(0, A)]])
  right, left, middle, _ = states(name, arrays)
  np.testing.assert_allclose(left[5:], right[:9], **REASSOCIATED)
  np.testing.assert_allclose(middle[2:11], right[:9], **REASSOCIATED)


@families
def test_padding_tokens_change_no_bit(name):
  """Also when the pad id is a token of the sequence, such as its last."""
  arrays = layout([[(0, B)], [(5, B)], [(2, C)], [(0, C), (8, C)]])
  real = arrays[2] > 0
  plain = states(name, arrays)
  for fill in (int(B[-1]), toys.random_tokens(9, BATCH, TIME)):
    again = states(name, refilled(arrays, fill))
    np.testing.assert_array_equal(again[real], plain[real])


@families
def test_batch_order_and_company_change_nothing(name):
  rows = [[(0, A)], [(0, B)], [(8, C)], [(0, C), (6, D)]]
  arrays = layout(rows)
  plain = states(name, arrays)
  order = [2, 0, 3, 1]
  shuffled = states(name, layout([rows[i] for i in order]))
  real = arrays[2][order] > 0
  np.testing.assert_allclose(shuffled[real], plain[order][real], **REASSOCIATED)
  other = toys.random_tokens(5, TIME)
  company = states(name, layout([rows[0]] + [[(0, other)]] * 3))
  np.testing.assert_allclose(company[0], plain[0], **REASSOCIATED)


@pytest.mark.parametrize("name", ["mistral_tiny", "qwen3_tiny"])
def test_batch_size_and_length_change_nothing(name):
  """Row B alone, without padding, is row B in the batch of [4, 14].

  The test of cached decoding compares a batch of 3 with it, for each family.
  """
  in_batch = states(name, layout([[(0, A)], [(5, B)], [(0, C)], [(0, D)]]))
  alone = states(name, layout([[(0, B)]], time=len(B)))
  np.testing.assert_allclose(alone[0], in_batch[1, 5:], **REASSOCIATED)


@families
def test_packed_sequences_are_separate_rows(name):
  packed, _, first, second = states(
    name, layout([[(0, C), (6, D)], [(0, A)], [(0, C)], [(0, D)]])
  )
  np.testing.assert_allclose(packed[:6], first[:6], **REASSOCIATED)
  np.testing.assert_allclose(packed[6:], second[:8], **REASSOCIATED)


@families
def test_segments_and_the_future_are_invisible(name):
  """A changed token leaves what may not see it the same to the bit."""
  arrays = layout([[(0, C), (6, D)], [(0, A)], [(0, B)], [(3, B)]])
  plain = states(name, arrays)
  tokens = arrays[0].copy()
  tokens[0, 3] = (tokens[0, 3] + 1) % toys.VOCAB
  tokens[1, 7] = (tokens[1, 7] + 1) % toys.VOCAB
  changed = states(name, (tokens, *arrays[1:]))
  np.testing.assert_array_equal(changed[0, 6:], plain[0, 6:])
  np.testing.assert_array_equal(changed[0, :3], plain[0, :3])
  np.testing.assert_array_equal(changed[1, :7], plain[1, :7])
  for row, column in ((0, 3), (0, 4), (1, 7), (1, 8)):
    assert np.abs(changed[row, column] - plain[row, column]).max() > 1e-3


def shared_layout(prefix, branches, time=TIME):
  """One row: a prefix after a column of padding, then its continuations."""
  arrays = layout([[(1, prefix)]], time)
  tokens, positions, segments = arrays
  segments *= PREFIX
  start = 1 + len(prefix)
  for number, ids in enumerate(branches, start=1):
    columns = slice(start, start + len(ids))
    tokens[0, columns] = ids
    positions[0, columns] = len(prefix) + np.arange(len(ids))
    segments[0, columns] = PREFIX + number
    start += len(ids)
  return arrays


@families
def test_continuations_of_a_shared_prefix_are_rows_of_their_own(name):
  """Prefix of 4, continuations of 5 and 3: past the window of 5 tokens."""
  cfg, params, _ = model(name)
  one = shared_layout(A[:4], [B[:5], D[:3]])
  arrays = [np.concatenate([x] * BATCH) for x in one]
  found = states(name, arrays)[0]
  first = reference.hidden_states(cfg, params, [*A[:4], *B[:5]])
  second = reference.hidden_states(cfg, params, [*A[:4], *D[:3]])
  np.testing.assert_allclose(found[1:10], first, **AGAINST_NUMPY)
  np.testing.assert_allclose(found[10:13], second[4:], **AGAINST_NUMPY)


def test_a_shared_prefix_sees_no_continuation_and_these_not_each_other():
  arrays = shared_layout(A[:4], [B[:5], D[:3]])
  rows = [np.concatenate([x] * BATCH) for x in arrays]
  # Row 1: another token in the first continuation; row 2: in the second.
  rows[0][1, 6] = (rows[0][1, 6] + 1) % toys.VOCAB
  rows[0][2, 10] = (rows[0][2, 10] + 1) % toys.VOCAB
  found = states("gemma3_tiny", rows)
  moved = (np.abs(found - found[0]).max(axis=-1) > 0) & (rows[2] != 0)
  assert np.flatnonzero(moved[1]).tolist() == [6, 7, 8, 9]
  assert np.flatnonzero(moved[2]).tolist() == [10, 11, 12]


def test_window_hides_what_is_too_far_back():
  """Two layers of window 5 see 8 tokens back together, and no further."""
  arrays = layout([[(0, A)]] * BATCH)
  plain = states("mistral_tiny", arrays)[0]
  tokens = arrays[0].copy()
  tokens[:, 2] = (tokens[:, 2] + 1) % toys.VOCAB
  changed = states("mistral_tiny", (tokens, *arrays[1:]))[0]
  moved = np.abs(changed - plain).max(axis=-1) > 0
  assert np.flatnonzero(moved).tolist() == list(range(2, 11))


def test_a_row_of_padding_alone_is_finite():
  assert np.all(np.isfinite(states("gemma2_tiny", layout([[]] * BATCH))))


def decode(cfg, params, arrays, prompt):
  """States of the last prompt column and of each later one, by cache."""
  module = transformer.Transformer(cfg)
  arrays = jax.tree.map(jnp.asarray, arrays)
  batch, time = arrays[0].shape

  def run(cache, columns):
    return module.apply({"params": params}, *columns, cache=cache)

  cache = kv_cache.init_cache(cfg, batch, time)
  first, cache = run(cache, [x[:, :prompt] for x in arrays])

  def step(cache, columns):
    hidden, cache = run(cache, [x[:, None] for x in columns])
    return cache, hidden[:, 0]

  cache, rest = jax.lax.scan(step, cache, [x[:, prompt:].T for x in arrays])
  hidden = jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1)
  return hidden, cache


@families
def test_cached_decoding_equals_one_full_pass(name):
  """Left-padded prompts of 7, 5 and 1 tokens, then 7 tokens one by one.

  Rows end with 14, 12 and 8 tokens: past the window of 5 in any row.
  """
  cfg, params, _ = model(name)
  rows = [[(start, A[start:])] for start in (0, 2, 6)]
  full = states(name, layout([*rows, []]))[:3]
  arrays = layout(rows)
  run = jax.jit(functools.partial(decode, cfg), static_argnames="prompt")
  hidden, cache = jax.device_get(run(params, arrays, prompt=7))
  real = arrays[2] > 0
  np.testing.assert_allclose(hidden[real], full[real], **REASSOCIATED)
  assert cache.length == TIME
  np.testing.assert_array_equal(cache.positions, arrays[1])
  np.testing.assert_array_equal(cache.segments, arrays[2])


def test_bfloat16_computes_in_bfloat16_and_stays_close():
  cfg, params, _ = model("gemma2_tiny")
  half = dataclasses.replace(cfg, dtype="bfloat16")
  arrays = layout([[(0, A)], [(0, B)], [(5, B)], [(0, C), (6, D)]])
  module = transformer.Transformer(half)
  found, _ = jax.jit(module.apply)({"params": params}, *arrays)
  assert found.dtype == jnp.bfloat16
  real = arrays[2] > 0
  exact = states("gemma2_tiny", arrays)[real]
  error = np.abs(np.asarray(found, np.float32)[real] - exact)
  # 8 bits of mantissa: a quarter of a percent a step, over two layers.
  assert error.max() < 0.2
  assert error.mean() < 0.02


def test_new_base():
  """float32, layers that differ, states and logits of a sensible size."""
  cfg = toys.config("llama_tiny", width=64, num_layers=3)
  base = jax.jit(roles.init_base, static_argnums=1)(jax.random.key(0), cfg)
  base = jax.device_get(base)
  leaves = params_lib.flatten(base)
  for path, leaf in leaves.items():
    assert leaf.dtype == np.float32
    if path.endswith("kernel"):
      assert not np.array_equal(leaf[0], leaf[1]), path
      fan_in = leaf.shape[1]
      np.testing.assert_allclose(np.var(leaf), 1 / fan_in, rtol=0.2)
    if path.endswith("scale"):
      assert np.all(leaf == 1.0), path
  np.testing.assert_allclose(np.var(base["embedding"]), 1 / 64, rtol=0.2)
  np.testing.assert_allclose(np.var(base["lm_head"]), 1 / 64, rtol=0.2)

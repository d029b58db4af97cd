"""The benchmark of padding: its shares by hand."""

import pytest

from benchmarks import padding
from perl_jax.data.batches.packed_responses import Layout
from perl_jax.data.batches.preferences import EncodedPreference


def test_shares_by_hand():
  """Prompts of 10 tokens with responses of 6 and 4, in buckets of 20."""
  pairs = [
    EncodedPreference([1] * 16, [1] * 10 + [2] * 4, 10, i) for i in range(8)
  ]
  found = padding.shares(
    pairs,
    [16] * 8,
    Layout(responses=2),
    batch_size=4,
    microbatches=2,
    buckets=(20, 64),
  )
  assert found["tokens_padded"] == 40
  assert found["padding_of_padded"] == pytest.approx(1 - 30 / 40)
  # Two pairs of 20 tokens in a row.
  assert found["tokens_packed"] == 20 and found["padding_of_packed"] == 0
  assert found["shapes"] == 1 and found["padding_of_evaluation"] == 0


@pytest.mark.parametrize("targets", [False, True])
def test_a_shape_is_of_all_arrays(targets):
  """Rows of one length, with more targets in one batch than in the other."""
  pairs = [
    EncodedPreference([1] * 16, [1] * 10 + [2] * 4, 10, 0),
    EncodedPreference([1] * 10, [1] * 2 + [2] * 10, 2, 1),
  ]
  found = padding.shares(
    pairs, [16, 12], Layout(responses=2, targets=targets), batch_size=1,
    microbatches=1, buckets=(20, 64),
  )  # fmt: skip
  assert found["shapes"] == 1 + targets


@pytest.mark.parametrize(
  ("data", "flags", "targets", "buckets", "microbatches"),
  [
    ("hh_rlhf", "", False, (128, 256, 512), 1),
    ("taskmaster_coffee", "", True, (64, 96, 128, 192, 384), 1),
    ("coffee_bar", "", False, (40, 64), 4),
    (
      "taskmaster_ticketing",
      "--max_len=768 --buckets=256,512,900 --microbatches=2",
      True,
      (256, 512, 768),
      2,
    ),
  ],
)
def test_what_is_measured_is_the_config(
  data, flags, targets, buckets, microbatches
):
  given = [f"--data={data}", "--base=x", "--data_dir=here", *flags.split()]
  config = padding.config_of(padding.parser_of().parse_args(given))
  assert config.data.dir == "here" and config.microbatches == microbatches
  layout, found = padding.layout_of(config, 7)
  assert found == buckets
  assert (layout.targets, layout.pad_id, layout.block) == (targets, 7, 8)

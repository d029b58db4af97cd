"""Continuous batching: ends as sampled, equal samples, fewer steps."""

import numpy as np
import pytest

from benchmarks import slot_refill
from perl_jax import sampling
from perl_jax.data.records import Demonstration, Splits
from perl_jax.data.sources import registry
from perl_jax.sampling import draw
from tests import toys

SETTINGS = slot_refill.Settings(
  prompts=10, slots=2, prompt_len=5, response_len=9, vocab_size=40, rounds=2
)
TINY = dict(
  num_layers=2,
  width=16,
  mlp_width=24,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  scan_unroll=1,
)
ENDS = np.array([2, 2, 5, 9], np.int32)


def test_both_sides_return_responses_of_the_sampled_lengths():
  turns = (
    toys.random_tokens(0, 10, 5, vocab=40),
    np.arange(10, dtype=np.int32) % 5 + 1,
    ENDS,
  )
  plain = draw.Policy.draw
  sides = slot_refill.make_sides(SETTINGS, turns, **TINY)
  assert draw.Policy.draw is plain
  found = slot_refill.measure(sides, 2)
  [samples] = sides["slots"]()
  ends = np.asarray(samples.mask).sum(axis=1)
  assert set(ends) <= set(ENDS) and len(set(ends)) > 1
  assert np.all(samples.stopped)
  batches = [max(ends[i : i + 2]) for i in range(0, 10, 2)]
  assert found["batches"]["steps"] == sum(batches)
  assert sum(ends) / 2 <= found["slots"]["steps"] < sum(batches)
  for side in found.values():
    assert side["tokens"] == sum(ends) and len(side["all_seconds"]) == 2
  assert len(slot_refill.table(found).splitlines()) == 4


def test_samples_that_differ_are_refused():
  def side(token):
    tokens = np.array([[1, 2], [3, token]])
    return lambda: [sampling.Samples(tokens, tokens > 0, tokens[:, 0] > 0)]

  with pytest.raises(ValueError, match=r"1 of 2 samples differ"):
    slot_refill.measure({"batches": side(4), "slots": side(5)}, 1)


def test_prompts_and_lengths_are_those_of_the_dialogs(monkeypatch):
  def message(role, content):
    return {"role": role, "content": content}

  turns = (message("user", "a tea"), message("assistant", "abc"))
  turns += (message("user", "thanks"), message("assistant", "z"))
  row = Demonstration("1", "g", (message("assistant", "hi"),), turns)

  def load(data, kind, *, data_dir):
    assert (data, kind, data_dir) == (
      "taskmaster_coffee", "demonstrations", "here",
    )  # fmt: skip
    return Splits([row], [], {})

  monkeypatch.setattr(registry, "load", load)
  settings = slot_refill.Settings(prompts=2, prompt_len=12, vocab_size=263)
  prompts, lengths, ends = slot_refill.read_turns("here", settings)
  # Bytes are tokens, and a stop token ends a turn.
  assert sorted(ends) == [2, 4]
  # <bos> <assistant> h i <end> <user> ... needs more than 12.
  assert prompts.shape == (2, 12) and np.all(lengths <= 12)

"""What the fingerprint of rows and of a tokenizer depends on, and what not."""

import weakref

import numpy as np
import pytest

from perl_jax.data import fingerprints, records
from perl_jax.data.batches import demonstrations, labelled, preferences, prompts
from perl_jax.data.text import tokenization
from tests.data.text import families

PAIRS = [
  preferences.EncodedPreference([1, 2, 3], [1, 2, 4, 5], 2, 0),
  preferences.EncodedPreference([6, 7], [6, 8], 1, 1),
]
TARGETS = demonstrations.TargetBatch(
  *(np.arange(4, dtype=np.int32) for _ in range(3)),
  np.array([False, True, True, False]),
)


def changed(rows, at, **fields):
  return [row._replace(**fields) if i == at else row
          for i, row in enumerate(rows)]  # fmt: skip


@pytest.mark.parametrize(
  ("rows", "other"),
  [
    (PAIRS, PAIRS[::-1]),
    (PAIRS, PAIRS[:1]),
    (PAIRS, changed(PAIRS, 1, chosen=[6, 8], rejected=[6, 7])),
    (PAIRS, changed(PAIRS, 0, prompt_length=1)),
    # The same numbers, cut into other rows.
    (PAIRS, changed(PAIRS, 0, chosen=[1, 2], rejected=[3, 1, 2, 4, 5])),
    (
      [labelled.EncodedLabelled([1, 2], 1, 1.0, 0)],
      [labelled.EncodedLabelled([1, 2], 1, 0.0, 0)],
    ),
    ([TARGETS], [TARGETS._replace(target_mask=~TARGETS.target_mask)]),
    ([TARGETS], [TARGETS._replace(segments=TARGETS.positions + 1)]),
  ],
)
def test_what_is_learned_from_counts(rows, other):
  first = fingerprints.of_rows(rows)
  assert first == fingerprints.of_rows([*rows])
  assert first != fingerprints.of_rows(other)


def test_how_rows_are_held_does_not_count():
  arrays = [
    row._replace(chosen=np.array(row.chosen, np.int32)) for row in PAIRS
  ]
  assert fingerprints.of_rows(arrays) == fingerprints.of_rows(PAIRS)


def test_what_a_reward_function_reads_of_a_prompt_counts():
  row = prompts.EncodedPrompt([1, 2], 0)
  record = records.Prompt("rows:1", "a", (), "right", {"level": 3})

  def of(**changes):
    told = {"id": "rows:1", "group": "a", "prompt": (), "reference": "right",
            "fields": {"level": 3}} | changes  # fmt: skip
    return fingerprints.of_rows([row], [records.Prompt(**told)])

  same = fingerprints.of_rows([row], [record])
  assert of(id="elsewhere:7", group="b") == same  # another name of the file
  assert of(reference="wrong") != same
  assert of(fields={"level": 4}) != same
  assert of(fields={"level": "\ud800"}) != same  # half a character


def test_one_row_at_a_time_is_held():
  alive = []

  def rows():
    for i in range(50):
      tokens = np.full(1000, i)
      alive.append(weakref.ref(tokens))
      yield prompts.EncodedPrompt(tokens, i)
      del tokens
      assert sum(ref() is not None for ref in alive) <= 1

  fingerprints.of_rows(rows())
  assert len(alive) == 50


def test_of_a_tokenizer_counts_what_it_does(tmp_path):
  """Not the bytes of its files: one that was saved anew is the same."""
  families.write(families.FAMILIES["smollm2"], tmp_path / "first")
  first = tokenization.load_tokenizer(tmp_path / "first")
  first.tokenizer.save_pretrained(tmp_path / "second")
  again = tokenization.load_tokenizer(
    tmp_path / "second", stop_ids=first.stop_ids
  )
  same = fingerprints.of_tokenizer(first)
  assert fingerprints.of_tokenizer(again) == same
  fewer = tokenization.load_tokenizer(tmp_path / "first", stop_ids=())
  if fewer.stop_ids != first.stop_ids:
    assert fingerprints.of_tokenizer(fewer) != same
  first.tokenizer.chat_template += " "
  assert fingerprints.of_tokenizer(first) != same

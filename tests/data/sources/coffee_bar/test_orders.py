"""Texts of the coffee orders: their vocabulary and their meaning."""

import json
from collections import Counter

import pytest

from perl_jax.data.sources.coffee_bar import orders
from perl_jax.data.sources.coffee_bar import rows as rows_lib
from tests.data.sources.coffee_bar import reading


def test_the_words_of_the_menu_belong_to_one_list():
  menu = orders
  drinks = [d + s for d in menu.DRINKS for s in ("", "s")]
  lists = (
    menu.FLAVOURS, drinks, menu.SIZES, menu.TEMPERATURES, menu.MILKS,
    tuple(menu.EXTRAS), menu.NUMBERS, menu.QUANTITIES,
  )  # fmt: skip
  assert max(Counter(word for words in lists for word in words).values()) == 1
  assert len(menu.FLAVOURS) * len(menu.DRINKS) > 400


@pytest.mark.parametrize("kind", rows_lib.KINDS)
def test_the_words_say_what_the_right_answer_is(splits, kind):
  for row in [*splits[kind].train, *splits[kind].validation]:
    assert reading.read(row.prompt) == json.loads(row.group), row.prompt


def test_prompts_vary_and_corrections_come_in_both_forms(splits):
  prompts = [row.prompt for row in splits["prompts"].train]
  openings = {tuple(reading.words_of(p[0]["content"])[:3]) for p in prompts}
  assert len(openings) > 50
  turns = Counter(len(p) for p in prompts)
  assert set(turns) == {1, 3}
  assert reading.within(turns[3], reading.ROWS, orders.CORRECTED_SHARE / 2)
  for prompt in prompts:
    roles = [message["role"] for message in prompt]
    assert roles == ["user", "assistant", "user"][: len(prompt)]
    if len(prompt) == 3:
      assert reading.read(prompt[:1]) != reading.read(prompt)


def test_every_word_of_the_menu_is_met_in_training(splits):
  said = Counter(
    word
    for row in splits["demonstrations"].train
    for message in row.prompt
    for word in reading.words_of(message["content"])
  )
  menu = orders
  for word in (*menu.FLAVOURS, *menu.DRINKS, *menu.MILKS, *menu.EXTRAS):
    assert said[word] + said[word + "s"] > 20, word


def test_texts_are_short_and_words_are_single_tokens(splits):
  tokenizers = pytest.importorskip("tokenizers")
  pre = tokenizers.pre_tokenizers
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = pre.Sequence(
    [
      pre.Split(tokenizers.Regex(r" ?[0-9]| ?[^ 0-9]+| "), "isolated"),
      pre.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  rows = splits["demonstrations"].train
  tokenizer.train_from_iterator(
    (m["content"] for row in rows for m in row.prompt + row.turns),
    tokenizers.trainers.BpeTrainer(
      vocab_size=1024,
      initial_alphabet=pre.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )

  def lengths(texts):
    return sorted(len(e.ids) for e in tokenizer.encode_batch(list(texts)))

  prompts = lengths(" ".join(m["content"] for m in r.prompt) for r in rows)
  responses = lengths(row.turns[0]["content"] for row in rows)
  assert prompts[reading.ROWS // 2] <= 30 and prompts[-1] <= 50
  assert responses[reading.ROWS // 2] <= 32 and responses[-1] <= 40
  menu = orders
  for word in (*menu.FLAVOURS, *menu.DRINKS, *menu.MILKS):
    assert len(tokenizer.encode(f" {word}").ids) == 1, word

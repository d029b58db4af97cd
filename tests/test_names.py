"""Suggestions for misspelt names."""

import pytest

from perl_jax import names


@pytest.mark.parametrize(
  ("name", "known", "expected"),
  [
    ("rewards", ("rl", "reward", "sft"), "reward"),
    ("cofee", {"tea": 1, "coffee": 2}, "coffee"),
    ("warmup", iter(["constant", "warm_up"]), "warm_up"),
    ("zzz", ("rl", "reward", "sft"), None),
    ("sft", (), None),
  ],
)
def test_nearest_known_name(name, known, expected):
  assert names.nearest(name, known) == expected


def test_the_sentence_is_a_suggestion_or_nothing():
  sentence = names.did_you_mean("rewards", ("rl", "reward"))
  assert sentence == " Did you mean 'reward'?"
  assert names.did_you_mean("zzz", ("rl", "reward")) == ""

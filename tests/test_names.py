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


def test_a_config_is_called_as_it_can_be_given(tmp_path, monkeypatch):
  """Beside the package there is a file; in an installed one there is none."""
  assert names.config("rl") == "configs/rl.py"
  monkeypatch.setattr(names, "_PACKAGE", tmp_path)
  assert names.config("rl") == "configs/rl.py"
  (tmp_path / "configs").mkdir()
  assert names.config("rl") == "perl_jax --config=rl"

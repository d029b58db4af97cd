"""ModelConfig: what it refuses, its JSON form, which layers have a window."""

import dataclasses
import json

import pytest

from perl_jax.models.config import ModelConfig
from tests import toys

SIZES = dict(
  vocab_size=11,
  num_layers=2,
  width=8,
  mlp_width=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
)


@pytest.mark.parametrize("name", toys.FAMILIES)
def test_json_round_trip(name):
  cfg = toys.config(name, remat="dots", dtype="bfloat16", max_len=77)
  again = ModelConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
  assert again == cfg
  assert hash(again) == hash(cfg)


def test_every_field_is_in_the_json_form():
  names = {field.name for field in dataclasses.fields(ModelConfig)}
  assert set(ModelConfig(**SIZES).to_dict()) == names


def test_unknown_field_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match=r"num_layer'.*num_layers"):
    ModelConfig.from_dict(SIZES | {"num_layer": 2})


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_kv_heads": 3}, r"num_heads=4 .* num_kv_heads=3"),
    ({"head_dim": 5}, r"head_dim=5 must be even"),
    ({"activation": "relu"}, r"model\.activation='relu'.*silu.*gelu_tanh"),
    ({"remat": "all"}, r"model\.remat='all'.*none.*dots.*full"),
    ({"dtype": "float16"}, r"model\.dtype='float16'.*bfloat16"),
    ({"num_kv_heads": 0}, r"model\.num_kv_heads=0 must be at least 1"),
    ({"num_layers": 0}, r"model\.num_layers=0 must be at least 1"),
    ({"scan_unroll": 0}, r"model\.scan_unroll=0 must be at least 1"),
    ({"sliding_window": 0}, r"model\.sliding_window=0 must be at least 1"),
  ],
)
def test_values_that_make_no_model_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    ModelConfig(**SIZES | changes)


@pytest.mark.parametrize(
  ("family", "window", "every", "expected"),
  [
    ("Llama", None, 0, "GGGGGG"),
    # Without a window `global_every` says nothing.
    ("Llama", None, 2, "GGGGGG"),
    ("Mistral", 4096, 0, "WWWWWW"),
    ("Gemma 2", 4096, 2, "WGWGWG"),
    ("Gemma 3", 512, 6, "WWWWWG"),
  ],
)
def test_layer_is_windowed(family, window, every, expected):
  cfg = ModelConfig(
    **SIZES | dict(num_layers=6, sliding_window=window, global_every=every)
  )
  found = "".join("W" if w else "G" for w in cfg.layer_is_windowed)
  assert found == expected, family


def test_gemma3_pattern_starts_again_after_the_global_layer():
  cfg = ModelConfig(
    **SIZES | dict(num_layers=13, sliding_window=8, global_every=6)
  )
  assert [i for i, w in enumerate(cfg.layer_is_windowed) if not w] == [5, 11]

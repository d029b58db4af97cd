"""Whatever a reward checkpoint says of its scores: harmless, or refused."""

import json
import shutil

import numpy as np
import pytest

from perl_jax.interop import hf_checkpoint, hf_scores
from tests.interop import rewriting
from tests.interop.tiny import REFERENCES, load

ONE = np.ones((1, 16), np.float32)


@pytest.fixture
def reward(tmp_path):
  """A copy of a reward model as `transformers` saves it."""
  source = REFERENCES / "llama3" / "reward_checkpoint"
  return shutil.copytree(source, tmp_path / "hf")


def set_fields(directory, **fields):
  path = directory / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(directory, *texts):
  with pytest.raises(ValueError) as caught:
    load(directory)
  for text in (str(directory), *texts):
    assert text in str(caught.value)


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"problem_type": "regression"},
    {"problem_type": "multi_label_classification"},
    {"classifier_dropout": 0.1},
    {"id2label": {"0": "reward"}, "label2id": {"reward": 0}},
    {"num_labels": 1},
    {"normalize_reward": False, "mean": None, "std": 1.0, "shift": 0},
    {"reward_scale": 1, "logit_scale": 1.0, "value_head_prefix": "score"},
    {"pooling": "last", "pooling_mode": None, "num_classes": 1},
    {"auto_map": {"AutoTokenizer": "tokenization.Own"}},
    {"auto_map": [None]},
    {
      "sentence_transformers": {
        "activation_fn": "torch.nn.modules.linear.Identity",
        "version": "5.0",
      }
    },
    # About something else.
    {"rope_scaling": None, "use_cache": True, "temperature": 0.6},
  ],
)
def test_fields_that_change_no_score(reward, fields):
  plain = load(reward).head["head"]["kernel"]
  set_fields(reward, **fields)
  np.testing.assert_array_equal(load(reward).head["head"]["kernel"], plain)


@pytest.mark.parametrize(
  ("fields", "texts"),
  [
    ({"num_labels": 2}, ("num_labels=2", "num_labels=1")),
    (
      {"id2label": {"0": "bad", "1": "good"}},
      ("id2label={'0': 'bad', '1': 'good'}", "2 labels"),
    ),
    ({"label2id": {"a": 0, "b": 1, "c": 2}}, ("label2id", "3 labels")),
    ({"problem_type": "single_label_classification"}, ("problem_type",)),
    ({"problem_type": "ranking"}, ("problem_type='ranking'", "'regression'")),
    ({"normalize_reward": True}, ("normalize_reward=true", "config.json")),
    ({"normalise": True}, ("normalise=true",)),
    ({"mean": 0.3}, ("mean=0.3",)),
    ({"std": 2.0}, ("std=2.0",)),
    ({"std": 0}, ("std=0",)),
    ({"reward_scale": 0.1}, ("reward_scale=0.1",)),
    ({"reward_scale": True}, ("reward_scale=true",)),
    ({"center": True}, ("center=true",)),
    ({"score_bias": 0.5}, ("score_bias=0.5",)),
    ({"pooling": "mean"}, ('pooling="mean"',)),
    ({"classifier_pooling": "cls"}, ('classifier_pooling="cls"',)),
    ({"num_outputs": 5}, ("num_outputs=5",)),
    ({"value_head_prefix": "v"}, ('value_head_prefix="v"',)),
    (
      {"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}},
      ("sentence_transformers", "Sigmoid"),
    ),
    (
      {"auto_map": {"AutoModelForSequenceClassification": "modeling.Gated"}},
      ("auto_map", "AutoModelForSequenceClassification", "never run"),
    ),
  ],
)
def test_fields_that_would_change_a_score(reward, fields, texts):
  set_fields(reward, **fields)
  refused(reward, "config.json", *texts)
  # The way out, where the field changes nothing.
  path = reward / "config.json"
  rest = {k: v for k, v in json.loads(path.read_text()).items()}
  for name in fields:
    del rest[name]
  path.write_text(json.dumps(rest))
  load(reward)


@pytest.mark.parametrize(
  "name",
  [
    "score.bias", "score.0.weight", "classifier.weight",
    "v_head.summary.weight", "value_head.weight", "regression_head.weight",
    "reward_head.bias", "mean",
    "gating.layers.0.weight",
  ],
)  # fmt: skip
def test_a_head_of_another_class_is_refused_by_name(reward, name):
  rewriting.add(**{name.replace(".", "__"): ONE})(reward)
  refused(reward, name, "score.weight alone")


def test_a_matrix_of_another_shape_is_refused_by_its_shape(reward):
  width = load(reward).head["head"]["kernel"].shape[0]
  rewriting.add(score__weight=np.ones(width, np.float32))(reward)
  refused(reward, "score.weight", f"({width},)", "num_labels=1")


def test_tensors_that_are_no_head_are_none(reward):
  rewriting.add(
    lm_head__weight=ONE,
    model__rotary_emb__inv_freq=ONE,
    model__layers__0__self_attn__rotary_emb__inv_freq=ONE,
  )(reward)
  assert load(reward).head is not None
  assert hf_checkpoint.heads(reward) == []
  assert hf_scores.heads(["v_head.summary.bias"]) == ["v_head.summary.bias"]


def test_a_policy_may_have_a_value_head_beside_it(copy):
  """`transformers` loads it without; it is no reward model for that."""
  directory = copy("llama3")
  rewriting.add(v_head__summary__weight=ONE)(directory)
  assert load(directory).head is None
  assert hf_checkpoint.heads(directory) == ["v_head.summary.weight"]


def test_a_classifier_saved_without_its_head(reward):
  found = rewriting.tensors_of(reward)
  del found["score.weight"]
  rewriting.write(reward, found)
  refused(reward, "score.weight", "num_labels=1")


@pytest.mark.parametrize(
  ("class_", "names"),
  [
    ("Qwen2ForRewardModel", ("score.0.weight", "score.2.weight")),
    ("LlamaRewardModel", ("regression_head.weight",)),
    ("LlamaForRewardModelWithGating", ("gating.weight", "regression_layer")),
    ("LlamaForCausalLM", ("v_head.summary.weight",)),
    ("LlamaRewardModel", ()),
  ],
)
def test_a_reward_model_of_another_class_is_said_to_be_one(
  reward, class_, names
):
  found = rewriting.tensors_of(reward)
  del found["score.weight"]
  rewriting.write(reward, found | dict.fromkeys(names, ONE))
  own = {"auto_map": {"AutoModel": f"modeling.{class_}"}} if names else {}
  set_fields(reward, architectures=[class_], tie_word_embeddings=False, **own)
  named = [] if class_ == "LlamaForCausalLM" else [class_]
  refused(reward, "This is a reward model", "score.weight", *named, *names)
  with pytest.raises(ValueError) as caught:
    load(reward)
  assert "set tie_word_embeddings" not in str(caught.value)


def test_a_reward_model_with_one_matrix_is_written_as_the_error_says(reward):
  expected = load(reward).head["head"]["kernel"]
  plain = rewriting.tensors_of(reward)
  other = {k: v for k, v in plain.items() if k != "score.weight"}
  matrix = {"regression_head.weight": plain["score.weight"]}
  rewriting.write(reward, other | matrix)
  class_ = json.loads((reward / "config.json").read_text())["architectures"]
  set_fields(
    reward, architectures=["LlamaRewardModel"], tie_word_embeddings=False
  )
  refused(reward, "regression_head.weight", "num_labels=1")
  rewriting.write(reward, plain)
  set_fields(reward, architectures=class_, num_labels=1)
  np.testing.assert_array_equal(load(reward).head["head"]["kernel"], expected)

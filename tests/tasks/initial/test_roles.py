"""The roles beside a policy: where a reward model reads its score."""

import dataclasses

import pytest
import transformers
from ml_collections import ConfigDict

from perl_jax import roles
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import hf_export, peft
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import roles as initial_roles
from perl_jax.tasks.initial.model import Start
from tests import toys
from tests.data.text import families
from tests.data.text.families import FAMILIES, REASONING

CONFIG = dataclasses.replace(toys.config("tiny"), vocab_size=1000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Directories of tokenizers, by the name of a family."""
  root = tmp_path_factory.mktemp("families")
  chosen = {n: FAMILIES[n] for n in ("qwen2.5", "gemma3", "llama3")}
  chosen["r1"] = REASONING["r1"]
  chosen["bare"] = families.Family(
    None, "bytes", families.FAMILIES["qwen2.5"].special,
    {"eos_token": "<|im_end|>"}, None, (),
  )  # fmt: skip
  return {n: families.write(f, root / n) for n, f in chosen.items()}


def read_at(tokenizer, score_at="template", asked="", policy=None, pad=None):
  """(where the score is read, `roles.Closing` or None)."""
  backbone = roles.Backbone(CONFIG, LoraSpec())
  role = roles.Role(backbone, roles.init_head(CONFIG), {})
  start = Start(role, {}, "", tokenizer, score_at=score_at, unread_id=pad)
  config = ConfigDict({"reward": {"init": "runs/reward", "score_at": asked}})
  if policy is not None:
    policy = tokenization_lib.load_tokenizer(policy)
  found = initial_roles.read_at(start, config, policy)
  return found.score_at, found.role.closing


@pytest.mark.parametrize("name", ["qwen2.5", "gemma3", "llama3"])
def test_a_line_break_is_read_after_the_stop_token(made, name):
  own = tokenization_lib.load_tokenizer(made[name])
  assert own.decode(own.closing) == ("" if name == "llama3" else "\n")
  expected = roles.Closing(own.closing, own.stop_ids)
  assert read_at(made[name]) == ("template", expected)
  assert read_at(made[name], "turn") == ("turn", None)
  assert read_at(made[name], "turn", "template") == ("template", expected)
  assert read_at(made[name], "template", "turn") == ("turn", None)


def test_a_response_has_stopped_by_the_tokens_of_its_policy(made, tmp_path):
  """Reward models come without a generation_config.json."""
  directory = families.write(FAMILIES["qwen2.5"], tmp_path)
  (directory / "generation_config.json").unlink()
  assert len(tokenization_lib.load_tokenizer(directory).stop_ids) == 1
  _, closing = read_at(directory, policy=made["qwen2.5"])
  assert len(closing.stop_ids) == 2
  # Nor does every one of them come with a template.
  assert read_at(made["bare"], policy=made["qwen2.5"])[1] == closing
  assert read_at(made["bare"]) == ("template", None)


def test_thoughts_that_no_conversation_has_are_not_scored_as_one(made):
  with pytest.raises(ValueError) as caught:
    read_at(made["r1"], policy=made["r1"])
  for text in ("runs/reward", "'<think>\\n'", "--config.reward.score_at=turn"):
    assert text in str(caught.value)
  assert read_at(made["r1"], "template", "turn", made["r1"]) == ("turn", None)
  own = tokenization_lib.load_tokenizer(made["r1"])
  closing = roles.Closing((), own.stop_ids)
  assert read_at(made["r1"]) == ("template", closing)


@pytest.mark.parametrize(
  ("name", "pad", "expected"),
  [
    # A line break follows the end of the turn that pads.
    ("qwen2.5", "<|im_end|>", (True, 1)),
    ("qwen2.5", "<|endoftext|>", (True, 1)),
    ("llama3", "<|eot_id|>", (False, 0)),
    ("llama3", "<|end_of_text|>", (True, 0)),
    ("bare", "<|im_end|>", (False, 0)),
  ],
)
def test_transformers_reads_no_padding_at_the_end(made, name, pad, expected):
  """By its id in config.json, as `tests.tasks.test_recipe` shows."""
  own = transformers.AutoTokenizer.from_pretrained(made[name])
  found = read_at(made[name], pad=own.convert_tokens_to_ids(pad))
  assert found[0] == "template"
  assert (found[1].keeps_stop, len(found[1].tokens)) == expected
  assert read_at(made[name], "turn", pad=own.convert_tokens_to_ids(pad)) == (
    "turn", None,
  )  # fmt: skip


def test_a_model_without_a_head_is_no_reward_model():
  role = roles.Role(roles.Backbone(CONFIG, LoraSpec()), {}, {})
  config = ConfigDict({"reward": {"init": "runs/sft"}})
  with pytest.raises(ValueError, match=r"runs/sft.*no scalar head.*reward\.py"):
    initial_roles.require_head(Start(role, {}, "", None), config)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_value_head_in_a_file_of_its_own_is_named(tmp_path, adapter):
  """As LLaMA-Factory saves reward models, in full or with LoRA."""
  if adapter:
    (tmp_path / peft.CONFIG).write_text("{}")
  else:
    hf_export.save_model(
      tmp_path, CONFIG, toys.random_params(CONFIG), hf_export.Stops((1,), 0, 0),
      dtype="float32", shard_bytes=10**9,
    )  # fmt: skip
  (tmp_path / "value_head.safetensors").write_bytes(b"")
  role = roles.Role(roles.Backbone(CONFIG, LoraSpec()), {}, {})
  config = ConfigDict({"reward": {"init": str(tmp_path)}})
  with pytest.raises(ValueError, match=r"It holds value_head\.safetensors"):
    initial_roles.require_head(Start(role, {}, "", None), config)

"""A checkpoint in the way of Llama 3 through reward and rl, on dialogues."""

import importlib.util
import json

import numpy as np
import pytest

from configs import export as export_config
from perl_jax import params, roles
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.interop import hf_export
from perl_jax.models import presets
from perl_jax.tasks.initial import manifest, model, restore
from perl_jax.tasks.settings import rl as rl_settings
from tests.data.text import families
from tests.data.text.messages import assistant, system, user
from tests.tasks import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """Random weights, the tokenizer, and a list of eos tokens."""
  directory = tmp_path_factory.mktemp("llama3")
  families.write(families.FAMILIES["llama3.2"], directory)
  generation = (directory / "generation_config.json").read_text()
  tokenization = tokenization_lib.load_tokenizer(directory)
  config = presets.preset(
    "llama_tiny", vocab_size=tokenization.vocab_size, max_len=160
  )
  hf_export.save_model(
    directory,
    config,
    model.random_base(config, 0, "float32"),
    hf_export.Stops((1,), tokenization.bos_id, tokenization.pad_id),
    dtype="float32",
    shard_bytes=10**9,
  )
  (directory / "generation_config.json").write_text(generation)
  return directory


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  """Conversations, twelve first user turns."""
  path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
  lines = []
  for i in range(12):
    prompt = [system("be kind"), user(f"{i} milk"), assistant("a"), user("b")]
    row = {
      "chosen": [*prompt, assistant("hello there\n")],
      "rejected": [*prompt, assistant(f"what {i}?")],
    }
    lines.append(json.dumps(row) + "\n")
  path.write_text("".join(lines))
  return path


@pytest.mark.slow
def test_stops_are_those_of_template_and_generation_config(
  checkpoint, rows, tmp_path
):
  fields = {
    "base": str(checkpoint),
    "data__path": str(rows),
    "data__prompt_len": 120,
    "batch_size": 4,
    "steps": 2,
  }
  reward = tmp_path / "reward"
  tiny.run(reward, "reward", "jsonl", **fields)
  fields["reward__init"] = str(reward)
  found = tiny.run(tmp_path / "rl", "rl", "jsonl", **fields)
  assert found["kl_at_step_0"] == 0.0
  tokenization = tokenization_lib.load_tokenizer(checkpoint)
  eot, end, eom = 5, 1, 4
  settings = rl_settings.read(tiny.config("rl", "jsonl", **fields))
  settings = settings.with_stops(tokenization)
  assert settings.rollout.stop_ids == (eot, end, eom)
  assert settings.sampling.stop_ids == (eot, end, eom)
  # Later stages read the same from the files that the workdir keeps.
  copied = tokenization_lib.load_tokenizer(tmp_path / "rl" / manifest.TOKENIZER)
  assert copied.stop_ids == tokenization.stop_ids == (eot, end, eom)
  # And so does who is given the model.
  merged = tmp_path / "merged"
  wanted = {"init": str(tmp_path / "rl"), "format": "merged"}
  config = tiny.override(export_config.get_config(), wanted)
  tiny.tasks.run(config, merged)
  generation = json.loads((merged / "generation_config.json").read_text())
  assert generation["eos_token_id"] == [eot, end, eom]
  assert generation["bos_token_id"] == tokenization.bos_id == 0


@pytest.fixture(scope="module")
def reward_model(checkpoint, rows, tmp_path_factory):
  """A reward model on the checkpoint, exported for transformers."""
  root = tmp_path_factory.mktemp("reward")
  tiny.run(
    root / "run",
    "reward",
    "jsonl",
    base=str(checkpoint),
    data__path=str(rows),
    data__prompt_len=120,
    batch_size=4,
    optimizer__learning_rate=0.1,
  )
  wanted = {"init": str(root / "run"), "role": "reward", "format": "merged"}
  config = tiny.override(export_config.get_config(), wanted)
  tiny.tasks.run(config, root / "out")
  return root


@pytest.mark.slow
def test_an_exported_reward_model_is_padded_with_no_stop(reward_model):
  """Llama 3 has no pad token: ours is a stop, of which we know the lengths."""
  tokenization = tokenization_lib.load_tokenizer(reward_model / "out")
  config = json.loads((reward_model / "out" / "config.json").read_text())
  assert config["pad_token_id"] == tokenization.pad_id == tokenization.bos_id
  assert config["pad_token_id"] not in tokenization.stop_ids
  before = tokenization_lib.load_tokenizer(
    reward_model / "run" / manifest.TOKENIZER
  )
  assert before.pad_id in before.stop_ids


@pytest.mark.skipif(
  importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)
@pytest.mark.slow
def test_transformers_scores_the_stop_token_as_we_do(reward_model):
  import torch
  import transformers

  out = reward_model / "out"
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out)
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  tokenization = tokenization_lib.load_tokenizer(out)
  messages = [user("b")]
  prompt, _ = tokenization.encode_prompt(messages)
  ids = [
    prompt + tokenization.encode_response(messages, response)
    for response in ("hello there", "what 3?")
  ]
  width = max(map(len, ids))
  padded = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids]
  with torch.no_grad():
    found = theirs(torch.tensor(padded)).logits[:, 0].numpy()
  start = restore.load(reward_model / "run", "best", "reward", "reward.init")
  scores = roles.response_scores(
    roles.Backbone(start.config, start.role.lora),
    params.combine(start.role.adapter | start.role.head, start.role.frozen),
    roles.right_padded(np.array(padded), np.array([len(row) for row in ids])),
    np.zeros((2, width), bool),
    max_response=1,
  )
  assert np.ptp(scores) > 1e-3
  np.testing.assert_allclose(found, scores, atol=2e-4)

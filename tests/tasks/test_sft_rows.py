"""SFT on users' rows: texts, and completions of several messages."""

import logging

import jax
import numpy as np
import pytest

from perl_jax import files, roles
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import restore
from perl_jax.tasks.training import inputs
from tests.tasks import tiny

WORDS = ("a plum", "two figs", "one pear", "no tea", "some milk")
TEXTS = [
  {"text": f"{WORDS[n % 5]} and {WORDS[n % 3]} for {n}, " * (1 + n % 9)}
  for n in range(60)
]


@pytest.mark.slow
def test_texts_are_learned_in_full_and_nothing_is_answered(tmp_path, caplog):
  """The loss is that of every token but the first, of all logits in float64."""
  path = tmp_path / "texts.jsonl"
  files.write_jsonl(path, TEXTS)
  given = {"data__path": str(path), "batch_size": 4}
  with caplog.at_level(logging.INFO, "absl"):
    tiny.run(tmp_path / "run", "sft", "jsonl", **given)
  assert "texts.jsonl: texts, read as demonstrations" in caplog.text
  assert "held-out rows are texts without prompts" in caplog.text
  judged = [r for r in tiny.lines(tmp_path / "run") if "validation/loss" in r]
  assert judged[-1]["validation/loss"] < judged[0]["validation/loss"]
  assert not any("gold" in name or "length" in name for name in judged[-1])

  start = restore.load(tmp_path / "run", "last", "policy", "policy.init")
  tokenization = tokenization_lib.load_tokenizer(start.tokenizer)
  config = tiny.config("sft", "jsonl", **given)
  held_out = inputs.load(config.data, "demonstrations", 0).validation
  backbone = roles.Backbone(start.config, LoraSpec())
  base = jax.device_put(start.role.frozen)
  length = config.data.max_len

  @jax.jit
  def logits_of(tokens, segments):
    sequence = roles.Sequence(tokens, np.arange(length)[None], segments)
    hidden = roles.hidden_states(backbone, base, sequence)
    return hidden @ roles.head_kernel(start.config, base)

  total = count = 0
  for row in held_out:
    ids = tokenization.encode_text(row.text)
    assert ids[-1] == tokenization.tokenizer.eos_token_id
    padded = np.zeros((2, 1, length), np.int32)
    padded[:, 0, : len(ids)] = ids, [1] * len(ids)
    logits = np.asarray(logits_of(*padded), np.float64)[0, : len(ids) - 1]
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    total -= logprobs[np.arange(len(logits)), ids[1:]].sum()
    count += len(logits)
  np.testing.assert_allclose(
    judged[-1]["validation/loss"], total / count, rtol=1e-5
  )


@pytest.mark.slow
def test_completions_of_several_messages_and_variables_train(tmp_path):
  path = tmp_path / "rows.jsonl"
  files.write_jsonl(
    path,
    [
      {
        "prompt": f"What for {n}?",
        "completion": [
          {"role": "assistant", "content": "For whom?"},
          {"role": "user", "content": WORDS[n % 5]},
          {"role": "assistant", "content": WORDS[n % 3]},
        ],
        "chat_template_kwargs": {"mode": n % 2},
      }
      for n in range(40)
    ],
  )
  found = tiny.run(
    tmp_path / "run", "sft", "jsonl", data__path=str(path), batch_size=2
  )
  assert np.isfinite(found["loss"])
  (sample, *_) = files.read_jsonl(tmp_path / "run" / "samples.jsonl")
  assert sample["prompt"].startswith("user: What for ")
  assert "\n" not in sample["prompt"]  # The column, and no turn behind it.

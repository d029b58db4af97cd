"""From a config to batches: lengths, buckets, tokenizers, rows."""

import contextlib
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from perl_jax import sharding
from perl_jax.data import batches as batches_lib
from perl_jax.data.records import Prompt
from perl_jax.data.text import tokenization as tokenization_lib
from perl_jax.data.text import train_tokenizer
from perl_jax.segments import PREFIX
from perl_jax.tasks.training import batching, begin, inputs
from tests.data.sources.jsonl.cases import GOOD
from tests.data.text import families
from tests.data.text.messages import assistant, user
from tests.data.text.tool_templates import TOOL_FAMILIES, tool
from tests.tasks import tiny

MESH = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])

WORDS = ("mocha", "latte", "tea", "cortado", "chai", "water", "juice", "cocoa")


@pytest.fixture(scope="module")
def tokenization(tmp_path_factory):
  directory = tmp_path_factory.mktemp("text") / "tokenizer"
  train_tokenizer.train_tokenizer(WORDS, 300, directory)
  return tokenization_lib.load_tokenizer(directory)


@pytest.fixture
def rows(tmp_path):
  """Conversations of growing length, pairs of them, and labels."""
  directory = tmp_path / "rows"
  directory.mkdir()
  long = [" ".join(WORDS[: 1 + i % 6]) for i in range(40)]
  files = {
    "demonstrations": [{"prompt": f"{i} {t}", "response": WORDS[i % 8]}
                       for i, t in enumerate(long)],
    "preferences": [{"prompt": f"{i} {t}", "chosen": "tea", "rejected": "ink"}
                    for i, t in enumerate(long)],
    "labelled": [{"prompt": f"{i} {t}", "response": "tea", "label": i % 2}
                 for i, t in enumerate(long)],
  }  # fmt: skip
  for name, lines in files.items():
    path = directory / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return directory


def config(rows, task="reward", **overrides):
  defaults = {
    "data__path": str(rows),
    "data__buckets": (16, 32),
    "data__pad_to_multiple_of": 8,
  }
  return tiny.config(
    task, "jsonl", **defaults | {"data__max_len": 64} | overrides
  )


# Candidates are those that `score` reads, which makes their batches itself.
KINDS = sorted(set(batches_lib.KINDS) - {"candidates"})


@pytest.mark.parametrize("kind", KINDS)
def test_batches_come_in_buckets_and_know_their_rows(rows, tokenization, kind):
  found = inputs.read(config(rows, data__prompt_len=64), tokenization, kind)
  widths = set()
  for batch in itertools.islice(found.train, 20):
    widths.add(batch[0].shape)
    assert batch.valid.sum() == 8
  if kind == "prompts":
    assert {width for _, width in widths} <= {16, 32, 64}
    assert all(size == 8 for size, _ in widths)
  else:  # at most four in a row on average
    assert all(2 <= size <= 8 for size, _ in widths)
  assert len(widths) > 1
  seen = [i for b in found.validation() for i in b.index[b.valid].tolist()]
  assert sorted(seen) == list(range(len(found.rows)))
  assert found.rows and found.counts["truncated_rows"] == 0


def test_responses_are_packed_as_asked(rows, tokenization):
  packing = batching.Packing(shared=False, targets=True, block=128)
  found = inputs.read(
    config(rows), tokenization, "preferences", packing=packing
  )
  for batch in (next(found.train), next(found.validation())):
    assert batch.tokens.shape[1] % 128 == 0 and batch.targets.size
    assert batch.segments.max() < PREFIX


@pytest.mark.parametrize("kind", ["preferences", "labelled"])
def test_rows_have_a_multiple_of_tokens(rows, tokenization, kind):
  """Few lengths, and those of the kernels as well: 384 = lcm(48, 128)."""
  given = config(rows, data__pad_to_multiple_of=48)
  for block, multiple in ((1, 48), (128, 384)):
    packing = batching.Packing(block=block)
    found = inputs.read(given, tokenization, kind, packing=packing)
    for batch in (*itertools.islice(found.train, 20), *found.validation()):
      assert batch.tokens.shape[1] % multiple == 0


def test_a_pass_over_held_out_rows_is_a_phase(rows, tokenization, monkeypatch):
  shown = []

  def track(things, name, total):
    shown.append((name, total))
    return things

  monkeypatch.setattr(inputs.phases, "track", track)
  monkeypatch.setattr(inputs.phases, "phase", contextlib.nullcontext)
  found = inputs.read(
    config(rows, eval__batch_size=3), tokenization, "preferences"
  )
  encoded = ("encoding preferences", len(found.rows))
  assert encoded in shown and shown[-1][0] == "encoding preferences"
  passed = list(found.held_out("scoring"))
  assert len(passed) == len(list(found.validation()))
  assert shown[-1] == ("scoring", len(passed))


def test_validation_alone_makes_no_training_rows(rows, tokenization):
  found = inputs.read(config(rows), tokenization, "preferences", train=False)
  assert found.train is None and len(found.rows) > 0


def test_folds_hold_across_kinds(rows, tokenization):
  """What is validated on in one stage is trained on in no other."""
  settings = config(rows)
  held_out = {
    kind: {row.group for row in inputs.load(settings.data, kind, 0).validation}
    for kind in ("demonstrations", "preferences", "labelled", "prompts")
  }
  trained = {
    row.group
    for kind in held_out
    for row in inputs.load(settings.data, kind, 0).train
  }
  assert all(held_out.values())
  assert not trained & set.union(*held_out.values())
  other = inputs.load(config(rows, data__fold=1).data, "labelled", 0)
  assert {row.group for row in other.validation} != held_out["labelled"]


def test_room_for_targets_is_that_of_the_fullest_row(rows, tokenization):
  found = inputs.targets(config(rows, "sft"), tokenization)
  batches = [*itertools.islice(found.train, 20), *found.validation()]
  most = max(int(b.target_mask.sum(axis=1).max()) for b in batches)
  assert found.max_targets == most > 0
  assert batches[0].tokens.shape == (8, 64)
  assert found.counts["packed_rows"] < 40


def test_the_loss_is_of_as_many_dialogues_as_asked(rows, tokenization):
  def tokens(count):
    settings = config(rows, "sft", eval__loss_rows=count)
    found = inputs.targets(settings, tokenization)
    return sum(int(b.target_mask.sum()) for b in found.validation())

  assert 0 < tokens(3) < tokens(0) == tokens(2048)


def test_limit_keeps_the_first_training_rows(rows, tokenization):
  found = inputs.read(config(rows, data__limit=9), tokenization, "preferences")
  most = max(int(next(found.train).index.max()) for _ in range(6))
  assert most <= 8 < found.counts["over_limit"]


def test_pick_is_fixed_and_in_order():
  rows = [Prompt(str(i), str(i), (), None) for i in range(50)]
  picked = inputs.pick(rows, 10, seed=3)
  assert picked == inputs.pick(rows, 10, seed=3)
  numbers = [int(row.id) for row in picked]
  assert len(numbers) == 10 and numbers == sorted(numbers)
  assert picked != rows[:10] and picked != inputs.pick(rows, 10, seed=4)
  assert inputs.pick(rows, 0, 3) is rows and inputs.pick(rows, 50, 3) is rows


def test_room_is_that_of_the_longer_sequence(rows):
  settings = config(rows, data__prompt_len=50, data__response_len=30)
  inputs.require_room(settings, 80)
  with pytest.raises(ValueError, match=r"sequences of 80 tokens .*takes 79"):
    inputs.require_room(settings, 79)
  with pytest.raises(ValueError, match=r"82 tokens .*50 \+ 30, and 2 that end"):
    inputs.require_room(settings, 81, 2)


def test_fresh_start_trains_a_tokenizer_once(rows, tmp_path):
  settings = config(rows, "sft", data__prompt_len=60, data__response_len=30)
  start, tokenization = begin.start(
    settings, "policy", tmp_path, "demonstrations", MESH
  )
  assert start.tokenizer == tmp_path / "tokenizer"
  # prompt_len + response_len > max_len; and a stop token, if one is cut.
  assert start.config.max_len == 90 + 1 + len(tokenization.closing)
  assert start.config.vocab_size == tokenization.vocab_size
  before = tiny.tree(tmp_path)
  again, _ = begin.start(settings, "policy", tmp_path, "demonstrations", MESH)
  assert tiny.tree(tmp_path) == before
  assert again.fingerprint == start.fingerprint
  given = config(rows, "sft", data__tokenizer=str(start.tokenizer))
  other, _ = begin.start(
    given, "policy", tmp_path / "other", "demonstrations", MESH
  )
  assert other.tokenizer == start.tokenizer
  assert not (tmp_path / "other").exists()


def test_tokens_without_an_embedding_are_refused(rows, tmp_path):
  settings = config(rows, "sft")
  start, tokenization = begin.start(
    settings, "policy", tmp_path, "demonstrations", MESH
  )
  assert tokenization.vocab_size == start.config.vocab_size

  def with_rows(rows):
    fewer = dataclasses.replace(start.config, vocab_size=rows)
    backbone = dataclasses.replace(start.role.backbone, config=fewer)
    role = dataclasses.replace(start.role, backbone=backbone)
    return dataclasses.replace(start, role=role).load_tokenizer()

  with pytest.raises(ValueError, match=r"every prompt .*has\s+3 rows"):
    with_rows(3)
  with pytest.raises(ValueError, match=r"has\s+200 rows.*from the row"):
    with_rows(200).encode_prompt([{"role": "user", "content": "a \x9f"}])


def test_start_goes_on_from_an_earlier_stage(rows, sft_run, tmp_path):
  settings = config(rows, "reward", reward__init=str(sft_run))
  start, _ = begin.start(settings, "reward", tmp_path, "preferences", MESH)
  assert start.tokenizer == sft_run / "tokenizer"
  assert start.config.max_len == 136 + 1  # a stop token
  assert list(tmp_path.iterdir()) == [rows]


def test_padding_is_the_tokenizers_own(rows, tokenization):
  found = inputs.read(
    config(rows, data__prompt_len=64), tokenization, "prompts"
  )
  batch = next(found.train)
  outside = np.arange(batch.tokens.shape[1]) < (
    batch.tokens.shape[1] - batch.lengths[:, None]
  )
  assert outside.any()
  assert set(batch.tokens[outside].tolist()) == {tokenization.pad_id}


def test_preview_shows_what_is_learned(rows, tokenization, capsys):
  for kind in KINDS:
    found = config(rows, data__prompt_len=64, data__preview=2)
    inputs.read(found, tokenization, kind, train=False)
    assert capsys.readouterr().out == ""
    inputs.read(found, tokenization, kind)
    text = capsys.readouterr().out
    assert "Row 2 of 2" in text and "Row 3" not in text
    assert "prompt" in text and "mocha" in text
    assert ("rejected | ink" in text) == (kind == "preferences")
    assert ("response, label 1 | tea" in text) == (kind == "labelled")
  found = config(rows, "sft", data__preview=1)
  inputs.targets(found, tokenization)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "Row 1 of 1"
  (target,) = [line for line in lines if line.startswith("  target | ")]
  assert any(word in target for word in WORDS)


def test_too_few_dialogues_to_fill_a_batch_of_packed_rows(rows, tokenization):
  with pytest.raises(
    ValueError, match=r"32 training dialogues are packed into"
  ):
    inputs.targets(
      config(rows, "sft", data__max_len=136, batch_size=32), tokenization
    )


def test_rows_that_are_too_long_are_counted_or_refused(rows, tokenization):
  splits = inputs.load(config(rows).data, "preferences", 0)
  encode = batches_lib.KINDS["preferences"].encode
  lengths, held_out = (
    sorted(row.length for row in encode(side, tokenization, 64)[0])
    for side in (splits.train, splits.validation)
  )
  limit = max(lengths[20], held_out[4])
  found = config(rows, data__max_len=limit)
  counts = inputs.read(found, tokenization, "preferences").counts
  lost = sum(length > limit for length in lengths)
  assert counts["too_long_dropped"] == lost > 0
  found = config(rows, data__max_len=lengths[10])
  with pytest.raises(
    ValueError, match=r"(?s)rows cannot be used.*which are too long: .*max_len"
  ):
    inputs.read(found, tokenization, "preferences")
  most = max(*lengths, *held_out)
  found = config(rows, data__max_len=lengths[10], data__long="error")
  with pytest.raises(ValueError, match=rf"The longest row needs {most}\.$"):
    inputs.read(found, tokenization, "preferences")
  found = config(rows, data__max_len=most - 1, data__long="error")
  with pytest.raises(ValueError, match=rf"to {most} to keep all .*'cut'\.$"):
    inputs.read(found, tokenization, "preferences")


def test_rows_that_the_tokenizer_refuses_are_counted(rows, tokenization):
  """Half of a surrogate pair is valid in JSON, and no text."""
  for name in ("demonstrations", "preferences"):
    with (rows / f"{name}.jsonl").open("a") as file:
      file.write(json.dumps({**GOOD[name], "prompt": "mocha \ud800"}) + "\n")
  settings = config(rows, "sft", data__validation_path=str(rows))
  assert inputs.targets(settings, tokenization).counts["unusable_dropped"] == 1
  found = inputs.read(settings, tokenization, "preferences")
  assert found.counts["unusable_dropped"] == 1


def test_what_a_row_says_besides_its_text_reaches_the_batches(tmp_path):
  """From a file as OpenAI's fine-tuning takes it to the targets of a batch."""
  made = families.write(TOOL_FAMILIES["qwen2.5"], tmp_path / "tokenizer")
  ours = tokenization_lib.load_tokenizer(made)
  asked = {"function": {"name": "weather", "arguments": '{"city": "Bergen"}'}}
  talk = [
    user("weather?"),
    {"role": "assistant", "content": None, "tool_calls": [asked]},
    {"role": "tool", "content": "sunny"},
    assistant("Il pleut.") | {"weight": 0},
    user("Sure?"),
    assistant("Il fait beau.") | {"weight": 1},
  ]
  row = {"system": "Answer in French.", "tools": [tool("weather")]}
  path = tmp_path / "rows.jsonl"
  path.write_text(json.dumps(row | {"messages": talk}) + "\n")
  settings = config(
    path, "sft", data__validation_path=str(path), data__max_len=512,
    batch_size=1,
  )  # fmt: skip
  batch = next(inputs.targets(settings, ours).train)
  learned = ours.tokenizer.decode(batch.tokens[batch.target_mask])
  assert learned == (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Bergen"}}\n'
    "</tool_call><|im_end|>Il fait beau.<|im_end|>"
  )
  read = ours.tokenizer.decode(batch.tokens[batch.segments > 0])
  for text in ("Answer in French.", "<tools>", "sunny", "Il pleut."):
    assert text in read

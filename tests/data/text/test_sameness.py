"""Tokenizers that exchange ids, in whatever files, and ones that do not."""

import json
import random
import shutil

import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, normalizers, pre_tokenizers

from perl_jax.data.text import files, sameness
from tests.data.text import families

ROWS = 1000


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  """A directory for each kind of tokenizer, as transformers saves it."""
  root = tmp_path_factory.mktemp("sources")
  found = {}
  for name in ("qwen3", "llama2", "gemma3"):
    raw = families.write(families.FAMILIES[name], root / "raw" / name)
    loaded = transformers.AutoTokenizer.from_pretrained(raw)
    loaded.save_pretrained(root / name)
    found[name] = root / name
  return found


@pytest.fixture(params=["qwen3", "llama2", "gemma3"])
def pair(request, sources, tmp_path):
  """A tokenizer's directory, and a copy of it."""
  source = sources[request.param]
  return source, shutil.copytree(source, tmp_path / "copy")


@pytest.fixture
def qwen(sources, tmp_path):
  return sources["qwen3"], shutil.copytree(sources["qwen3"], tmp_path / "copy")


def compare(first, second, rows=ROWS, reward_rows=ROWS):
  sides = [files.read(path)[0] for path in (first, second)]
  return sameness.compare(*sides, rows, reward_rows)


def edit(directory, change):
  """Changes tokenizer.json in place."""
  path = directory / "tokenizer.json"
  found = json.loads(path.read_text())
  changed = change(found)
  path.write_text(json.dumps(found if changed is None else changed))


def same(first, second, notes=()):
  found = compare(first, second)
  assert found.problems == ()
  assert len(found.notes) == len(notes), found.notes
  for note, text in zip(found.notes, notes, strict=True):
    assert text in note


def different(first, second, *texts, **rows):
  found = " | ".join(compare(first, second, **rows).problems)
  for text in texts:
    assert text in found


def test_saved_padding_and_truncation(pair):
  """What a data loader leaves in the files when it saves them."""
  first, second = pair
  loaded = transformers.AutoTokenizer.from_pretrained(first)
  loaded.pad_token = loaded.pad_token or loaded.eos_token
  loaded(["a", "hello there"], padding=True, truncation=True, max_length=64)
  loaded.save_pretrained(second)
  saved = json.loads((second / "tokenizer.json").read_text())
  assert saved["padding"] and saved["truncation"]
  same(first, second)


def test_the_order_of_keys_and_the_spelling_of_merges(pair):
  first, second = pair

  def change(found):
    model = found["model"]
    spelled = [
      m if isinstance(m, list) else m.split(" ") for m in model["merges"]
    ]
    shown = [" ".join(m) for m in spelled]
    model["merges"] = spelled if shown == model["merges"] else shown
    model["vocab"] = dict(sorted(model["vocab"].items()))
    return dict(sorted(found.items()))

  before = (second / "tokenizer.json").read_bytes()
  edit(second, change)
  assert (second / "tokenizer.json").read_bytes() != before
  same(first, second)


def test_what_ids_do_not_go_through(qwen):
  """Post-processors add what the template writes; decoders come after."""
  first, second = qwen

  def change(found):
    found["post_processor"] = None
    found["decoder"] = {"type": "Fuse"}
    steps = found["pre_tokenizer"]
    found["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [steps]}

  edit(second, change)
  same(first, second)


def test_a_vocabulary_and_merges_in_files_of_their_own(qwen):
  """Their added tokens may be lost; ids mean the same, and the log says so."""
  first, second = qwen
  model = json.loads((second / "tokenizer.json").read_text())["model"]
  merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
  (second / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
  added = json.loads((second / "tokenizer.json").read_text())["added_tokens"]
  vocabulary = model["vocab"] | {t["content"]: t["id"] for t in added}
  (second / "vocab.json").write_text(json.dumps(vocabulary))
  (second / "tokenizer.json").unlink()
  same(first, second, ["text around added tokens is cut differently"])


@pytest.mark.parametrize("name", ["qwen2", "llama3", "smollm"])
def test_a_tokenizer_from_a_gguf_file(name, tmp_path):
  pytest.importorskip("gguf", reason="needs the package gguf")
  from tests.data.text import gguf_files
  from tests.data.text.test_gguf_pre_tokenizers import original

  backend = original(name)
  gguf_files.write_byte_level(tmp_path / "a.gguf", backend, pre=name)
  other = "smollm" if name == "llama3" else "llama3"
  gguf_files.write_byte_level(tmp_path / "b.gguf", backend, pre=other)
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend
  ).save_pretrained(tmp_path / "hf")
  found = compare(tmp_path / "a.gguf", tmp_path / "hf")
  assert found.problems == ()
  different(tmp_path / "b.gguf", tmp_path / "hf", "' is [")


def test_tokens_that_only_the_reward_model_has(qwen):
  """A pad token that its trainer added; no text of a policy gives it."""
  first, second = qwen
  loaded = transformers.AutoTokenizer.from_pretrained(second)
  loaded.add_special_tokens({"pad_token": "<my_pad>"})
  loaded.save_pretrained(second)
  id_ = loaded.convert_tokens_to_ids("<my_pad>")
  same(first, second, [f"the reward model alone has '<my_pad>' ({id_})"])
  different(second, first, f"the reward model lacks '<my_pad>' ({id_})")
  assert compare(second, first, rows=id_).problems == ()


def test_rows_without_a_token_have_a_name_in_gguf_files(qwen):
  first, second = qwen
  loaded = transformers.AutoTokenizer.from_pretrained(second)
  name = f"[PAD{len(loaded)}]"
  loaded.add_tokens([name])
  loaded.save_pretrained(second)
  same(second, first, ["the policy alone has, but does not give, '[PAD"])


def test_a_token_past_the_embedding_of_the_reward_model(qwen):
  first, second = qwen
  tokenizer = transformers.AutoTokenizer.from_pretrained(first)
  last = len(tokenizer) - 1
  token = tokenizer.convert_ids_to_tokens(last)
  different(first, second, f"lacks {token!r} ({last})", reward_rows=last)
  assert compare(first, second, reward_rows=last, rows=last).problems == ()
  found = compare(first, second, reward_rows=last + 1)
  assert found.problems == () and f"to {ROWS - 1} have a row" in found.notes[0]


def test_flags_of_added_tokens_are_noted(qwen):
  first, second = qwen

  def change(found):
    for token in found["added_tokens"]:
      if token["content"] == "<think>":
        token["special"] = True
      if token["content"] == "</think>":
        token["lstrip"] = True

  edit(second, change)
  config = json.loads((second / "tokenizer_config.json").read_text())
  config.pop("added_tokens_decoder", None)
  (second / "tokenizer_config.json").write_text(json.dumps(config))
  same(first, second, ["'a </think> b' is [", "special '<think>'"])


# Tokenizers that are not the same.


def swap(found):
  vocab = found["model"]["vocab"]
  tokens = [t for t in vocab if t.isalpha()][:2]
  vocab[tokens[0]], vocab[tokens[1]] = vocab[tokens[1]], vocab[tokens[0]]


def reverse_merges(found):
  found["model"]["merges"].reverse()


def test_merges_in_another_order(qwen):
  first, second = qwen
  edit(second, reverse_merges)
  different(first, second, "for the policy and [")


def fewer_merges(found):
  found["model"]["merges"].pop()


def swap_unrelated_merges(found):
  """Exchanges neighbours that no text can tell apart."""
  merges = found["model"]["merges"]
  pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
  for i in range(len(pairs) - 1):
    (a, b), (c, d) = pairs[i : i + 2]
    if not {a, b, a + b} & {c, d, c + d}:
      merges[i : i + 2] = merges[i + 1], merges[i]
      return
  raise AssertionError("no such merges")


def test_merges_in_an_order_that_no_text_shows(pair):
  first, second = pair
  edit(second, swap_unrelated_merges)
  same(first, second, notes=["another order of merges, which cuts"])


@pytest.mark.parametrize(
  ("change", "text"),
  [
    (swap, "for the policy and"),
    (fewer_merges, "for the policy and None for the reward model"),
  ],
)
def test_other_ids_and_merges(pair, change, text):
  first, second = pair
  edit(second, change)
  different(first, second, text)


@pytest.mark.parametrize(
  "change",
  [
    lambda backend: setattr(backend, "normalizer", normalizers.Lowercase()),
    lambda backend: setattr(backend, "normalizer", normalizers.NFKC()),
    lambda backend: setattr(
      backend,
      "pre_tokenizer",
      pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
      ),
    ),
    lambda backend: setattr(
      backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
  ],
)
def test_text_that_is_cut_differently(tmp_path, change):
  raw = families.write(families.FAMILIES["qwen2.5"], tmp_path / "raw")
  file = str(raw / "tokenizer.json")
  sides = [tokenizers.Tokenizer.from_file(file) for _ in "ab"]
  change(sides[1])
  for side, name in zip(sides, "ab", strict=True):
    transformers.PreTrainedTokenizerFast(tokenizer_object=side).save_pretrained(
      tmp_path / name
    )
  different(tmp_path / "a", tmp_path / "b", " is [", "for the reward model")


def test_scores_of_a_unigram_model(tmp_path):
  pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.5), ("ab", -2.0)]
  for name, score in (("a", -2.0), ("b", -2.0 - 1e-9), ("c", -3.0)):
    model = tokenizers.models.Unigram([*pieces[:3], ("ab", score)], unk_id=0)
    backend = tokenizers.Tokenizer(model)
    transformers.PreTrainedTokenizerFast(
      tokenizer_object=backend, unk_token=AddedToken("<unk>")
    ).save_pretrained(tmp_path / name)
  same(tmp_path / "a", tmp_path / "b")
  different(tmp_path / "a", tmp_path / "c", "piece 3 is ('ab', -2.0)")


def test_families_differ(sources):
  different(sources["qwen3"], sources["gemma3"], "id 0 is", "for the policy")


def test_the_texts_are_the_same_in_every_run():
  state = random.getstate()
  assert [*sameness._texts()] == [*sameness._texts()]
  assert random.getstate() == state


# Chat templates.


def test_templates_are_compared_by_what_they_render(qwen):
  first, second = (files.read(path)[0] for path in qwen)
  assert sameness.template_difference(first, second) == ""
  second.chat_template = "{# other bytes #}" + second.chat_template
  assert sameness.template_difference(first, second) == ""
  second.chat_template = "{{ messages[0]['content'] }}"
  found = sameness.template_difference(first, second)
  assert "<|im_start|>user" in found and "'hi' for the reward model" in found
  second.chat_template = None
  assert sameness.template_difference(first, second) == ""


def test_a_template_that_refuses_a_conversation_differs(qwen):
  first, second = (files.read(path)[0] for path in qwen)
  second.chat_template = "{{ raise_exception('no system message') }}"
  found = sameness.template_difference(first, second)
  assert "None for the reward model" in found
  assert sameness.template_difference(second, first) == ""

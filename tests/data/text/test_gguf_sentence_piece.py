"""SentencePiece models in GGUF files, as Llama 2, Mistral and Gemma have them.

References: the algorithm of SentencePiece in a few lines, and what
`transformers` makes of the same file. Of a text that begins with a space the
latter two differ: `transformers` puts no second one in front.
"""

import random
import re

import hypothesis
import pytest
import tokenizers
import transformers
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax.data.text.gguf_tokenizer import build_tokenizer, write_tokenizer
from perl_jax.data.text.tokenization import load_tokenizer
from tests.data.text import gguf_files
from tests.data.text.chat_templates import GEMMA, LLAMA2
from tests.data.text.gguf_files import Kind

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
few = hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
# Few letters, so that there are many ways to join them.
texts = st.lists(
  st.one_of(
    st.sampled_from(gguf_files.PARTS),
    st.text(max_size=2),
    st.text("abc ", max_size=12),
  ),
  max_size=12,
).map("".join)


def trained():
  """Pieces that BPE of characters joins, the first ones first; characters."""
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
  rng = random.Random(0)
  words = ("".join(rng.choices("abc", k=rng.randint(1, 7))) for _ in range(300))
  backend.train_from_iterator([*gguf_files.CORPUS, " ".join(words)], trainer)
  vocab, merges = gguf_files.vocabulary(backend)
  joined = ["".join(merge) for merge in merges]
  return joined, [token for token in vocab if token not in set(joined)]


def llama():
  """(tokens, kinds, scores); the order of the tokens means nothing."""
  joined, letters = trained()
  ranks = {token: float(-i) for i, token in enumerate(joined)}
  random.Random(0).shuffle(joined)
  tokens = ["<unk>", "<s>", "</s>", *BYTES, *joined, *letters]
  kinds = [Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, *[Kind.BYTE] * 256]
  scores = [0.0] * len(kinds) + [ranks[token] for token in joined]
  scores += [-1e9] * len(letters)
  kinds += [Kind.NORMAL] * (len(tokens) - len(kinds))
  return tokens, kinds, scores


def write_llama(path, **fields):
  tokens, kinds, scores = llama()
  fields = {
    "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    "scores": scores, "add_bos_token": False,
  } | fields  # fmt: skip
  return gguf_files.write(path, tokens, model="llama", kinds=kinds, **fields)


def gemma():
  """(tokens, kinds) in the order of Gemma; spaces are user-defined tokens."""
  joined, letters = trained()
  special = ["<pad>", "<eos>", "<bos>", "<unk>"]
  turns = ["<start_of_turn>", "<end_of_turn>"]
  defined = ["<mask>", "\n\n", "  ", "   ", "    "]
  taken = {*defined, *(SPACE * n for n in (2, 3, 4))}
  joined = [token for token in joined if token not in taken]
  tokens = [*special, *turns, *defined, *BYTES, *joined, *letters]
  kinds = [Kind.CONTROL] * 3 + [Kind.UNKNOWN]
  kinds += [Kind.CONTROL] * 2 + [Kind.USER_DEFINED] * 5 + [Kind.BYTE] * 256
  return tokens, kinds + [Kind.NORMAL] * (len(tokens) - len(kinds))


def write_gemma(path, architecture="gemma3", **fields):
  tokens, kinds = gemma()
  return gguf_files.write(
    path, tokens, model="llama", architecture=architecture, kinds=kinds,
    scores=[-1000.0] * len(tokens), add_space_prefix=False, bos_token_id=2,
    eos_token_id=1, unknown_token_id=3, padding_token_id=0, **fields,
  )  # fmt: skip


def sentence_piece(tokens, scores, text):
  """Joins the neighbours whose union has the best score, until none has one.

  What is no token is written as bytes.
  """
  ranks = {
    token: score
    for token, score in zip(tokens, scores, strict=True)
    if not (token.startswith("<") and token.endswith(">"))
  }
  pieces = list(text.replace(" ", SPACE))
  while True:
    best = None
    for i in range(len(pieces) - 1):
      score = ranks.get(pieces[i] + pieces[i + 1])
      if score is not None and (best is None or score > best[0]):
        best = score, i
    if best is None:
      break
    i = best[1]
    pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
  ids = {token: i for i, token in enumerate(tokens)}
  found = []
  for piece in pieces:
    if piece in ranks:
      found.append(ids[piece])
    else:
      found += [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
  return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gguf")
  return {
    "llama": write_llama(folder / "llama.gguf"),
    "bare": write_llama(folder / "bare.gguf", add_space_prefix=False),
    "gemma": write_gemma(folder / "gemma.gguf"),
  }


@pytest.mark.parametrize(("name", "prefix"), [("llama", " "), ("bare", "")])
def test_tokens_are_sentence_piece_s(name, prefix, files):
  ours = build_tokenizer(files[name])[0]
  tokens, _, scores = llama()

  @few
  @hypothesis.given(texts)
  def check(text):
    text = text.lstrip(" ") if prefix else text
    expected = sentence_piece(tokens, scores, prefix + text) if text else []
    assert ours(text).input_ids == expected
    assert ours.decode(expected) == text

  check()


def test_tokens_are_gemma_s(files):
  """User-defined tokens are found first, the longest ones, as llama.cpp does.

  The order of the others ranks them, whatever the scores say.
  """
  ours = build_tokenizer(files["gemma"])[0]
  tokens, kinds = gemma()
  spelled = [t if t.strip(" ") else SPACE * len(t) for t in tokens]
  assert ours.convert_ids_to_tokens(range(len(tokens))) == spelled
  defined = [t for t, k in zip(tokens, kinds) if k == Kind.USER_DEFINED]
  defined = "|".join(sorted(map(re.escape, defined), key=len, reverse=True))
  scores = [-i for i in range(len(tokens))]

  @few
  @hypothesis.given(texts)
  @hypothesis.example("a" + " " * 9 + "b")
  @hypothesis.example(" " * 7 + "\n\n\n" + " " * 5)
  def check(text):
    expected = [2]
    for i, part in enumerate(re.split(f"({defined})", text)):
      if i % 2:
        expected.append(tokens.index(part))
      else:
        expected += sentence_piece(spelled, scores, part)
    assert ours(text).input_ids == expected
    assert ours.decode(expected[1:]) == text

  check()


@pytest.mark.slow  # imports PyTorch
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_tokens_are_those_of_transformers(name, files):
  pytest.importorskip("torch", reason="transformers reads GGUF with PyTorch")
  path = files[name]
  ours = build_tokenizer(path)[0]
  theirs = transformers.AutoTokenizer.from_pretrained(
    str(path.parent), gguf_file=path.name
  )
  special = (" <s> ", "</s>", "<eos>", "<bos>", "<start_of_turn>", "<mask>")

  @few
  @hypothesis.given(st.lists(st.one_of(texts, st.sampled_from(special))))
  def check(parts):
    # Longer runs it joins by halves, as neither SentencePiece nor Gemma does.
    text = re.sub(" {5,}", " " * 4, "".join(parts))
    ids = theirs(text).input_ids
    assert ours(text).input_ids == ids
    assert ours.decode(ids) == theirs.decode(ids)

  check()
  assert ours.get_vocab() == theirs.get_vocab()
  named = dict(theirs.special_tokens_map)
  named.pop("mask_token", None)  # of the class, not of the file
  assert ours.special_tokens_map == named


@pytest.mark.parametrize("said", [None, False, True])
def test_bos_and_eos_around_plain_text(said, tmp_path):
  """BOS is the rule for such a model, EOS is not."""
  path = write_llama(
    tmp_path / "m.gguf", add_bos_token=said, add_eos_token=said
  )
  ids = build_tokenizer(path)[0]("hello").input_ids
  assert (ids[0] == 1) == (said is not False)
  assert (ids[-1] == 2) == (said is True)


def test_special_tokens_are_no_merges(tmp_path):
  """A text that spells one stays text where it is asked to."""
  tokens, kinds, scores = llama()
  more = [t for t in ("<", "s", ">", "<s", "s>") if t not in tokens]
  path = gguf_files.write(
    tmp_path / "m.gguf", [*tokens, *more], model="llama",
    kinds=[*kinds, *[Kind.NORMAL] * len(more)],
    scores=[*scores, *[-5.0] * len(more)], bos_token_id=1, eos_token_id=2,
    unknown_token_id=0, add_bos_token=False,
  )  # fmt: skip
  ours = build_tokenizer(path)[0]
  assert ours("<s>").input_ids == [1]
  split = ours("<s>", split_special_tokens=True).input_ids
  assert 1 not in split and ours.decode(split) == "<s>"


def test_a_directory_holds_the_same_tokenizer(files, tmp_path):
  for name, path in files.items():
    write_tokenizer(path, tmp_path / name)
    ours = build_tokenizer(path)[0]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
    for text in ("hello  there", " hello", "日本 <s>x</s> y", "\n\n\n"):
      assert ours(text).input_ids == again(text).input_ids
      ids = ours(text).input_ids
      assert ours.decode(ids) == again.decode(ids)


@pytest.mark.parametrize(
  ("write", "template", "system"),
  [(write_llama, LLAMA2, True), (write_gemma, GEMMA, False)],
)
def test_conversations(write, template, system, tmp_path):
  """Prompts are those of `apply_chat_template`; responses come back."""
  path = write(tmp_path / "m.gguf", keys={"tokenizer.chat_template": template})
  messages = [
    {"role": "user", "content": "abc  there, 12?"},
    {"role": "assistant", "content": "cab"},
    {"role": "user", "content": "hello\n\nthere"},
  ]
  if system:
    messages.insert(0, {"role": "system", "content": "be kind"})
  loaded = load_tokenizer(path)
  expected = build_tokenizer(path)[0].apply_chat_template(
    messages, add_generation_prompt=True, return_dict=False
  )
  assert loaded.encode_prompt(messages)[0] == expected
  for text in ("hello there", "abcab  cab\nx", "日本"):
    assert loaded.decode(loaded.encode_response(messages, text)) == text

"""Small tokenizers built like those of real model families.

The chat templates are in `chat_templates.py`. Only the vocabularies are small:
the handling of spaces, bytes and BOS and the tokenizer classes are those of the
families.
"""

import dataclasses
import json
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tests.data.text.chat_templates import (
  GEMMA,
  GEMMA3,
  LLAMA2,
  LLAMA3,
  LLAMA32,
  MISTRAL1,
  MISTRAL2,
  QWEN2,
  QWEN3,
  QWEN3_THINKING,
  QWEN25,
  R1,
  R1_FIRST,
  SMOLLM3,
)

TEXTS = ["hello there, what can I get you? 12 mochas and\n\nmilk [INST]"] * 8

_LLAMA3 = (
  "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
  "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
)  # fmt: skip
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_GEMMA = (
  "<pad>",
  "<eos>",
  "<bos>",
  "<unk>",
  "<start_of_turn>",
  "<end_of_turn>",
)
_LLAMA2 = ("<unk>", "<s>", "</s>")


@dataclasses.dataclass(frozen=True)
class Family:
  """How a family turns text into tokens.

  Attributes:
    template: The chat template; None for a tokenizer without one.
    kind: "bytes", "llama" (spaces as a letter, one put in front) or "gemma".
    special: Special tokens.
    config: Fields of tokenizer_config.json.
    eos: The tokens of eos_token_id in generation_config.json; None for no file.
    stops: The stop tokens that result from these files.
    plain: Added tokens that are not special.
    bos: The BOS token, or None.
  """

  template: str | None
  kind: str
  special: tuple[str, ...]
  config: dict[str, object]
  eos: str | tuple[str, ...] | None
  stops: tuple[str, ...]
  plain: tuple[str, ...] = ()

  @property
  def bos(self):
    return self.config.get("bos_token")


def _config(bos, eos, name, **more):
  found = {"bos_token": bos, "eos_token": eos, "tokenizer_class": name}
  return found | more


_OF_LLAMA2 = _config("<s>", "</s>", "LlamaTokenizer", add_bos_token=True)
_OF_LLAMA3 = _config(
  "<|begin_of_text|>", "<|eot_id|>", "PreTrainedTokenizerFast",
  clean_up_tokenization_spaces=True,
)  # fmt: skip
_OF_QWEN = _config(
  None, "<|im_end|>", "Qwen2Tokenizer", pad_token="<|endoftext|>",
  add_bos_token=False,
)  # fmt: skip
_OF_GEMMA = _config(
  "<bos>", "<eos>", "GemmaTokenizer", pad_token="<pad>", add_bos_token=True
)
_OF_SMOLLM2 = _config(
  "<|im_start|>", "<|im_end|>", "GPT2Tokenizer", unk_token="<|endoftext|>",
  pad_token="<|im_end|>",
)  # fmt: skip
_QWEN_EOS = ("<|im_end|>", "<|endoftext|>")
_THINK = ("<think>", "</think>")
FAMILIES = {
  "llama2": Family(LLAMA2, "llama", _LLAMA2, _OF_LLAMA2, "</s>", ("</s>",)),
  # The class that others save it with keeps the pipeline of tokenizer.json.
  "llama2_fast": Family(
    LLAMA2, "llama", _LLAMA2,
    _OF_LLAMA2 | {"tokenizer_class": "PreTrainedTokenizerFast"}, None,
    ("</s>",),
  ),
  "llama3": Family(
    LLAMA3, "bytes", _LLAMA3, _OF_LLAMA3 | {"eos_token": "<|end_of_text|>"},
    ("<|end_of_text|>", "<|eot_id|>"), ("<|eot_id|>", "<|end_of_text|>"),
  ),
  "llama3.2": Family(
    LLAMA32, "bytes", _LLAMA3, _OF_LLAMA3,
    ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
  ),
  "mistral1": Family(
    MISTRAL1, "llama", _LLAMA2, _OF_LLAMA2 | {"legacy": True}, "</s>",
    ("</s>",),
  ),
  "mistral2": Family(
    MISTRAL2, "llama", (*_LLAMA2, "[INST]", "[/INST]"), _OF_LLAMA2, "</s>",
    ("</s>",),
  ),
  "qwen2": Family(QWEN2, "bytes", _QWEN, _OF_QWEN, _QWEN_EOS, _QWEN_EOS),
  "qwen2.5": Family(QWEN25, "bytes", _QWEN, _OF_QWEN, _QWEN_EOS, _QWEN_EOS),
  "qwen3": Family(
    QWEN3, "bytes", _QWEN, _OF_QWEN, _QWEN_EOS, _QWEN_EOS, plain=_THINK
  ),
  # BOS opens every turn, and the end of a turn pads.
  "smollm2": Family(
    QWEN2, "bytes", _QWEN, _OF_SMOLLM2, ("<|im_end|>",), ("<|im_end|>",)
  ),
  "gemma2": Family(
    GEMMA, "gemma", _GEMMA, _OF_GEMMA, "<eos>", ("<end_of_turn>", "<eos>")
  ),
  "gemma3": Family(
    GEMMA3, "gemma", _GEMMA, _OF_GEMMA, ("<eos>", "<end_of_turn>"),
    ("<end_of_turn>", "<eos>"),
  ),
}  # fmt: skip

_R1 = (
  "<｜begin▁of▁sentence｜>",
  "<｜end▁of▁sentence｜>",
  "<｜User｜>",
  "<｜Assistant｜>",
)
_OF_R1 = _config(_R1[0], _R1[1], "PreTrainedTokenizerFast", pad_token=_R1[1])
# Families whose templates know of thoughts; not all of what they write is in
# the conversations that they render.
REASONING = {
  "r1_first": Family(
    R1_FIRST, "bytes", _R1, _OF_R1, _R1[1], (_R1[1],), plain=_THINK
  ),
  "r1": Family(R1, "bytes", _R1, _OF_R1, _R1[1], (_R1[1],), plain=_THINK),
  # Tokens of thoughts may be special, or none at all.
  "r1_special": Family(
    R1, "bytes", (*_R1, *_THINK), _OF_R1, _R1[1], (_R1[1],)
  ),
  "qwen3_thinking": Family(
    QWEN3_THINKING, "bytes", _QWEN, _OF_QWEN, _QWEN_EOS, _QWEN_EOS,
    plain=_THINK,
  ),
  "qwen3_thinking_text": Family(
    QWEN3_THINKING, "bytes", _QWEN, _OF_QWEN, _QWEN_EOS, _QWEN_EOS
  ),
  "smollm3": Family(
    SMOLLM3, "bytes", _QWEN, _OF_QWEN, _QWEN_EOS, _QWEN_EOS, plain=_THINK
  ),
}  # fmt: skip


def write(family: Family, directory: pathlib.Path) -> pathlib.Path:
  """Writes the tokenizer's files as a published model has them."""
  directory.mkdir(parents=True, exist_ok=True)
  backend = _backend(family)
  backend.save(str(directory / "tokenizer.json"))
  config = {"clean_up_tokenization_spaces": False} | family.config
  if family.template is not None:
    config["chat_template"] = family.template
  (directory / "tokenizer_config.json").write_text(json.dumps(config))
  if family.eos is not None:
    eos = backend.token_to_id
    ids = (
      eos(family.eos)
      if isinstance(family.eos, str)
      else [*map(eos, family.eos)]
    )
    (directory / "generation_config.json").write_text(
      json.dumps({"eos_token_id": ids})
    )
  return directory


def _backend(family: Family) -> tokenizers.Tokenizer:
  if family.kind == "bytes":
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    _train(backend, family.special, pre_tokenizers.ByteLevel.alphabet())
  else:
    backend = _of_pieces(family)
  backend.add_tokens(
    [tokenizers.AddedToken(t, normalized=False) for t in family.plain]
  )
  if family.config.get("add_bos_token") or family.kind == "bytes":
    _add_bos(backend, family.bos)
  return backend


def _of_pieces(family: Family) -> tokenizers.Tokenizer:
  """A tokenizer as converted from SentencePiece, with a byte fallback."""
  space = "\u2581"
  every_byte = [f"<0x{i:02X}>" for i in range(256)]
  learner = tokenizers.Tokenizer(models.BPE())
  learner.normalizer = normalizers.Replace(" ", space)
  learner.pre_tokenizer = pre_tokenizers.Split(space, "merged_with_next")
  alphabet = [space, *map(chr, range(33, 127))]
  _train(learner, [*family.special, *every_byte], alphabet, size=480)
  found = json.loads(learner.to_str())["model"]
  merges = [tuple(pair) for pair in found["merges"]]
  backend = tokenizers.Tokenizer(
    models.BPE(
      found["vocab"], merges, unk_token="<unk>", fuse_unk=True,
      byte_fallback=True,
    )
  )  # fmt: skip
  steps = [
    decoders.Replace(space, " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if family.kind == "llama":
    backend.normalizer = normalizers.Sequence(
      [normalizers.Prepend(space), normalizers.Replace(" ", space)]
    )
    steps.append(decoders.Strip(" ", 1, 0))
  else:
    backend.normalizer = normalizers.Replace(" ", space)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  backend.decoder = decoders.Sequence(steps)
  backend.add_special_tokens(list(family.special))
  return backend


def _train(backend, special, alphabet, size=330) -> None:
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=list(special),
    initial_alphabet=sorted(alphabet),
    show_progress=False,
  )
  backend.train_from_iterator(TEXTS, trainer)


def _add_bos(backend, bos) -> None:
  if bos is not None:
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )

"""How text is cut before byte-level BPE, by the names of llama.cpp.

A GGUF file does not hold the pre-tokenizer of its tokenizer.json; the key
`tokenizer.ggml.pre` names it. The patterns are those of the families'
tokenizer.json, which llama.cpp follows: each in turn cuts what the ones before
it left, into its matches and what is between them.

Reference: llama.cpp, src/llama-vocab.cpp (`llm_tokenizer_bpe`).
"""

import dataclasses

_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r"|\s+(?!\S)|\s+"
)
_DIGIT = r"\p{N}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}"
# Capitals begin a word, as in "HTTPServer": two ways to be one.
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
  rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+"
  rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
  rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"
)


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
  """What a name stands for.

  Attributes:
    patterns: Regular expressions (Oniguruma) that cut the text, in turn.
    normal_form: Unicode normal form that text is brought to first, or None.
    whole_words: Whether a piece that is a token is taken as one, whatever the
      merges would make of it.
    add_bos: Whether BOS is put before plain text if the file does not say.
  """

  patterns: tuple[str, ...]
  normal_form: str | None = None
  whole_words: bool = False
  add_bos: bool = False


_OF_GPT2 = PreTokenizer((_GPT2,))
_OF_STARCODER = PreTokenizer((_DIGIT, _GPT2))
_OF_LLAMA3 = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
_OF_QWEN2 = PreTokenizer((_QWEN2,), normal_form="NFC")

PRE_TOKENIZERS = {
  "gpt-2": _OF_GPT2,
  "llama3": _OF_LLAMA3,
  "llama-v3": _OF_LLAMA3,
  "llama-bpe": _OF_LLAMA3,
  "qwen2": _OF_QWEN2,
  "deepseek-r1-qwen": _OF_QWEN2,
  "refact": _OF_STARCODER,
  "smollm": _OF_STARCODER,
  "starcoder": _OF_STARCODER,
  "tekken": PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
}

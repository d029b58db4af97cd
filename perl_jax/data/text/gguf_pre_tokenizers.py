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
# Latin, Greek, Cyrillic and other letters that come in two cases.
_CASED = (
  "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf"
  "\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f"
  "\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
  "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
  "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
  "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
  "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
  "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
  "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126"
  "\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
  "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
  "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
  "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
  "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
  "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
  "\U0001e900-\U0001e943"
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
  r"[\r\n]",
  rf"\s?[{_CASED}]+",
  "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
  r"\s+$",
  _CJK,
  r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT)
# llama.cpp's own, for files that were converted without a family's name.
_DEFAULT = (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


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
  "default": PreTokenizer(_DEFAULT),
  "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
  "deepseek-llm": PreTokenizer(_DEEPSEEK_LLM),
  "gpt-2": _OF_GPT2,
  "llama3": _OF_LLAMA3,
  "llama-v3": _OF_LLAMA3,
  "llama-bpe": _OF_LLAMA3,
  "falcon3": _OF_LLAMA3,
  "qwen2": _OF_QWEN2,
  "deepseek-r1-qwen": _OF_QWEN2,
  "megrez": _OF_QWEN2,
  "refact": _OF_STARCODER,
  "smollm": _OF_STARCODER,
  "starcoder": _OF_STARCODER,
  "tekken": PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
}

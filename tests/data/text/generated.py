"""Tokenizers, chat templates and conversations drawn at random.

Each draw is like something that people publish: a pipeline of a known kind, its
special tokens in some set-up, and a template in the style of some family.
"""

import dataclasses
import functools
import json
import random

import tokenizers
import transformers
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from tests.data.text.messages import message

_SPACE = "\u2581"
_CORPUS = [
  "hello there, what can I get you? 12 mochas and\n\nmilk [INST] the user\n",
  "<think>\nhm\n</think>\n\n assistant system: Be kind.  Instruction and  more",
] * 8
# The way of text through a tokenizer, up to its added tokens.
PIPELINES = (
  "bytes", "bytes_nfc", "bytes_space", "bytes_digits", "gemma", "prepend",
  "metaspace_first", "metaspace_always", "metaspace_never", "unigram",
)  # fmt: skip

# Styles of templates. BOS, EOS, OPEN and CLOSE stand for tokens, USER, BOT and
# SYSTEM for what opens turns, and TEXT for a content.
_LOOP = "{% for m in messages %}"
_TURNS = (
  _LOOP + "{% if m.role == 'user' %}USER{% elif m.role == 'assistant' %}BOT"
  "{% else %}SYSTEM{% endif %}TEXTCLOSE{% endfor %}"
  "{% if add_generation_prompt %}BOT{% endif %}"
)
_CHATML = (
  _LOOP + "OPEN{{ m.role }}\nTEXTCLOSE\n{% endfor %}"
  "{% if add_generation_prompt %}OPENassistant\n{% endif %}"
)
_DEFAULT = (
  "{% if messages[0].role != 'system' %}OPENsystem\nBe kind.CLOSE\n{% endif %}"
)
_THINKING = (
  "{% if m.role == 'assistant' %}"
  "{% set c = m.content.split('</think>')[-1].lstrip('\n') %}"
  "{% set r = m.content.split('</think>')[0].split('<think>')[-1].strip('\n')"
  " if '</think>' in m.content else '' %}<think>\n{{ r }}\n</think>\n\n{{ c }}"
  "{% else %}TEXT{% endif %}"
)
TEMPLATES = {
  "chatml": "BOS" + _CHATML,
  "chatml_default": "BOS" + _DEFAULT + _CHATML,
  "llama2": "BOS" + _LOOP + "{% if m.role == 'user' %}"
  "{% if not loop.first %}BOS{% endif %}[INST] TEXT [/INST]"
  "{% elif m.role == 'system' %}<<SYS>>TEXT<</SYS>>\n\n"
  "{% else %} TEXT EOS{% endif %}{% endfor %}",
  "llama3": "BOS" + _LOOP + "OPEN{{ m.role }}SEP\n\nTEXTCLOSE{% endfor %}"
  "{% if add_generation_prompt %}OPENassistantSEP\n\n{% endif %}",
  "gemma": "BOS{% if messages[0].role == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}" + _LOOP +
  "OPEN{{ 'model' if m.role == 'assistant' else m.role }}\nTEXTCLOSE\n"
  "{% endfor %}{% if add_generation_prompt %}OPENmodel\n{% endif %}",
  "mistral": "BOS" + _LOOP + "{% if m.role == 'user' %}[INST] TEXT [/INST]"
  "{% elif m.role == 'assistant' %}TEXTEOS{% else %}"
  "{{ raise_exception('Only user and assistant roles') }}{% endif %}"
  "{% endfor %}",
  "r1": "BOS" + _TURNS.replace("BOT{% endif %}", "BOT<think>\n{% endif %}")
  .replace("TEXT", "{{ m.content.split('</think>')[-1] }}"),
  "r1_first": "BOS" + _TURNS
  .replace("TEXT", "{{ m.content.split('</think>')[-1] }}"),
  "thinking": _CHATML.replace("TEXT", _THINKING)
  .replace("assistant\n{% endif", "assistant\n<think>\n{% endif"),
  "no_thinking": _CHATML.replace("TEXT", _THINKING).replace(
    "assistant\n{% endif", "assistant\n{% if enable_thinking is defined and not"
    " enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif"
  ),
  "zephyr": _LOOP + "<|{{ m.role }}|>\nTEXTEOS\n{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
  "alpaca": "BOSBelow is a talk.\n\n" + _LOOP + "{% if m.role == 'user' %}"
  "### Instruction:\nTEXT\n\n{% elif m.role == 'assistant' %}### Response:\n"
  "TEXTEOS\n\n{% else %}TEXT\n\n{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}### Response:\n{% endif %}",
  "vicuna": "BOS" + _LOOP + "{% if m.role == 'user' %}USER: TEXT "
  "{% elif m.role == 'assistant' %}ASSISTANT: TEXTEOS{% else %}TEXT "
  "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
  "turns": "BOS" + _TURNS,
  "separated": _LOOP + "EOS{{ m.role }}: TEXT{% endfor %}"
  "{% if add_generation_prompt %}EOSassistant: {% endif %}",
  "ends_when_done": "BOS" + _CHATML + "{% if not add_generation_prompt %}EOS"
  "{% endif %}",
  "no_generation_prompt": "BOS"
  + _CHATML.partition("{% if add_generation")[0],
  "bare": "BOS" + _LOOP + "TEXTEOS{% endfor %}",
  "none": None,
}  # fmt: skip
REASONING = ("r1", "r1_first", "thinking", "no_thinking")
_TEXTS = (
  "{{ m.content }}", "{{ m.content }}", "{{ m.content | trim }}",
  "{{ m.content.lstrip('\\n') }}", "{{ m['content'].rstrip() }}",
  # As templates write the answers of tools.
  "{% if m.role == 'assistant' %}{{ m.content }}"
  "{% else %}{{ m.content | tojson }}{% endif %}",
)  # fmt: skip
_WORDS = (
  "hello", "there", "12", "mochas", " ", "  ", "\n", "\n\n", "milk", "?", ",",
  "\t", "é", "e\u0301", "日本", "🙂", "</b>", "[INST]", "<", "|>", "think",
  "'s", "\u00a0", "user", "assistant", ":", "#", "\u2581", "0x0A", "{{ x }}",
  "\\n",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Draw:
  """A tokenizer with a template, and how it was drawn.

  Attributes:
    tokenizer: A tokenizer of `transformers`.
    facts: What was chosen, for the message of a failing test.
    reserved: Texts of the added tokens that are special.
    style: Key of `TEMPLATES`.
  """

  tokenizer: transformers.PreTrainedTokenizerFast
  facts: dict[str, object]
  reserved: tuple[str, ...]
  style: str


def draw(rng: random.Random) -> Draw:
  """Draws a tokenizer and a template for it."""
  pipeline = rng.choice(PIPELINES)
  backend = tokenizers.Tokenizer.from_str(_trained(pipeline))
  style = rng.choice([*TEMPLATES])
  eos = rng.choice(["</s>", "<|endoftext|>"])
  open_, close = rng.choice(
    [("<|im_start|>", "<|im_end|>"), ("<start>", "<end>"), ("<|h|>", eos)]
  )
  bos = rng.choice([None, "<s>", "<s>", open_, eos])
  # Of the other pipelines none has an unknown character.
  unk = "<unk>" if pipeline == "unigram" else rng.choice(["<unk>", eos])
  pad = rng.choice([None, "<pad>", eos, unk])
  user, bot = ("<|user|>", "<|bot|>")
  names = dict.fromkeys(
    t for t in (unk, bos, eos, pad, open_, close, user, bot, "<|sep|>") if t
  )
  special = rng.random() < 0.8
  strips = {"lstrip": False, "rstrip": False}
  if rng.random() < 0.25:
    strips = {side: rng.random() < 0.5 for side in strips}
  turn_tokens = (open_, close, user, bot)
  normalized = rng.random() < 0.15
  for name in names:
    of_turn = name in turn_tokens and name not in (bos, eos, pad, unk)
    token = AddedToken(
      name, **(strips if of_turn else {}), special=special or not of_turn,
      normalized=normalized and of_turn and not special,
    )  # fmt: skip
    add = backend.add_special_tokens if token.special else backend.add_tokens
    add([token])
  plain = [t for t in ("<think>", "</think>") if rng.random() < 0.6]
  plain += [t for t in ("  ", "mochas", "[INST]") if rng.random() < 0.1]
  marked = [t for t in plain if t.strip() and rng.random() < 0.3]
  backend.add_tokens(
    [AddedToken(t, normalized=normalized, special=t in marked) for t in plain]
  )
  puts = rng.choice(["", "bos", "bos eos"]) if bos else ""
  if puts:
    last = f" {eos}" if "eos" in puts else ""
    backend.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A{last}",
      special_tokens=[(t, backend.token_to_id(t)) for t in {bos, eos}],
    )
  chosen = {
    "BOS": "{{ bos_token }}" if bos and rng.random() < 0.8 else "",
    "EOS": eos, "OPEN": open_, "CLOSE": close, "SEP": "<|sep|>",
    "TEXT": rng.choice(_TEXTS),
  }  # fmt: skip
  chosen["USER"] = user + rng.choice(["", "\n", " "])
  chosen["BOT"] = rng.choice(["", "\n"]) + bot + rng.choice(["", "\n"])
  chosen["SYSTEM"] = rng.choice(["", "system: "])
  template = TEMPLATES[style]
  if template is not None:
    template = _fill(template, chosen, style)
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad,
    unk_token=unk, chat_template=template, clean_up_tokenization_spaces=False,
  )  # fmt: skip
  facts = {
    "pipeline": pipeline, "style": style, "template": template, "bos": bos,
    "eos": eos, "pad": pad, "unk": unk, "special": special, "strips": strips,
    "plain": plain, "marked": marked, "puts": puts,
    "normalized": normalized,
  }  # fmt: skip
  added = tokenizer.added_tokens_decoder.values()
  reserved = tuple(token.content for token in added if token.special)
  return Draw(tokenizer, facts, reserved, style)


def _fill(template: str, chosen: dict[str, str], style: str) -> str:
  words = [*chosen]
  if style in ("vicuna", "alpaca"):  # Those have words for the turns.
    words = [w for w in words if w not in ("USER", "BOT", "SYSTEM")]
  for word in words:
    template = template.replace(word, chosen[word])
  return template


def content(
  rng: random.Random, reserved: tuple[str, ...], lookalikes: bool = False
) -> str:
  """Draws a text, with texts of reserved tokens in it only if `lookalikes`."""
  words = [w for w in _WORDS if not any(token in w for token in reserved)]
  words += reserved * 3 * lookalikes
  while True:
    found = "".join(rng.choices(words, k=rng.choice([0, 1, 2, 4, 8])))
    if lookalikes or not any(token in found for token in reserved):
      return found


def talk(
  rng: random.Random, reserved: tuple[str, ...], lookalikes: bool = False
) -> list[dict[str, str]]:
  """Draws a conversation that a user ends; the first may be a system's."""
  roles = ["user", "assistant"] * rng.choice([0, 0, 1, 1, 2]) + ["user"]
  if rng.random() < 0.3:
    roles.insert(0, "system")
  return [message(role, content(rng, reserved, lookalikes)) for role in roles]


@functools.cache
def _trained(pipeline: str) -> str:
  """Returns a tokenizer without added tokens as JSON."""
  if pipeline.startswith("bytes"):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.decoder = decoders.ByteLevel()
    split = pre_tokenizers.ByteLevel(add_prefix_space=pipeline == "bytes_space")
    if pipeline == "bytes_nfc":
      backend.normalizer = normalizers.NFC()
    if pipeline == "bytes_digits":
      split = pre_tokenizers.Sequence(
        [
          pre_tokenizers.Split(
            Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
                  r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
            "isolated",
          ),
          pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
      )  # fmt: skip
    backend.pre_tokenizer = split
    _train(backend, pre_tokenizers.ByteLevel.alphabet(), 340, ["<unk>"])
    return backend.to_str()
  letters = [_SPACE, *map(chr, range(33, 127))]
  if pipeline == "unigram":
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.train_from_iterator(
      _CORPUS,
      trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>",
        initial_alphabet=[*letters, "\n"], show_progress=False,
      ),
    )  # fmt: skip
    return backend.to_str()
  return _of_pieces(pipeline, letters)


def _of_pieces(pipeline: str, letters: list[str]) -> str:
  """A tokenizer as converted from SentencePiece, with a byte fallback."""
  every_byte = [f"<0x{i:02X}>" for i in range(256)]
  learner = tokenizers.Tokenizer(models.BPE())
  learner.normalizer = normalizers.Replace(" ", _SPACE)
  learner.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
  _train(learner, letters, 480, ["<unk>", *every_byte])
  found = json.loads(learner.to_str())["model"]
  backend = tokenizers.Tokenizer(
    models.BPE(
      found["vocab"], [tuple(pair) for pair in found["merges"]],
      unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    )
  )  # fmt: skip
  first = decoders.Strip(" ", 1, 0)
  steps = [
    decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
  ]  # fmt: skip
  replace = normalizers.Replace(" ", _SPACE)
  if pipeline == "prepend":
    backend.normalizer = normalizers.Sequence(
      [normalizers.Prepend(_SPACE), replace]
    )
    steps.append(first)
  elif pipeline == "gemma":
    backend.normalizer = replace
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  else:
    scheme = pipeline.partition("_")[2]
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme=scheme, split=False
    )
    if scheme != "never":
      steps.append(first)
  backend.decoder = decoders.Sequence(steps)
  return backend.to_str()


def _train(backend, alphabet, size: int, special: list[str]) -> None:
  trainer = trainers.BpeTrainer(
    vocab_size=size, special_tokens=special, initial_alphabet=sorted(alphabet),
    show_progress=False,
  )  # fmt: skip
  backend.train_from_iterator(_CORPUS, trainer)

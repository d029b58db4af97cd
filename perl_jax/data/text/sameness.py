"""Whether two tokenizers exchange token ids: what they do, not their bytes.

A reward model scores the token ids of the policy: every id has to mean the same
to both, and plain text has to be cut into the same ids. Saved padding and
truncation, the order of keys, the spelling of merges, the files that hold a
tokenizer, decoders and post-processors make no difference to that.
"""

import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

# Text in which normalizers and pre-tokenizers differ if they differ at all.
TEXTS = (
  "Hello there, what can I get you?", " leading", "trailing ", "two  spaces",
  "   many     spaces   ", "tab\tand\nnewline", "\n\n\nlines\r\n\r\n", "\n",
  "I'm you're she'll WE'VE don'T d'accord it’s", "1234567890 1,000.50 3rd x2",
  "snake_case camelCase SHOUT iPhone15", "a.b...c!?;:(d)[e]{f}<g>/h\\i|j",
  "def f(x):\n    return x**2  # comment\n", "https://a.org/?q=1&r=2#s",
  "naïve café e\u0301 \u212b ﬁ ½ ² İi", "Straße ΣΊΣΥΦΟΣ привет",
  "漢字かな交じり文。한국어 ภาษาไทย हिन्दी العربية", "🙂👩‍👩‍👧🏽",
  "\u200b\u00a0\u3000x\ufeff", "▁under Ġbar Ċ", "\x00\x7f\x1b", "",
)  # fmt: skip
_LETTERS = "aB1 \n\t.,'_-é漢🙂s"
TALKS = (
  [{"role": "user", "content": "hi"}],
  [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
  ],
)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What differs between the tokenizers of a policy and a reward model.

  Attributes:
    problems: Why the ids of the policy mean something else to the other.
    notes: Differences that no id of the run shows.
  """

  problems: tuple[str, ...]
  notes: tuple[str, ...]


def compare(
  policy: Any, reward: Any, rows: int, reward_rows: int
) -> Comparison:
  """Compares two tokenizers of `transformers`.

  Args:
    policy: The tokenizer whose ids are scored.
    reward: The tokenizer of the model that scores them.
    rows: Rows of the policy's embedding; it gives no id past them.
    reward_rows: Rows of the reward model's embedding.
  """
  problems, notes = _vocabularies(policy, reward, rows, reward_rows)
  if not problems:
    parts = [_parts(tokenizer) for tokenizer in (policy, reward)]
    problems = _models(*parts)
    notes += _added(policy, reward)
    more, less = _pipelines(policy, reward, parts)
    problems += more
    notes += less
  return Comparison(tuple(problems), tuple(notes))


def _vocabularies(
  policy, reward, rows, reward_rows
) -> tuple[list[str], list[str]]:
  """Ids that mean different tokens, and tokens that one side lacks."""
  first, second = (
    {id_: token for token, id_ in tokenizer.get_vocab().items()}
    for tokenizer in (policy, reward)
  )
  other = [
    f"id {i} is {first[i]!r} for the policy and {second[i]!r} for the reward"
    " model"
    for i in sorted(first.keys() & second.keys())
    if first[i] != second[i]
  ]
  lacked = [i for i in first if i not in second or i >= reward_rows]
  # The second is how converters call a row without a token.
  unseen = [i for i in lacked if i >= rows or first[i] == f"[PAD{i}]"]
  lacked = sorted(set(lacked) - set(unseen))
  problems = _shown("", other)
  problems += _shown("the reward model lacks ", _tokens(first, lacked))
  extra = _tokens(second, sorted(second.keys() - first.keys()))
  notes = _shown("the reward model alone has ", extra)
  unseen = [i for i in unseen if i not in second]
  unseen = _tokens(first, sorted(unseen))
  notes += _shown("the policy alone has, but does not give, ", unseen)
  if rows > reward_rows and not lacked:
    notes.append(
      f"ids from {reward_rows} to {rows - 1} have a row in the policy's"
      " embedding alone, and no token"
    )
  return problems, notes


def _models(policy, reward) -> list[str]:
  """Merges of two BPE models; pieces and scores of unigram models.

  The order of equal merges is a matter of `_pipelines`: where they were made
  from scores, it may differ without a difference to any text.
  """
  models = [parts.get("model") or {} for parts in (policy, reward)]
  kinds = {model.get("type") for model in models}
  if kinds == {"BPE"}:
    first, second = _merges(policy), _merges(reward)
    if set(first) == set(second):
      return []
    what = "merge"
  elif kinds == {"Unigram"}:
    first, second = (
      [(piece, float(np.float32(score))) for piece, score in model["vocab"]]
      for model in models
    )
    what = "piece"
  else:
    return []
  found = [
    f"{what} {i} is {a!r} for the policy and {b!r} for the reward model"
    for i, (a, b) in enumerate(itertools.zip_longest(first, second))
    if a != b
  ]
  return _shown("", found, most=1)


def _added(policy, reward) -> list[str]:
  """Notes on tokens that are found in text before it is cut.

  Their ids mean the same, and the policy's tokenizer alone cuts.
  """
  first, second = (
    {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    for tokenizer in (policy, reward)
  )
  shared = policy.get_vocab().keys() & reward.get_vocab().keys()
  found, special = [], []
  for token in sorted((first.keys() | second.keys()) & shared):
    flags = [_flags(side.get(token)) for side in (first, second)]
    if flags[0] == flags[1]:
      continue
    for text in (token, f"a {token} b", f"a{token}b"):
      found += _cut_differently(policy, reward, text)
    if all(flags) and flags[0]["special"] != flags[1]["special"]:
      special.append(repr(token))
  notes = _shown("text around added tokens is cut differently: ", found)
  return notes + _shown("only one side calls special ", special)


def _flags(token: Any) -> dict[str, bool]:
  """Flags of an added token; {} if it is none."""
  names = ("lstrip", "rstrip", "single_word", "normalized", "special")
  return {name: getattr(token, name) for name in names} if token else {}


def _pipelines(policy, reward, parts) -> tuple[list[str], list[str]]:
  """Normalizers, pre-tokenizers and what else a model of tokens has."""
  other = [
    name
    for name in ("normalizer", "pre_tokenizer", "model")
    if _canonical(parts[0].get(name)) != _canonical(parts[1].get(name))
  ]
  if _merges(parts[0]) != _merges(parts[1]):
    other.append("order of merges")
  if all(parts) and not other:
    return [], []
  found = []
  for text in _texts():
    found += _cut_differently(policy, reward, text)
  names = " and ".join(other) or "kind of file"
  note = f"another {names}, which cuts {len([*_texts()])} texts alike"
  return _shown("", found), [] if found else [note]


def _cut_differently(policy, reward, text: str) -> list[str]:
  first, second = (
    t(text, add_special_tokens=False, verbose=False)["input_ids"]
    for t in (policy, reward)
  )
  if first == second:
    return []
  return [f"{text!r} is {first} for the policy and {second} for the reward"
          " model"]  # fmt: skip


def _texts() -> Iterator[str]:
  """Fixed texts, and some of letters in a fixed random order."""
  yield from TEXTS
  draw = random.Random(0)
  for length in range(1, 101):
    yield "".join(draw.choices(_LETTERS, k=length % 17 + 1))


def _parts(tokenizer) -> Mapping[str, Any]:
  """The parts of a tokenizer of the library `tokenizers`, {} for another."""
  backend = getattr(tokenizer, "backend_tokenizer", None)
  return json.loads(backend.to_str()) if hasattr(backend, "to_str") else {}


def _canonical(part: Any) -> Any:
  """A part without vocabulary and merges, or what is but spelled differently.

  An empty affix is none, and a sequence of one step is that step.
  """
  if isinstance(part, list):
    return [_canonical(step) for step in part]
  if not isinstance(part, dict):
    return part
  inner = part.get("normalizers", part.get("pretokenizers"))
  if part.get("type") == "Sequence" and len(inner or ()) == 1:
    return _canonical(inner[0])
  return {
    name: _canonical(value)
    for name, value in part.items()
    if name not in ("vocab", "merges", "dropout", "trim_offsets")
    and value not in (None, "", False)
  }


def _merges(parts: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Merges of a BPE model in their order, [] of another."""
  return [_pair(m) for m in (parts.get("model") or {}).get("merges") or ()]


def _pair(merge: Any) -> tuple[str, ...]:
  """A merge, which older files hold as one string."""
  return tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)


def _tokens(by_id: Mapping[int, str], ids: Iterable[int]) -> list[str]:
  return [f"{by_id[i]!r} ({i})" for i in ids]


def _shown(what: str, items: list[str], most: int = 4) -> list[str]:
  """[what and the first items], or []."""
  if not items:
    return []
  more = f" and {len(items) - most} more" if len(items) > most else ""
  return [f"{what}{'; '.join(items[:most])}{more}"]


def template_difference(policy: Any, reward: Any) -> str:
  """How the chat templates render a conversation differently, or "".

  A reward model reads conversations as the policy's template renders them, so
  that its own is not used. One without a template says nothing about it.
  """
  if not reward.chat_template or not policy.chat_template:
    return ""
  for talk in TALKS:
    rendered = [_rendered(tokenizer, talk) for tokenizer in (policy, reward)]
    if rendered[0] is not None and rendered[0] != rendered[1]:
      return "{!r} for the policy and {!r} for the reward model".format(
        *rendered
      )
  return ""


def _rendered(tokenizer, talk) -> str | None:
  """The rendering of a conversation; None if the template refuses it."""
  try:
    return tokenizer.apply_chat_template(talk, tokenize=False)
  except Exception:  # templates raise what they like
    return None

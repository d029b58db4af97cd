"""Messages to tokens and back: the only place where text is tokenised.

A chat template is rendered once per sequence of roles, with placeholders for
the contents, into a plan: special tokens, literal text and holes. Filling the
holes gives the tokens. This way

- a special token written inside a content stays text (it is split into bytes);
- a response is encoded as a piece of its own, after the tokens of the
  generation prompt and before the stop token, in training exactly as in sampling;
- equal texts are encoded once.

What the plan gives is compared with what the template renders for the real
messages, so templates that trim or rewrite contents are noticed.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
from collections.abc import Sequence

from perl_jax.data.records import Message

# A hole of a plan. Letters and digits survive any filter of a template.
_HOLE = "Xq7Zk{:05d}kZ7qX"
_HOLE_PATTERN = re.compile(r"Xq7Zk(\d{5})kZ7qX")
# ("token", id) | ("text", literal) | ("content", index of the message)
_Piece = tuple[str, int | str]
LONG = ("error", "turns", "cut")


def load_tokenizer(path: str | os.PathLike) -> "Tokenization":
  """Reads any Hugging Face tokenizer directory; runs no code from it.

  Raises:
    FileNotFoundError: `path` is no directory.
    ValueError: No tokenizer in it, or a template that cannot be used.
  """
  directory = pathlib.Path(path)
  if not directory.is_dir():
    raise FileNotFoundError(
      f"No tokenizer directory {directory}. It should hold tokenizer.json and "
      "tokenizer_config.json, as `save_pretrained` writes them."
    )
  # Without it transformers prints that there is no PyTorch.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      str(directory), local_files_only=True, trust_remote_code=False
    )
  except Exception as error:
    raise ValueError(
      f"{directory} has no tokenizer that transformers can read: {error}"
    ) from error
  more_stops = []
  generation = directory / "generation_config.json"
  if generation.exists():
    eos = json.loads(generation.read_text()).get("eos_token_id")
    more_stops = eos if isinstance(eos, list) else [eos]
  return Tokenization(
    tokenizer,
    name=str(directory),
    more_stop_ids=[i for i in more_stops if i is not None],
  )


class Tokenization:
  """The tokens of prompts, responses and dialogues for one tokenizer.

  Attributes:
    vocab_size: One more than the largest token id.
    stop_ids: Tokens that end a response. The first is the one that ends an
      assistant turn in the chat template and closes every encoded response;
      the others (eos, and those of `generation_config.json`) may be sampled.
    pad_id: A token for padding. Lengths define masks, so it may be a stop.
    bos_id: The token that starts every prompt, or None.
    name: Names the tokenizer in errors.
  """

  def __init__(
    self, tokenizer, name: str, more_stop_ids: Sequence[int] = ()
  ) -> None:
    self.name = name
    self._tokenizer = tokenizer
    self._has_template = bool(tokenizer.chat_template)
    added = {
      id_: token
      for id_, token in tokenizer.added_tokens_decoder.items()
      # A template is not cut at added white space, which joins with contents.
      if token.special or token.content.strip()
    }
    self._special = {token.content: id_ for id_, token in added.items()}
    self._special_text = {id_: token.content for id_, token in added.items()}
    self._strips_right = {id_ for id_, token in added.items() if token.rstrip}
    self._strips_left = {id_ for id_, token in added.items() if token.lstrip}
    longest_first = sorted(self._special, key=len, reverse=True)
    self._special_pattern = re.compile(
      f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})"
    )
    self._encode = functools.lru_cache(1 << 16)(self._encode_text)
    self._plans: dict[tuple[tuple[str, ...], bool], tuple[_Piece, ...]] = {}
    self._even: set[tuple[tuple[str, ...], int]] = set()
    self.stop_ids: tuple[int, ...] = ()
    self.bos_id: int | None = None
    self._prefix: list[int] = []
    self._anchor = self._find_anchor()
    self._find_bos()
    self.stop_ids = self._find_stops(more_stop_ids)
    self.vocab_size = 1 + max(
      max(tokenizer.get_vocab().values()), *self.stop_ids
    )
    pad = tokenizer.pad_token_id
    self.pad_id: int = self.stop_ids[-1] if pad is None else pad

  def encode_prompt(
    self,
    messages: Sequence[Message],
    limit: int | None = None,
    long: str = "error",
  ) -> tuple[list[int], dict[str, int]]:
    """Tokens up to and including the generation prompt.

    Args:
      messages: The context to respond to.
      limit: Most tokens that the result may have, or None.
      long: What to do with a longer prompt. "error"; "turns": leave out the
        oldest messages, but never a leading system message nor the last one;
        "cut": then also shorten the last message from the left.

    Returns:
      The tokens, and what was left out: {"dropped_turns", "cut_tokens"}.

    Raises:
      ValueError: The prompt is too long, or not renderable. The caller adds
        the id of the row.
    """
    if long not in LONG:
      raise ValueError(f"long={long!r} is none of {', '.join(LONG)}.")
    messages = list(messages)
    ids = self._prompt_ids(messages)
    flags = {"dropped_turns": 0, "cut_tokens": 0}
    if limit is None or len(ids) <= limit:
      return ids, flags
    full_length = len(ids)
    if long != "error" and messages:
      ids, messages, flags["dropped_turns"] = self._drop_turns(
        ids, messages, limit
      )
      if len(ids) <= limit:
        return ids, flags
      cut = self._cut(messages, limit) if long == "cut" else None
      if cut is not None:
        flags["cut_tokens"] = len(ids) - len(cut)
        return cut, flags
    least = "" if long == "error" else f" ({len(ids)} with long={long!r})"
    raise ValueError(
      f"The prompt has {full_length} tokens{least}, but the limit is {limit}. "
      "Raise the limit, leave the row out, or set long to 'turns' (drop the "
      "oldest turns) or 'cut' (then shorten the last one)."
    )

  def encode_response(
    self, messages: Sequence[Message], response: str
  ) -> list[int]:
    """Tokens of a response to `messages`, the stop token included.

    A response is the same tokens whatever it responds to; `messages` is there
    so that call sites say what the response follows.
    """
    del messages
    return [*self._encode(response), self.stop_ids[0]]

  def encode_dialog(
    self, prompt: Sequence[Message], turns: Sequence[Message]
  ) -> tuple[list[int], list[bool]]:
    """Tokens of a dialogue, up to its last assistant turn, and its targets.

    Before every target the tokens are those of `encode_prompt` for the
    messages before it, and the target's are those of `encode_response`.

    Returns:
      tokens and target mask, of equal length; true on the tokens of each
      assistant message of `turns` and on the stop token after it.

    Raises:
      ValueError: No assistant message in `turns`, or a template that renders
        a past assistant turn differently from one that is being written.
    """
    messages = [*prompt, *turns]
    roles = tuple(message["role"] for message in messages)
    targets = [
      i for i in range(len(prompt), len(roles)) if roles[i] == "assistant"
    ]
    if not targets:
      raise ValueError(
        "A demonstration needs an assistant message among its turns; the roles "
        f"are {list(roles[len(prompt) :])}."
      )
    last = targets[-1]
    filled = self._fill(messages[:last])
    if filled is None:
      raise ValueError(
        f"The chat template of {self.name} rewrites a content of this "
        "dialogue, so its turns cannot be trained on in one pass. Give each assistant "
        "turn as a row of its own (prompt, response)."
      )
    self._check_even(roles[:last], len(prompt))
    pieces, contents = filled
    pieces = (*pieces, ("content", last), ("token", self.stop_ids[0]))
    contents = [*contents, messages[last]["content"]]
    return self._assemble(pieces, contents, roles, frozenset(targets))

  def decode(self, ids: Sequence[int]) -> str:
    """Text of a response: what stands before its first stop token."""
    kept = []
    for id_ in ids:
      if int(id_) in self.stop_ids:
        break
      kept.append(int(id_))
    if self._anchor is None:
      return self._tokenizer.decode(kept, skip_special_tokens=False)
    text = self._tokenizer.decode(
      [self._special[self._anchor], *kept], skip_special_tokens=False
    )
    return text[len(self._anchor) :]

  # Making prompts shorter.

  def _drop_turns(
    self, ids: list[int], messages: list[Message], limit: int
  ) -> tuple[list[int], list[Message], int]:
    """Leaves out as few of the oldest messages as fit, or all but the last."""
    keep = int(messages[0]["role"] == "system" and len(messages) > 1)
    shorter, dropped = messages, 0
    for start in range(keep + 1, len(messages)):
      candidate = messages[:keep] + messages[start:]
      try:
        ids = self._prompt_ids(candidate)
      except ValueError:  # The template wants a user first, for example.
        continue
      shorter, dropped = candidate, start - keep
      if len(ids) <= limit:
        break
    return ids, shorter, dropped

  def _cut(self, messages: list[Message], limit: int) -> list[int] | None:
    """Keeps the longest end of the last content that fits, by bisection."""
    content = messages[-1]["content"]

    def ids_with(characters: int) -> list[int]:
      kept = {**messages[-1], "content": content[len(content) - characters :]}
      return self._prompt_ids([*messages[:-1], kept])

    fits, too_long = 0, len(content)
    while too_long - fits > 1:
      middle = (fits + too_long) // 2
      if len(ids_with(middle)) <= limit:
        fits = middle
      else:
        too_long = middle
    # Nothing left of the last message would be a prompt about nothing.
    return ids_with(fits) if fits else None

  # Rendering.

  def _render(self, messages: list[Message], generate: bool) -> str:
    if not self._has_template:
      roles = [message["role"] for message in messages]
      if roles != ["user"]:
        raise ValueError(
          f"The tokenizer {self.name} has no chat template, so a prompt must "
          f"be a single user message; its roles are {roles}. Add a "
          "chat_template.jinja to the tokenizer's directory."
        )
      return messages[0]["content"]
    # As a batch of one: transformers refuses a bare empty list of messages.
    return self._tokenizer.apply_chat_template(
      [messages], tokenize=False, add_generation_prompt=generate
    )[0]

  def _checked_render(self, messages: list[Message], generate: bool) -> str:
    try:
      return self._render(messages, generate)
    except (ValueError, ImportError):
      raise
    except Exception as error:  # Whatever the template raises or stumbles on.
      raise ValueError(
        f"The chat template of {self.name} refuses {self._culprit(messages)}: "
        f"{error}. Leave such messages out, or change the template."
      ) from error

  def _culprit(self, messages: list[Message]) -> str:
    for end in range(1, len(messages) + 1):
      with contextlib.suppress(Exception):  # As above.
        self._render(messages[:end], False)
        continue
      return f"a message of role {messages[end - 1]['role']!r} (number {end})"
    return f"the roles {[message['role'] for message in messages]}"

  def _plan(
    self, roles: tuple[str, ...], generate: bool = True
  ) -> tuple[_Piece, ...]:
    """What the template renders for `roles`, with holes for the contents."""
    if (roles, generate) in self._plans:
      return self._plans[roles, generate]
    holes = [
      {"role": role, "content": _HOLE.format(i)} for i, role in enumerate(roles)
    ]
    text = self._checked_render(holes, generate)
    pieces: list[_Piece] = []
    for i, part in enumerate(_HOLE_PATTERN.split(text)):
      pieces += [("content", int(part))] if i % 2 else self._literal(part)
    for i, role in enumerate(roles):
      if ("content", i) not in pieces:
        raise ValueError(
          f"The chat template of {self.name} leaves out the content of a "
          f"message of role {role!r}. Leave such messages out, or change the "
          "template."
        )
    if self.bos_id is not None:
      count = len(self._prefix) + pieces.count(("token", self.bos_id))
      # Where BOS is also the end of a turn it may well come again.
      if count != 1 and self.bos_id not in self.stop_ids:
        raise ValueError(
          f"The chat template of {self.name} gives {count} BOS tokens instead "
          f"of one for the roles {list(roles)}."
        )
    self._plans[roles, generate] = tuple(pieces)
    return self._plans[roles, generate]

  def _literal(self, text: str) -> list[_Piece]:
    """Cuts literal text of a template at its special tokens."""
    pieces: list[_Piece] = []
    for i, part in enumerate(self._special_pattern.split(text)):
      if i % 2:
        pieces.append(("token", self._special[part]))
      elif part:
        pieces.append(("text", part))
    return pieces

  def _fill(
    self, messages: list[Message]
  ) -> tuple[tuple[_Piece, ...], list[str]] | None:
    """The plan, and the contents as the template has them.

    Returns None if the template does more to a content than to trim or quote
    it, so that it cannot be found in what is rendered.
    """
    pieces = self._plan(tuple(message["role"] for message in messages))
    rendered = self._checked_render(messages, True)
    contents = [message["content"] for message in messages]
    position = 0
    for piece, following in zip(
      pieces, (*pieces[1:], ("text", "")), strict=True
    ):
      text = self._piece_text(piece)
      if piece[0] == "content":
        content = messages[piece[1]]["content"]
        after = self._piece_text(following)
        for text in (content, content.strip(), _quoted(content)):
          if rendered.startswith(text + after, position):
            break
        contents[piece[1]] = text
      if not rendered.startswith(text, position):
        return None
      position += len(text)
    return (pieces, contents) if position == len(rendered) else None

  def _piece_text(self, piece: _Piece) -> str:
    kind, value = piece
    if kind == "token":
      return self._special_text[value]
    return value if kind == "text" else ""

  def _check_even(self, roles: tuple[str, ...], first: int) -> None:
    """Refuses templates that render past assistant turns in another way."""
    if (roles, first) in self._even:
      return
    pieces = self._plan(roles)
    for i in range(first, len(roles)):
      if roles[i] != "assistant":
        continue
      start = self._plan(roles[:i])
      expected = (*start, ("content", i), ("token", self.stop_ids[0]))
      if pieces[: len(expected)] != expected:
        raise ValueError(
          f"The chat template of {self.name} renders an assistant turn in the "
          "middle of a dialogue differently from one that is being written, so "
          "its turns cannot be trained on in one pass. Give each assistant "
          "turn as a row of its own (prompt, response)."
        )
    self._even.add((roles, first))

  # Encoding.

  def _prompt_ids(self, messages: list[Message]) -> list[int]:
    filled = self._fill(messages)
    roles = tuple(message["role"] for message in messages)
    if filled is None:
      filled = (self._rewritten(messages), [])
    return self._assemble(*filled, roles, frozenset())[0]

  def _rewritten(self, messages: list[Message]) -> tuple[_Piece, ...]:
    for message in messages:
      found = self._special_pattern.search(message["content"])
      if found:
        raise ValueError(
          f"The chat template of {self.name} rewrites contents, and one of "
          f"role {message['role']!r} has the special token {found.group()!r} in its "
          "text, which would become a real one. Remove it from the row."
        )
    return tuple(self._literal(self._checked_render(messages, True)))

  def _assemble(
    self,
    pieces: Sequence[_Piece],
    contents: Sequence[str],
    roles: Sequence[str],
    targets: frozenset[int],
  ) -> tuple[list[int], list[bool]]:
    """Tokens of filled pieces, and which belong to the contents `targets`."""
    ids = list(self._prefix)
    mask = [False] * len(ids)
    run = ""

    def extend(more: Sequence[int], is_target: bool) -> None:
      ids.extend(more)
      mask.extend([is_target] * len(more))

    def finish_run(strip: bool) -> None:
      nonlocal run
      if ids and ids[-1] in self._strips_right:
        run = run.lstrip()
      extend(self._encode(run.rstrip() if strip else run), False)
      run = ""

    ends_target = False
    for kind, value in pieces:
      if kind == "text":
        run += value
      elif kind == "content" and roles[value] != "assistant":
        run += contents[value]
      elif kind == "content":
        finish_run(strip=False)
        extend(self._encode(contents[value]), value in targets)
      else:
        finish_run(strip=value in self._strips_left)
        extend([value], ends_target)
      ends_target = kind == "content" and value in targets
    finish_run(strip=False)
    return ids, mask

  def _encode_text(self, text: str) -> tuple[int, ...]:
    """Tokens of text in which no special token is recognised."""
    if not text:
      return ()
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise ValueError(f"Text that is not valid Unicode: {error}") from error
    if self._anchor is None:
      ids = self._ids(text, split_special_tokens=True)
    else:
      found = self._special_pattern.search(text)
      if found:
        raise ValueError(
          f"The text has the special token {found.group()!r} of {self.name} in "
          "it, which this tokenizer cannot take as text. Remove it."
        )
      ids = self._ids(self._anchor + text)[1:]
    for id_ in (*self.stop_ids, self.bos_id):
      if id_ in ids:
        raise ValueError(
          f"The text has {self._tokenizer.convert_ids_to_tokens(id_)!r} in it, "
          f"which {self.name} takes for the end or the beginning of a turn. "
          "Remove it."
        )
    return tuple(ids)

  def _ids(self, text: str, **options) -> list[int]:
    return self._tokenizer(
      text, add_special_tokens=False, verbose=False, **options
    )["input_ids"]

  # What the tokenizer does, found out by trying.

  def _find_anchor(self) -> str | None:
    """A special token to put before text, where its place changes its tokens.

    Some tokenizers put a space before text at the beginning of a string only.
    All our pieces follow a special token, so they are encoded behind one.
    """
    for token in (self._tokenizer.bos_token, self._tokenizer.eos_token):
      if token in self._special:
        behind = self._ids(token + "a b")
        if behind[0] == self._special[token]:
          return None if behind[1:] == self._ids("a b") else token
    return None

  def _find_bos(self) -> None:
    bos = self._tokenizer.bos_token_id
    if bos is None:
      return
    if self._plan(("user",))[0] == ("token", bos):
      self.bos_id = bos
    elif self._tokenizer("a", verbose=False)["input_ids"][:1] == [bos]:
      self._prefix = [bos]
      self.bos_id = bos
    self._plans.clear()

  def _find_stops(self, more_stop_ids: Sequence[int]) -> tuple[int, ...]:
    """The end of an assistant turn in the template, then eos and the others."""
    stops = []
    if self._has_template:
      pieces = self._plan(("user", "assistant"), False)
      after = pieces[pieces.index(("content", 1)) + 1 :]
      if after and after[0][0] == "text" and not after[0][1].strip():
        after = after[1:]
      if after and after[0][0] == "token":
        stops.append(after[0][1])
    stops += [self._tokenizer.eos_token_id, *more_stop_ids]
    stops = [id_ for id_ in stops if id_ is not None]
    if not stops:
      raise ValueError(
        f"The tokenizer {self.name} has no token that ends a response. Set "
        "eos_token in its tokenizer_config.json."
      )
    return tuple(dict.fromkeys(stops))


def _quoted(text: str) -> str:
  """What `tojson` of a Hugging Face chat template puts between the quotes."""
  return json.dumps(text, ensure_ascii=False)[1:-1]

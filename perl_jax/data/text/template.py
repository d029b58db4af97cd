"""Chat templates as plans: the tokens and text around the contents.

A chat template is rendered once per sequence of roles, with placeholders for
the contents, into a plan: special tokens, literal text and holes.
`tokenization` fills the holes. The filled plan is compared with what the
template renders for the real messages, so that templates which trim or rewrite
contents are noticed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from perl_jax.data.records import Message
from perl_jax.data.text import calls, plans, rendering
from perl_jax.data.text.added_tokens import AddedTokens, Piece
from perl_jax.data.text.responses import Responses


class UnevenError(ValueError):
  """The template renders past assistant turns differently from new ones.

  A dialogue is then not the concatenation of a prompt and its responses.
  """


class ChatTemplate:
  """Plans of one tokenizer's chat template.

  Attributes:
    name: Name of the tokenizer in errors.
    added: The added tokens of the tokenizer.
    stop_ids: The token that ends an assistant turn, if the template has one,
      then the other tokens that end a response.
    bos_id: The BOS token if every prompt starts with it, or None.
    prefix: What the tokenizer puts before a plain text, such as BOS; empty
      with a chat template, which says itself what a prompt begins with.
    beginning: What every prompt begins with and no new turn does: BOS or
      nothing. Where BOS also opens the turns of a conversation it is no sign of
      a beginning.
    text: Renders messages.
    responses: Finds the texts of responses.
    ends_turn: Whether it writes the first of `stop_ids` after a response; also
      true without a template. Where it is false, a sampled response ends with a
      token that a conversation does not have.
    closing: Pieces that it writes after that token, or after the response if
      it writes none, when a conversation ends with the turn.
  """

  def __init__(
    self,
    tokenizer,
    name: str,
    more_stop_ids: Sequence[int],
    variables: Mapping[str, Any] | None = None,
  ) -> None:
    self.name = name
    self._tokenizer = tokenizer
    self.added = AddedTokens(tokenizer)
    self._even: set[tuple] = set()
    self.bos_id: int | None = None
    self.prefix: tuple[int, ...] = ()
    self.beginning: tuple[int, ...] = ()
    self.text = rendering.Rendering(tokenizer, name, variables)
    self.ends_turn = not self.text.exists
    self.closing: tuple[Piece, ...] = ()
    self._plans = plans.Plans(self.text, self.added)
    self.stop_ids = self._find_stops(more_stop_ids)
    stop = self.added.texts.get(self.stop_ids[0])
    self.responses = Responses(self.text, stop)
    self._plans = plans.Plans(
      self.text, self.added, self.responses, self.stop_ids[0]
    )
    self._find_start()
    prompt = self._plans.of(("user",))
    self._ends = (
      self._end_of(prompt),
      self._end_of(self.without_unsaid(prompt)),
    )

  def fill(
    self, messages: Sequence[Message], generate: bool = True
  ) -> tuple[tuple[Piece, ...], dict[int, str]] | None:
    """Returns the plan of a prompt, and the contents as they are rendered.

    Args:
      messages: The messages.
      generate: Whether a generation prompt follows them.

    Returns:
      The pieces of the plan and the text for each hole; None if the template
      changes a content more than by trimming or quoting it, so that it cannot
      be found in the rendered text.

    Raises:
      NotRenderedError: The template leaves out tools or a tool call.
      ValueError: The template refuses the messages, or leaves one out.
    """
    pieces, texts = self._plan(messages, generate)
    rendered = self.text.render(messages, generate)
    contents = {i: m["content"] for i, m in enumerate(messages)} | texts
    position = 0
    flat = plans.flat(pieces)
    for piece, following in zip(flat, (*flat[1:], ("text", "")), strict=True):
      text = self._plans.text_of(piece)
      if piece[0] in ("content", "response"):
        content = texts.get(piece[1], "") or messages[piece[1]]["content"]
        after = self._plans.text_of(following)
        for text in plans.written(content):
          if piece[0] == "response":
            text = self.responses.lead + text + self.responses.tail
          if rendered.startswith(text + after, position):
            break
        contents[piece[1]] = text
      if not rendered.startswith(text, position):
        return None
      position += len(text)
    return (pieces, contents) if position == len(rendered) else None

  def call(self, messages: Sequence[Message]) -> tuple[Piece, dict[int, str]]:
    """Returns the piece of a last turn that has more than text.

    Returns:
      A piece that follows those of the prompt, and the text of each hole in it.

    Raises:
      ValueError: The template writes it otherwise than behind its generation
        prompt and before the stop token.
    """
    found = self.fill(messages, generate=False)
    last = len(messages) - 1
    for piece in found[0] if found else ():
      if piece[0] == "call" and piece[1][0] == last:
        return piece, found[1]
    keys = sorted(messages[last].keys() - {"role", "content", "weight", "name"})
    raise rendering.NotRenderedError(
      f"The chat template of {self.name} does not go on from its generation"
      f" prompt with {keys} of a response and the token that ends a turn, so a"
      f" model could not write them.{self.text.thinking(keys)} Change the"
      f" template, or {rendering.without(keys)}."
    )

  def _plan(
    self, messages: Sequence[Message], generate: bool
  ) -> tuple[tuple[Piece, ...], dict[int, str]]:
    """Returns the plan of messages, and the texts of holes in their calls."""
    more, texts = calls.holes(messages)
    roles = tuple(message["role"] for message in messages)
    if not any(more):
      return self._plans.of(roles, generate), {}
    self.text.check(messages)
    for token in self.added.pattern.findall("".join(more)):
      if self.is_control(token):
        raise ValueError(
          f"A tool or a tool call has the special token {token!r} of"
          f" {self.name} in a name or a description, which would become a real"
          " one. Remove it from the row."
        )
    return self._plans.of(roles, generate, more), texts

  def is_control(self, token: str) -> bool:
    """Whether a token must not occur in a text.

    Others, such as <think>, are tokens wherever they occur in a text.
    """
    id_ = self.added.ids[token]
    return id_ in self.added.reserved or id_ in self.stop_ids

  def rewritten(self, messages: Sequence[Message]) -> tuple[Piece, ...]:
    """Returns the pieces of a prompt for which `fill` returns None.

    Contents are literal text in them.

    Raises:
      ValueError: The text of a content has a special token in it.
    """
    pieces = self.added.cut(self.text.render(messages, True))
    plan, texts = self._plan(messages, True)
    plan = plans.flat(plan)
    calls_of = [{"role": "tool call", "content": t} for t in texts.values()]
    for message in (*messages, *calls_of):
      for token in self.added.pattern.findall(message["content"]):
        if not self.is_control(token):
          continue
        piece = ("token", self.added.ids[token])
        if pieces.count(piece) <= plan.count(piece):
          continue  # The template leaves it out.
        raise ValueError(
          f"The chat template of {self.name} rewrites contents, and one of "
          f"role {message['role']!r} has the special token {token!r} "
          "in its text, which would become a real one. Remove it from the row."
        )
    return tuple(pieces)

  def check_even(self, messages: Sequence[Message], first: int) -> None:
    """Checks that past assistant turns are rendered like new ones.

    Args:
      messages: The messages before the last target.
      first: Number of the first message that may be a target.

    Raises:
      UnevenError: A turn in the middle is not rendered as a prompt followed by
        a response and the stop token.
    """
    roles = tuple(message["role"] for message in messages)
    more = calls.holes(messages)[0]
    key = (roles, first, more if any(more) else ())
    if key in self._even:
      return
    pieces = self._plans.of(roles, True, more)
    stop = ("token", self.stop_ids[0])
    for i in range(first, len(roles)):
      if roles[i] != "assistant":
        continue
      start = self._plans.of(roles[:i], True, more[:i])
      turn = pieces[len(start) : len(start) + 2]
      if pieces[: len(start)] != start or not (
        turn == (("response", i), stop)
        or (turn[1:] == (stop,) and turn[0][0] == "call" and turn[0][1][0] == i)
      ):
        raise UnevenError(
          f"The chat template of {self.name} renders an assistant turn in the "
          "middle of a dialogue differently from one that is being written, so "
          "its turns cannot be trained on in one pass. Give each assistant "
          "turn as a row of its own (prompt, response)."
        )
    if not any(more):
      self._even.add(key)

  def tokens(self) -> set[int]:
    """Returns the special tokens around a single exchange."""
    plan = self._plans.of(("user",))
    if self.text.exists:
      plan += self._plans.of(("user", "assistant"), False)
    found = {value for kind, value in plan if kind == "token"}
    return found.union(self.prefix)

  def without_unsaid(self, pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Returns the pieces of a prompt as a conversation goes on from it."""
    kept, length = list(pieces), len(self.responses.unsaid)
    while length:
      text = self._plans.text_of(kept[-1])
      if len(text) > length:
        kept[-1] = ("text", text[:-length])
        break
      length -= len(text)
      kept.pop()
    return tuple(kept)

  def opening(self, closed: bool = False) -> str:
    """Returns the literal text at the end of every prompt; may be "".

    Args:
      closed: Whether the prompt is without `Responses.unsaid`.
    """
    return self._ends[closed][0]

  def cut_response(self, turn: str, closed: bool = False) -> list[Piece]:
    """Cuts the text of a response into tokens and literal text.

    Tokens are those that the template writes or opens itself (thoughts).

    Args:
      turn: Text of the response.
      closed: Whether it follows a prompt without `Responses.unsaid`.
    """
    stop = self.stop_ids[0] if self.ends_turn else None
    turn = self.added.strip(turn, self._ends[closed][1], stop)
    before = self.responses.before_answer
    if not turn.startswith(before):
      before = ""
    pieces = self.added.cut(before)
    markers = [m for m in self.responses.markers if m in self.added.ids]
    for kind, value in self.added.cut(turn[len(before) :], markers):
      if pieces and pieces[-1][0] == kind == "text":
        value = f"{pieces.pop()[1]}{value}"
      pieces.append((kind, value))
    return pieces

  # Properties of the template, found by rendering.

  def _find_stops(self, more_stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Returns the token that ends an assistant turn, eos and the others."""
    stops = []
    if self.text.exists:
      pieces = self._plans.of(("user", "assistant"), False)
      after = self.closing = pieces[pieces.index(("content", 1)) + 1 :]
      if after and after[0][0] == "text" and not after[0][1].strip():
        after = after[1:]
      if after and after[0][0] == "token":
        stops.append(after[0][1])
        self.ends_turn, self.closing = True, after[1:]
    stops += [self._tokenizer.eos_token_id, *more_stop_ids]
    stops = [id_ for id_ in stops if id_ is not None]
    if not stops:
      raise ValueError(
        f"The tokenizer {self.name} has no token that ends a response. Set "
        "eos_token in its tokenizer_config.json."
      )
    return tuple(dict.fromkeys(stops))

  def _find_start(self) -> None:
    """Finds what prompts begin with, as transformers encodes them.

    `apply_chat_template` encodes what the template renders and nothing else;
    what a tokenizer puts before a plain text is left out of conversations.
    """
    bos = self._tokenizer.bos_token_id
    alone = self._tokenizer("a", add_special_tokens=False, verbose=False)
    ids = self._tokenizer("a", verbose=False)["input_ids"]
    before = _before(ids, alone["input_ids"])
    if not self.text.exists:
      self.prefix = self.beginning = before
      self.bos_id = bos if before[:1] == (bos,) else None
      return
    pieces = self._plans.of(("user",))
    self.bos_id = bos if pieces[0] == ("token", bos) else None
    prompt_end = pieces[pieces.index(("content", 0)) :]
    for kind, value in pieces:
      opens = ("token", value) in prompt_end and value not in self.stop_ids
      if kind != "token" or value not in (bos, *before) or opens:
        break
      self.beginning += (value,)

  def _end_of(self, prompt: Sequence[Piece]) -> tuple[str, int | None]:
    """Returns the literal text at the end of a prompt.

    That is "" after an added token, which is then returned too, and a line
    break if the prompt ends with a content.
    """
    last = (("content", 0), *prompt)[-2:]
    opening = {"text": last[1][1], "content": "\n"}.get(last[1][0], "")
    before = [value for kind, value in last if kind == "token"]
    if not before:
      return opening, None
    opening = self.added.strip(opening, before[-1], None)
    return opening, None if opening else before[-1]


def _before(ids: Sequence[int], part: Sequence[int]) -> tuple[int, ...]:
  """Returns what is before `part` in `ids`."""
  for start in range(len(ids) - len(part) + 1):
    if list(ids[start : start + len(part)]) == list(part):
      return tuple(ids[:start])
  return ()

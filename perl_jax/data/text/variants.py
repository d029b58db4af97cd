"""A chat template under the variables that rows give it, and its encodings.

A row may have `chat_template_kwargs`, such as `{"enable_thinking": true}`, and
its messages are then rendered with these. What a template writes around a
response can depend on them, so that each set of variables has plans of its own.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from perl_jax.data import records
from perl_jax.data.records import Message
from perl_jax.data.text import agreement, assembling
from perl_jax.data.text.encoder import Encoder
from perl_jax.data.text.template import ChatTemplate, Piece, UnevenError

_MOST = 256


class Variant:
  """Encodes messages with a chat template under one set of variables.

  Attributes:
    template: The chat template.
    encoder: Encodes its texts.
    closing: Tokens that it writes after the stop token; see `Tokenization`.
  """

  def __init__(self, template: ChatTemplate, encoder: Encoder) -> None:
    self.template = template
    self.encoder = encoder
    self.closing = self._after_turn(template.closing)

  def prompt(self, messages: list[Message], closed: bool = False) -> list[int]:
    """Returns the tokens of a prompt; see `Tokenization.encode_prompt`."""
    messages = self.template.text.folded(messages)
    filled = self.template.fill(messages)
    if filled is None:
      filled = (self.template.rewritten(messages), {})
    pieces, contents = filled
    if closed:
      pieces = self.template.without_unsaid(pieces)
    return self._assemble(pieces, contents, frozenset())[0]

  def response(
    self,
    messages: Sequence[Message],
    response: records.Reply,
    closed: bool = False,
  ) -> list[int]:
    """Returns the tokens of a response; see `Tokenization.encode_response`."""
    stop = self.template.stop_ids[0]
    if not isinstance(response, str):
      whole = self.template.text.folded([*messages, response])
      (_, (_, turn)), texts = self.template.call(whole)
      ids = self.encoder.turn(assembling.filled(turn, texts), closed)
      return [*ids, stop, *(self.closing if closed else ())]
    responses = self.template.responses
    if not closed:
      return [*self.encoder.response(responses.turn(response)), stop]
    text, rest = responses.said(response), self.template.closing
    if self.template.ends_turn:
      return [*self.encoder.response(text, closed), stop, *self.closing]
    if rest and rest[0][0] == "text":  # It joins with the response.
      text, rest = text + rest[0][1], rest[1:]
    return [*self.encoder.response(text, closed), *self._after_turn(rest)]

  def dialog(
    self, messages: list[Message], first: int, targets: Sequence[int]
  ) -> tuple[list[int], list[bool]]:
    """Returns the tokens of a dialogue; see `Tokenization.encode_dialog`.

    Args:
      messages: The messages, folded.
      first: Number of the first one that may be a target.
      targets: Numbers of the targets.
    """
    last = targets[-1]
    filled = self.template.fill(messages[:last])
    if filled is None:
      raise UnevenError(
        f"The chat template of {self.template.name} rewrites a content of this "
        "dialogue, so its turns cannot be trained on in one pass. Give each "
        "assistant turn as a row of its own (prompt, response)."
      )
    self.template.check_even(messages[:last], first)
    pieces, contents = filled
    reply = records.reply_of(messages[last])
    if isinstance(reply, str):
      turn: Piece = ("response", last)
      contents = contents | {last: self.template.responses.turn(reply)}
    else:
      turn, texts = self.template.call(messages[: last + 1])
      contents = contents | texts
    pieces = (*pieces, turn, ("token", self.template.stop_ids[0]))
    return self._assemble(pieces, contents, frozenset(targets))

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of a response, of its tokens before the first stop."""
    return self.template.responses.content(self.encoder.decode(ids))

  def _after_turn(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Returns the tokens of pieces without holes that follow a stop token."""
    start = len(self.template.prefix) + 1
    pieces = (("token", self.template.stop_ids[0]), *pieces)
    return tuple(self._assemble(pieces, {}, frozenset())[0][start:])

  def _assemble(
    self,
    pieces: Sequence[Piece],
    contents: Mapping[int, str],
    targets: frozenset[int],
  ) -> tuple[list[int], list[bool]]:
    """Returns the tokens of filled pieces, and a mask of those in `targets`."""
    return assembling.assemble(
      self.encoder, self.template, pieces, contents, targets
    )


class Variants:
  """The variants of one tokenizer's chat template; each is made once.

  Attributes:
    plain: The variant for rows that give no variables.
  """

  def __init__(
    self,
    tokenizer,
    name: str,
    more_stop_ids: Sequence[int],
    rows: int | None,
  ) -> None:
    """Prepares the one without variables; see `Tokenization`."""
    self._make = functools.partial(ChatTemplate, tokenizer, name, more_stop_ids)
    template = self._make()
    self.plain = Variant(template, Encoder(tokenizer, name, template, rows))
    self._made: dict[str, Variant] = {}

  def of(self, messages: Sequence[Message]) -> Variant:
    """Returns the variant of the variables in the first of the messages.

    Raises:
      ValueError: With them the template fails, ends turns in another way, or
        writes a special token of a text.
    """
    given = messages[0].get(records.VARIABLES) if messages else None
    if not given or not self.plain.template.text.exists:
      return self.plain
    key = json.dumps(given, sort_keys=True)
    if key not in self._made:
      if len(self._made) >= _MOST:  # They may be of many kinds, such as dates.
        self._made.clear()
      self._made[key] = self._under(given, key)
    return self._made[key]

  def _under(self, given: Mapping[str, Any], key: str) -> Variant:
    plain = self.plain.template
    told = f"{records.VARIABLES} {key} for {plain.name}"
    for token in plain.added.pattern.findall(_text(given)):
      if plain.is_control(token):
        raise ValueError(
          f"{told}: a value has the special token {token!r} in it, which would"
          " become a real one. Remove it from the row."
        )
    template = self._make(given)
    if _ends(template) != _ends(plain):
      raise ValueError(
        f"{told}: with them its chat template ends prompts or turns otherwise"
        " than without, and a run has one end of a turn. Leave such rows out,"
        " or give the template these values as its defaults."
      )
    variant = Variant(template, self.plain.encoder.under(template))
    agreement.check(variant.prompt, template.text)
    return variant


def _ends(template: ChatTemplate) -> tuple[Any, ...]:
  """Returns what all variants of a template have in common."""
  return (
    template.stop_ids,
    template.ends_turn,
    template.closing,
    template.beginning,
    template.responses.unsaid,
  )


def _text(given: Mapping[str, Any]) -> str:
  return json.dumps(given, ensure_ascii=False)

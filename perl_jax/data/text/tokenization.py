"""Converts messages to tokens and back; no other file tokenises text.

A chat template becomes a plan with holes for the contents (`template`), and
filling the holes gives the tokens. It follows that

- a special token written inside a content stays text (it is split into bytes);
- a response is encoded as a piece of its own, as the template writes it (with
  its white space, or trimmed), after the tokens of the generation prompt and
  before the stop token, in training exactly as in sampling;
- equal texts are encoded once.
"""

import functools
import os
import pathlib
from collections.abc import Sequence

from perl_jax.data import records
from perl_jax.data.records import Message
from perl_jax.data.text import agreement, files, padding, shortening
from perl_jax.data.text.template import ChatTemplate
from perl_jax.data.text.variants import Variants

LONG = ("error", "turns", "cut")


class TooLongError(ValueError):
  """A sequence exceeds its limit, however its prompt is shortened.

  Attributes:
    length: Tokens of the whole sequence.
    least: Tokens with its prompt at its shortest.
  """

  def __init__(self, message: str, length: int, least: int):
    super().__init__(message)
    self.length, self.least = length, least


class Tokenization:
  """Encodes prompts, responses and dialogues with one tokenizer.

  Attributes:
    vocab_size: One more than the largest token id.
    rows: Rows of the model's embedding; None if the model is made to fit.
    stop_ids: Ids of tokens that end a response. The first ends an assistant
      turn in the chat template and every encoded response; the others (eos, and
      those of the checkpoint) may be sampled.
    pad_id: Id of the padding token. Masks follow from lengths, so it may be a
      stop token, and is one if the tokenizer's has no row in the embedding.
    stop: (id, text) of the first of `stop_ids`.
    own_pad: (id, text) of the tokenizer's pad token; None if it has none, or
      none with a row in the embedding.
    pads: (id, text) of tokens to pad with for tools that recognise padding by
      its id, the best first; see `padding`.
    tokenizer: The tokenizer of `transformers`.
    template: The chat template.
    has_template: Whether there is a chat template.
    closing: Tokens that the chat template writes after the stop token when a
      conversation ends with the turn, such as a line break.
    ends_turn: Whether the template writes the stop token; where it does not,
      `closing` is what it writes after the response itself.
    unsaid: Text at the end of every prompt that a conversation does not have
      before a response, such as the "<think>\\n" of DeepSeek-R1; else "".
    bos_id: Id of the BOS token if every prompt starts with it, or None.
    unread: (id, text) of the token that is padding to a reward model wherever
      it ends a conversation, or None; see the module `unread`.
    beginning: Tokens that every prompt begins with and no new turn does, such
      as BOS; to put before a part of a dialogue.
    name: Name of the tokenizer in errors.
  """

  def __init__(
    self,
    tokenizer,
    name: str,
    more_stop_ids: Sequence[int] = (),
    rows: int | None = None,
    unread_id: int | None = None,
  ) -> None:
    self.name = name
    self.rows = rows
    self.tokenizer = tokenizer
    self._variants = Variants(tokenizer, name, more_stop_ids, rows)
    plain = self._variants.plain
    self.template: ChatTemplate = plain.template
    self.bos_id: int | None = self.template.bos_id
    self.beginning: tuple[int, ...] = self.template.beginning
    self.stop_ids: tuple[int, ...] = self.template.stop_ids
    self.vocab_size = 1 + max(
      max(tokenizer.get_vocab().values()), *self.stop_ids
    )
    pad, name_of = tokenizer.pad_token_id, tokenizer.convert_ids_to_tokens
    usable = [*reversed(self.stop_ids)]
    usable = usable if pad is None else [pad, *usable]
    self.pad_id: int = next(filter(plain.encoder.has_row, usable))
    self.unread = None
    if unread_id is not None and plain.encoder.has_row(unread_id):
      text = name_of(unread_id)  # None for a row without a token
      self.unread = None if text is None else (unread_id, str(text))
    self.own_pad = (pad, str(name_of(pad))) if self.pad_id == pad else None
    self.stop = self.stop_ids[0], str(name_of(self.stop_ids[0]))
    self.ends_turn: bool = self.template.ends_turn
    self.has_template: bool = self.template.text.exists
    self.unsaid: str = self.template.responses.unsaid
    self.closing: tuple[int, ...] = plain.closing
    pads = padding.candidates(
      tokenizer,
      stop_ids=self.stop_ids,
      used=self.template.tokens(),
      last=(self.stop_ids[0], *self.closing)[-1],
    )
    self.pads = [found for found in pads if plain.encoder.has_row(found[0])]
    agreement.check(plain.prompt, self.template.text)

  def encode_prompt(
    self,
    messages: Sequence[Message],
    limit: int | None = None,
    long: str = "error",
    closed: bool = False,
  ) -> tuple[list[int], dict[str, int]]:
    """Encodes a prompt, including the generation prompt at its end.

    Args:
      messages: The context to respond to.
      limit: Most tokens that the result may have, or None.
      long: What to do with a longer prompt. "error" raises; "turns" leaves out
        the oldest messages, but never a leading system message nor the last
        one; "cut" then also shortens the last message from the left.
      closed: Whether the prompt is followed by a closed response, and so has no
        `unsaid` at its end.

    Returns:
      The token ids, and the number of messages and tokens left out:
      {"dropped_turns", "cut_tokens"}.

    Raises:
      TooLongError: The prompt is too long.
      ValueError: It cannot be rendered. The caller adds the id of the row.
    """
    if long not in LONG:
      raise ValueError(f"long={long!r} is none of {', '.join(LONG)}.")
    messages = list(messages)
    variant = self._variants.of(messages)
    prompt_ids = functools.partial(variant.prompt, closed=closed)
    ids = prompt_ids(messages)
    flags = {"dropped_turns": 0, "cut_tokens": 0}
    if limit is None or len(ids) <= limit:
      return ids, flags
    full_length = len(ids)
    if long != "error" and messages:
      ids, messages, flags["dropped_turns"] = shortening.drop_turns(
        prompt_ids, ids, messages, limit
      )
      if len(ids) <= limit:
        return ids, flags
      cut = None
      if long == "cut":
        cut = shortening.cut(prompt_ids, messages, limit)
      if cut is not None:
        flags["cut_tokens"] = len(ids) - len(cut)
        return cut, flags
    least = "" if long == "error" else f" ({len(ids)} with long={long!r})"
    raise TooLongError(
      f"The prompt has {full_length} tokens{least}, but the limit is {limit}. "
      "Raise the limit, or set long to 'turns' (drop the oldest turns), 'cut' "
      "(then shorten the last one).",
      full_length,
      len(ids),
    )

  def encode_response(
    self,
    messages: Sequence[Message],
    response: records.Reply,
    closed: bool = False,
  ) -> list[int]:
    """Encodes a response to `messages`, including the stop token.

    The tokens of a text do not depend on `messages`.

    Args:
      messages: The context.
      response: Text of the response, or a message with tool calls.
      closed: Whether it is as `apply_chat_template` writes it into a
        conversation that it ends: with `closing`, without a stop token that the
        template does not write, and without thoughts that it leaves out.

    Raises:
      ValueError: The template would rewrite it.
    """
    return self._variants.of(messages).response(messages, response, closed)

  def encode_dialog(
    self, prompt: Sequence[Message], turns: Sequence[Message]
  ) -> tuple[list[int], list[bool]]:
    """Encodes a dialogue up to its last assistant turn, and marks its targets.

    The tokens before a target are those of `encode_prompt` for the messages
    before it, and the tokens of a target are those of `encode_response`.

    Returns:
      Token ids and target mask, of equal length. The mask is true on the tokens
      of each assistant message of `turns` whose weight is not 0, and on the
      stop token after it.

    Raises:
      UnevenError: The template renders a past assistant turn differently from
        one that is being written.
      ValueError: `turns` has no assistant message, or the dialogue cannot be
        rendered.
    """
    variant = self._variants.of([*prompt, *turns])
    messages = variant.template.text.folded([*prompt, *turns])
    roles = tuple(message["role"] for message in messages)
    first = len(messages) - len(turns)
    targets = [
      i for i in range(first, len(roles)) if records.is_target(messages[i])
    ]
    if not targets:
      raise ValueError(
        "A demonstration needs an assistant message among its turns, without"
        " the weight 0; the roles are"
        f" {[message['role'] for message in turns]}."
      )
    return variant.dialog(messages, first, targets)

  def encode_text(self, text: str) -> list[int]:
    """Encodes a text as transformers does, with the eos token behind it.

    No chat template is applied: what is a special token in the text is one, and
    the tokenizer puts before it what it puts before any text. A text that ends
    with eos gets no second one, and one that begins with bos neither: such a
    text has been put into a template before.

    Raises:
      ValueError: It is not Unicode, or a token of it has no embedding.
    """
    end = self.tokenizer.eos_token or self.stop[1]
    whole = text if text.endswith(end) else text + end
    encode = self._variants.plain.encoder.whole
    ids, bos = encode(whole), self.tokenizer.bos_token_id
    twice = ids[:2] == [bos, bos] and encode("")[:1] == [bos]
    return ids[1:] if twice else ids

  def decode(self, ids: Sequence[int], prompt: Sequence[Message] = ()) -> str:
    """Returns the text of a response: its tokens before the first stop.

    Args:
      ids: Tokens of the response.
      prompt: The messages that it answers, for their variables.
    """
    kept = []
    for id_ in ids:
      if int(id_) in self.stop_ids:
        break
      kept.append(int(id_))
    return self._variants.of(prompt).decode(kept)


def load_tokenizer(
  path: str | os.PathLike,
  rows: int | None = None,
  *,
  template: pathlib.Path | None = None,
  model: pathlib.Path | None = None,
  stop_ids: Sequence[int] | None = None,
  unread_id: int | None = None,
) -> Tokenization:
  """Reads a Hugging Face tokenizer; runs no code from it.

  Args:
    path: The directory of a tokenizer, or a GGUF file that has one in it.
    rows: Rows of the embedding of the model that reads the tokens. A text with
      a token past them is refused, and so is a tokenizer which needs one for
      every prompt or response. None if the model is made to fit.
    template: File of a chat template that takes the place of the tokenizer's.
    model: Directory of the model, where that is another one.
    stop_ids: Ids at which the model stops; None if they are those that the
      files beside the tokenizer name.
    unread_id: Id of `Tokenization.unread`, or None.

  Raises:
    FileNotFoundError: There is no such directory or file.
    ValueError: There is no tokenizer in it, or its template cannot be used.
  """
  tokenizer, found = files.read(path, template, model)
  return Tokenization(
    tokenizer,
    name=str(path) if template is None else f"{path} with {template}",
    more_stop_ids=found if stop_ids is None else stop_ids,
    rows=rows,
    unread_id=unread_id,
  )

"""Finds the text of a response, which follows the prompt of sampling.

It is what the template renders for prompt and response together, behind the
prompt and before the stop token. Templates add white space around a content
(Llama 2, Mistral), or thoughts without content (Qwen3-Thinking).

The generation prompt of a reasoning model may open thoughts (`<think>`). If the
template leaves thoughts out of conversations (DeepSeek-R1), what it renders
does not continue such a prompt. A response then begins with the thoughts, as
the model writes them, or closes them at once if it has none.
"""

import re

from perl_jax.data.records import Message
from perl_jax.data.text import rendering

# What may open thoughts, alone on its line: <think>, [THINK], <seed:think>.
_OPENING = re.compile(r"([<\[◁])(\w[\w:|-]*[>\]▷])(\s*)$")
# What closes them.
_CLOSING = re.compile(r"[<\[◁]/\w[\w:|-]*[>\]▷]")


class Responses:
  """The texts of responses under one chat template.

  Attributes:
    lead, tail: White space that the template puts before and after a response.
    opener: The generation prompt without the messages before it.
    before_answer: What the template writes between its generation prompt and an
      answer without thoughts, if that is more than white space.
    markers: What opens and closes thoughts that begin in the generation prompt.
    unsaid: The end of the generation prompt if a conversation does not have it
      before a response (DeepSeek-R1), else "".
  """

  def __init__(self, text: rendering.Rendering, stop: str | None) -> None:
    """Finds the text around a response, by rendering one exchange.

    Args:
      text: Renders messages.
      stop: Text of the token that ends an assistant turn, or None.

    Raises:
      ValueError: The template puts text before responses, but has no generation
        prompt.
    """
    self._text = text
    self.lead = self.tail = self.opener = self.before_answer = ""
    self.unsaid = ""
    self.markers: tuple[str, ...] = ()
    # The generation prompt, the text behind a response, and what is before a
    # response where that does not begin with the generation prompt.
    self._head = self._foot = ""
    self._start: str | None = None
    # The end of the generation prompt if it opens thoughts; what closes them.
    self._opened = self._closing = ""
    if not text.exists:
      return
    user, assistant = _exchange(rendering.HOLE.format(1))
    self._head = text.render([user], True)
    bare = text.render([user], False)
    self.opener = self._head.rpartition(user["content"])[2]
    if self._head.startswith(bare):
      self.opener = self._head[len(bare) :]
    whole = text.render([user, assistant], False)
    before, _, self._foot = whole.partition(assistant["content"])
    tail, found, _ = self._foot.partition(stop or self._foot)
    if found and not tail.strip():
      self.tail = tail
      self._foot = self._foot.removeprefix(tail)
    if before.startswith(self._head):
      self._find_lead(before[len(self._head) :])
    else:
      self._find_opening(before)

  def turn(self, response: str) -> str:
    """Returns the text between the generation prompt and the stop token.

    Raises:
      ValueError: The template does not continue its generation prompt with the
        response, or leaves out more of it than white space.
    """
    if not self._text.exists:
      return response
    if self._opened and self._continues(response):
      return self._without_opening(response)
    found = self._in_conversation(response)
    if found is not None and _is_in(response, self._opened + found):
      return found if self._start is None else self.before_answer + found
    raise ValueError(self._refusal(response))

  def said(self, response: str) -> str:
    """Returns the text of a response in a conversation, behind `unsaid`.

    It is that of `turn`, except where a conversation goes on without `unsaid`,
    and without the thoughts that this opens.

    Raises:
      ValueError: As `turn`.
    """
    if not self.unsaid:
      return self.turn(response)
    found = self._in_conversation(response)
    if found is None:
      raise ValueError(self._refusal(response))
    return found

  def _in_conversation(self, response: str) -> str | None:
    """Returns what the template writes for a response; None if it is unclear.

    That is what is neither before it nor behind it in any conversation.
    """
    whole = self._text.render(_exchange(response), False)
    start = self._head if self._start is None else self._start
    if whole.startswith(start) and whole.endswith(self._foot):
      return whole[len(start) : len(whole) - len(self._foot)]
    return None

  def content(self, turn: str) -> str:
    """Returns the response of which `turn` returns this text.

    Thoughts that the generation prompt opens and the response does not close
    are returned with what opens them, and so are all where the template itself
    writes that into a message.
    """
    if not self._opened:
      turn = turn.removeprefix(self.before_answer or self.lead)
      return turn.removesuffix(self.tail)
    answer = turn.removeprefix(self.before_answer)
    if answer != turn and not (
      self._closing in answer or answer.startswith(self.markers[0])
    ):
      return answer.removesuffix(self.tail)
    if (
      self._start is None
      or self._closing not in turn
      or turn.startswith(self.markers[0])
    ):
      return self._opened + turn
    return turn

  def _continues(self, response: str) -> bool:
    """Whether a response goes on in thoughts that its prompt has opened."""
    if response.startswith(self.markers[0]):
      # A template can only be given thoughts that end.
      return self._start is not None or self._closing not in response
    return self._start is not None and self._closing in response

  def _without_opening(self, response: str) -> str:
    rest = response.removeprefix(self._opened)
    if rest == response and rest.startswith(self.markers[0]):
      return rest.removeprefix(self.markers[0]).lstrip()
    return rest

  def _find_lead(self, lead: str) -> None:
    """Takes what the template has between generation prompt and response."""
    if not lead.strip():
      self.lead = lead
      return
    if not self.opener:
      raise ValueError(
        f"The chat template of {self._text.name} ignores add_generation_prompt:"
        f" its prompts lack the {lead[-40:]!r} that responses begin with. Add"
        " that to the template."
      )
    self.before_answer = lead
    opened, closing = _OPENING.search(self._head), _CLOSING.search(lead)
    if opened and closing and _closing(opened) == closing.group():
      self._open(opened)

  def _find_opening(self, before: str) -> None:
    """Takes what the generation prompt has more than a conversation."""
    more = self._head.removeprefix(before)
    opened = _OPENING.fullmatch(more)
    if opened:
      self._start, space = before, opened.group(3)
      self._open(opened)
      self.before_answer = space + self._closing + 2 * space
    elif not more.strip():
      self._start = before
    if self._start is not None:
      self.unsaid = more

  def _open(self, opened: re.Match) -> None:
    self._opened, self._closing = opened.group(), _closing(opened)
    self.markers = (self._opened.strip(), self._closing)

  def _refusal(self, response: str) -> str:
    name = f"The chat template of {self._text.name}"
    prompt = f"its generation prompt, which ends with {self._head[-40:]!r}"
    written = self._text.render(_exchange(response), False)
    for closing in _CLOSING.finditer(response):
      thoughts = response[: closing.start()].strip()
      if thoughts not in written:
        return (
          f"{name} leaves the thoughts of a response out, here"
          f" {thoughts[:60]!r}, so that it would not be what the model wrote"
          f" after {prompt}.{self._text.thinking()} Give the response without"
          " what is before"
          f" {closing.group()!r}, or use a template that keeps it."
        )
    thinking = self._text.thinking() if _CLOSING.search(response) else ""
    return (
      f"{name} makes something else of the response {response[:60]!r} than an"
      f" answer to {prompt}.{thinking} Write responses as the template does"
      " (without thinking, for example), or change the template."
    )


def _is_in(response: str, text: str) -> bool:
  """Whether a text has the response in it, but for white space around it.

  Around thoughts there may be other white space too.
  """
  if response.strip() in text:
    return True
  if not _CLOSING.search(response):
    return False
  return "".join(response.split()) in "".join(text.split())


def _closing(opening: re.Match) -> str:
  """Returns what closes the thoughts that a match of `_OPENING` opens."""
  return f"{opening.group(1)}/{opening.group(2)}"


def _exchange(response: str) -> list[Message]:
  return [
    {"role": "user", "content": rendering.HOLE.format(0)},
    {"role": "assistant", "content": response},
  ]

"""Renders messages with a chat template, and finds the text of a response.

A response is the text that the template puts between its generation prompt and
the stop token, including white space around the content (the templates of
Llama 2 and Mistral add some).
"""

import contextlib
from collections.abc import Sequence

from perl_jax.data.records import Message

# Placeholder for a content. Templates do not change letters and digits.
HOLE = "Xq7Zk{:05d}kZ7qX"

# Variables of templates. Qwen3 and similar models answer without thinking. The
# date is the release of Llama 3.1 and 3.2, fixed so that runs can be repeated.
_OPTIONS = {"enable_thinking": False, "date_string": "26 Jul 2024"}


class Rendering:
  """Renders messages with the chat template of one tokenizer.

  Attributes:
    name: Name of the tokenizer in errors.
    exists: Whether there is a template; without one a prompt is plain text.
    lead, tail: White space that the template puts before and after a response;
      both are "" until `find_frame` is called.
  """

  def __init__(self, tokenizer, name: str) -> None:
    self.name = name
    self._tokenizer = tokenizer
    self.exists = bool(tokenizer.chat_template)
    self.lead = self.tail = self._head = self._foot = ""
    self._folds_system = self.exists and self._refuses_system()

  def folded(self, messages: Sequence[Message]) -> list[Message]:
    """Returns the messages in a form that the template accepts.

    If it refuses a system message (Gemma 1 and 2), that is put before the
    content of the first user message with an empty line between them, as the
    templates of Gemma 3 and Mistral do themselves.
    """
    roles = [message["role"] for message in messages[:2]]
    if not self._folds_system or roles != ["system", "user"]:
      return list(messages)
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *messages[2:]]

  def render(self, messages: Sequence[Message], generate: bool) -> str:
    """Returns the messages as text, with a generation prompt if `generate`.

    Raises:
      ValueError: The template refuses them.
    """
    try:
      return self._render(messages, generate)
    except (ValueError, ImportError):
      raise
    except Exception as error:  # A template can raise anything.
      raise ValueError(
        f"The chat template of {self.name} refuses {self._culprit(messages)}: "
        f"{error}. Leave such messages out, or change the template."
      ) from error

  def reference_ids(self, messages: Sequence[Message]) -> list[int]:
    """Returns the tokens of a prompt as transformers encodes it."""
    return self._tokenizer.apply_chat_template(
      list(messages), add_generation_prompt=True, **_OPTIONS
    )["input_ids"]

  def show(self, ids: Sequence[int]) -> list[str]:
    """Returns the texts of tokens, for errors."""
    return self._tokenizer.convert_ids_to_tokens(list(ids))

  def turn(self, response: str) -> str:
    """Returns the text between the generation prompt and the stop token.

    Raises:
      ValueError: The template does not continue its generation prompt with the
        response, or leaves out more of it than white space around it.
    """
    if not self.exists:
      return response
    whole = self.render(_exchange(response), False)
    if whole.startswith(self._head) and whole.endswith(self._foot):
      found = whole[len(self._head) : len(whole) - len(self._foot)]
      if response.strip() in found:
        return found
    raise ValueError(
      f"The chat template of {self.name} makes something else of the response "
      f"{response[:60]!r} than an answer to its generation prompt, which ends "
      f"with {self._head[-40:]!r}. Write responses as the template does "
      "(without thinking, for example), or change the template."
    )

  def find_frame(self, stop: str | None) -> None:
    """Finds the text around a response, by rendering one exchange.

    Args:
      stop: Text of the token that ends an assistant turn, or None.

    Raises:
      ValueError: The template puts text before responses, but has no generation
        prompt.
    """
    if not self.exists:
      return
    user, assistant = _exchange(HOLE.format(1))
    self._head = self.render([user], True)
    whole = self.render([user, assistant], False)
    before, _, self._foot = whole.partition(assistant["content"])
    lead = before.removeprefix(self._head)
    if not lead.strip():
      self.lead = lead
    elif self._head == self.render([user], False):
      raise ValueError(
        f"The chat template of {self.name} ignores add_generation_prompt:"
        f" its prompts lack the {lead[-40:]!r} that responses begin with. Add "
        "that to the template."
      )
    tail, found, _ = self._foot.partition(stop or self._foot)
    if found and not tail.strip():
      self.tail = tail
      self._foot = self._foot.removeprefix(tail)

  def _refuses_system(self) -> bool:
    try:
      self.render([{"role": "system", "content": "a"}, _exchange("")[0]], True)
    except ValueError:
      return True
    return False

  def _render(self, messages: Sequence[Message], generate: bool) -> str:
    if not self.exists:
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
      [list(messages)],
      tokenize=False,
      add_generation_prompt=generate,
      **_OPTIONS,
    )[0]

  def _culprit(self, messages: Sequence[Message]) -> str:
    for end in range(1, len(messages) + 1):
      with contextlib.suppress(Exception):  # As above.
        self._render(messages[:end], False)
        continue
      return f"a message of role {messages[end - 1]['role']!r} (number {end})"
    return f"the roles {[message['role'] for message in messages]}"


def _exchange(response: str) -> list[Message]:
  return [
    {"role": "user", "content": HOLE.format(0)},
    {"role": "assistant", "content": response},
  ]

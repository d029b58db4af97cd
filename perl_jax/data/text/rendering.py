"""Renders messages with a chat template, on any day to the same text."""

import contextlib
import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jinja2

from perl_jax.data import records
from perl_jax.data.records import Message
from perl_jax.data.text import score_template

# Placeholder for a content. Templates do not change letters and digits.
HOLE = "Xq7Zk{:05d}kZ7qX"

# Today, for templates that write it into prompts: a run that goes on tomorrow
# has to see the same ones. It is the day that Llama 3.1 and 3.2 fall back to.
_TODAY = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
_DIRECTIVES = [f"%{d}" for d in "aAwdbBmyYHIpMSfzZjUWcxXGuVheDFRTr"]
_DIRECTIVES += [f"%-{d}" for d in "dmyHIMSjUW"]

# The variable with which prompts of Qwen3 and similar models ask for thoughts.
_THINKS = "enable_thinking"
# Variables of templates, where a row gives no others. Qwen3 and similar models
# answer without thinking.
_OPTIONS = {
  _THINKS: False,
  "date_string": _TODAY.strftime("%d %b %Y"),
}


# Keys of a message with what was thought before the answer.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Conversations in which a template that renders a key writes the probe.
_PROBE = "Xq7Zk_probe"
_CALL = {
  "type": "function",
  "id": "abcdefghi",
  "function": {"name": _PROBE, "arguments": {"a": "b"}},
}
_TOOL = {
  "type": "function",
  "function": {
    "name": _PROBE,
    "description": "a",
    "parameters": {
      "type": "object",
      "properties": {"a": {"type": "string", "description": "b"}},
      "required": ["a"],
    },
  },
}
_ASKED = {"role": "user", "content": "a"}
_MUST: dict[str, list[Message]] = {
  "tools": [{**_ASKED, "tools": [_TOOL]}],
  "tool_calls": [
    _ASKED,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
  ],
} | {
  key: [_ASKED, {"role": "assistant", "content": "b", key: _PROBE}]
  for key in THOUGHTS
}


class NotRenderedError(ValueError):
  """A message has a key that means something and cannot be rendered."""


def without(keys: Sequence[str]) -> str:
  """Returns how to train on data without some of its keys, for errors."""
  if "tool_calls" in keys:  # Without its calls a message may say nothing.
    return "remove the rows that have them"
  quoted = "".join(f"'{key}'," for key in keys)
  return f'leave them out on purpose with --config.data.ignore="({quoted})"'


class Rendering:
  """Renders messages with the chat template of one tokenizer.

  Attributes:
    name: Name of the tokenizer in errors.
    exists: Whether there is a template; without one a prompt is plain text.
  """

  def __init__(
    self, tokenizer, name: str, variables: Mapping[str, Any] | None = None
  ) -> None:
    self.name = name
    self._tokenizer = tokenizer
    self._options = _OPTIONS | (variables or {})
    self._template = _template_of(tokenizer, name)
    self._tool_template = _tool_template_of(tokenizer) or self._template
    self._rendered: dict[str, bool] = {}
    self.exists = bool(self._template)
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
    first = {**messages[0], **messages[1], "content": content}
    return [first, *messages[2:]]

  def render(self, messages: Sequence[Message], generate: bool) -> str:
    """Returns the messages as text, with a generation prompt if `generate`.

    Raises:
      NotRenderedError: A message has a key that cannot be rendered.
      ValueError: The template refuses them.
    """
    try:
      return self._render(messages, generate)
    except (ValueError, ImportError):
      raise
    except jinja2.TemplateSyntaxError as error:
      raise ValueError(
        f"The chat template of {self.name} has a syntax error in line "
        f"{error.lineno}: {error.message} Mend it in chat_template.jinja, or"
        " under chat_template in tokenizer_config.json if there is no such"
        " file."
      ) from error
    except Exception as error:  # A template can raise anything.
      raise ValueError(
        f"The chat template of {self.name} refuses {self._culprit(messages)}: "
        f"{error}. Leave such messages out, or change the template."
      ) from error

  def reference_ids(self, messages: Sequence[Message]) -> list[int]:
    """Returns the tokens of a prompt as transformers encodes it."""
    return self._tokenizer.apply_chat_template(
      list(messages),
      chat_template=self._template,
      add_generation_prompt=True,
      **self._options,
    )["input_ids"]

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of tokens."""
    return self._tokenizer.decode(
      list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )

  def show(self, ids: Sequence[int]) -> list[str]:
    """Returns the texts of tokens, for errors."""
    return self._tokenizer.convert_ids_to_tokens(list(ids))

  def fixed(self) -> str | None:
    """Returns a template that needs no variables to render as runs render.

    None if that is the tokenizer's own, or if there is none.
    """
    if not self.exists:
      return None
    talk = [{"role": "user", "content": "a"}]
    talk.append({"role": "assistant", "content": "b"})
    (plain,) = self._tokenizer.apply_chat_template([talk], tokenize=False)
    if plain == self.render(talk, False):
      return None
    return score_template.with_defaults(self._template, self._options)

  def ending_with(self, closing: str, stop: str) -> str:
    """Returns the template `fixed` with another end of a conversation.

    Args:
      closing, stop: See `score_template.ending_with`.
    """
    template = self.fixed() or self._template
    return score_template.ending_with(template, closing, stop)

  def _refuses_system(self) -> bool:
    try:
      self.render(
        [{"role": "system", "content": "a"}, {"role": "user", "content": ""}],
        True,
      )
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
    messages, tools = self._given(messages)
    # As a batch of one: transformers refuses a bare empty list of messages.
    return self._tokenizer.apply_chat_template(
      [messages],
      chat_template=self._tool_template if tools else self._template,
      tools=tools,
      tokenize=False,
      add_generation_prompt=generate,
      **self._options,
    )[0]

  def _given(
    self, messages: Sequence[Message]
  ) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Returns messages and tools as the template is given them."""
    tools, given = None, []
    for message in messages:
      message = {k: v for k, v in message.items() if k != "weight"}
      message.pop(records.VARIABLES, None)
      tools = message.pop("tools", tools)
      if "tool_calls" in message and not records.said(message):
        message["content"] = ""
      given.append(message)
    return given, tools

  def check(self, messages: Sequence[Message]) -> None:
    """Checks that the template renders what messages have besides text.

    Raises:
      NotRenderedError: It leaves a key out.
    """
    for key in _MUST.keys() & {key for m in messages for key in m}:
      if not self.exists or not self._renders(key):
        raise NotRenderedError(
          f"The chat template of {self.name} does not render the {key!r} of"
          " messages, so the model would not see them. Take a tokenizer whose"
          f" template does (--config.data.tokenizer), or {without([key])}."
        )

  def thinking(self, keys: Collection[str] = THOUGHTS) -> str:
    """Returns how rows with thoughts are rendered, for errors; "" if unknown.

    Args:
      keys: What else than a text could not be rendered.
    """
    if (
      set(keys).isdisjoint(THOUGHTS)
      or _THINKS not in (self._template or "")
      or self._options.get(_THINKS)
    ):
      return ""
    given = json.dumps({records.VARIABLES: {_THINKS: True}})[1:-1]
    return (
      f" Rows with thoughts need {given} in them, as the template reads it."
    )

  def _renders(self, key: str) -> bool:
    """Whether the template writes the value of a key of messages."""
    if key not in self._rendered:
      found = False
      with contextlib.suppress(Exception):  # A template can raise anything.
        found = _PROBE in self._render(_MUST[key], False)
      self._rendered[key] = found
    return self._rendered[key]

  def _culprit(self, messages: Sequence[Message]) -> str:
    for end in range(1, len(messages) + 1):
      with contextlib.suppress(Exception):  # As above.
        self._render(messages[:end], False)
        continue
      return f"a message of role {messages[end - 1]['role']!r} (number {end})"
    return f"the roles {[message['role'] for message in messages]}"


def _template_of(tokenizer, name: str) -> str | None:
  """Returns the chat template, with a fixed date; None without one.

  Raises:
    ValueError: There are several, and none of them is the default.
  """
  template = tokenizer.chat_template
  if isinstance(template, dict):
    if "default" not in template:
      raise ValueError(
        f"The tokenizer {name} has chat templates named {sorted(template)} and "
        "none named 'default'. Save the one to use as chat_template.jinja in "
        "its directory."
      )
    template = template["default"]
  return _dated(template)


def _tool_template_of(tokenizer) -> str | None:
  """Returns the template that transformers takes where tools are given."""
  template = tokenizer.chat_template
  if isinstance(template, dict):
    return _dated(template.get("tool_use"))
  return None


def _dated(template: str | None) -> str | None:
  """Returns a template with a fixed date where it asks for today's."""
  if not template or "strftime_now" not in template:
    return template
  # The library hands plain data to templates, and no functions.
  day = "format"
  for directive in _DIRECTIVES:
    value = json.dumps(_TODAY.strftime(directive))
    day += f" | replace('{directive}', {value})"
  day += f" | replace('%s', '{_TODAY.timestamp():.0f}')"
  return (
    f"{{% macro strftime_now(format) %}}{{{{ {day} }}}}{{% endmacro %}}"
    + template
  )

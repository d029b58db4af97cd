"""A judge that is a language model behind a chat endpoint.

It reads a template in which {prompt}, {a} and {b} stand for the conversation
and the two responses ({reference} for the one in the data), and answers with A,
B or tie in the last line. Each pair is shown in both orders. What is no such
answer is no verdict, and is counted; nothing is guessed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perl_jax import endpoints, json_text, names
from perl_jax.endpoints import chat as chat_lib
from perl_jax.reporting import phases
from perl_jax.tasks.evaluation import policy as policy_evaluation
from perl_jax.tasks.judging import pairs as pairs_lib
from perl_jax.tasks.judging import statistics
from perl_jax.tasks.judging.pairs import Both, Opinion, Pair
from perl_jax.tasks.settings import judge as settings
from perl_jax.tasks.settings import shared

TEMPLATE = Path(__file__).with_name("prompt.txt")
_NEEDED, _KNOWN = ("prompt", "a", "b"), ("prompt", "a", "b", "reference")
_PLACE = re.compile(r"\{([a-z_]+)\}")
# A verdict in words of small letters: alone, or with a few that add nothing.
_VERDICT = re.compile(
  r"(?:(?:my |the )?(?:final |better |best )?"
  r"(?:verdict|answer|winner|choice|response|one) )?(?:is |it is |it s )?"
  r"(?:(?:the )?(?:response|assistant|option) )?(?P<word>a|b|tie|a tie)"
  r"(?: wins| is (?:clearly |slightly |much )?better"
  r"| is the (?:winner|(?:better|best) (?:response|answer|one)))?"
)
_WORDS = {"a": statistics.WIN, "b": statistics.LOSS, "tie": statistics.TIE}
# A verdict in the brackets of MT-Bench, whose C is a tie, and of Arena-Hard.
_MARKED = re.compile(r"\[\[\s*(a|b|c|tie|a>{1,2}b|b>{1,2}a|a=b)\s*\]\]")
_MARKS = _WORDS | {"c": statistics.TIE, "a=b": statistics.TIE}
_MARKS |= dict.fromkeys(("a>b", "a>>b"), statistics.WIN)
_MARKS |= dict.fromkeys(("b>a", "b>>a"), statistics.LOSS)
# Names of the verdict in an answer that is a JSON object, and what may be
# around that; where the thoughts of a model end that thinks aloud.
_NAMES = ("verdict", "winner", "answer")
_FENCE = re.compile(r"^```\w*\s*|\s*```$")
_THOUGHT = "</think>"
# How models begin that will not answer.
_REFUSAL = re.compile(
  r"\W*(?:i'?m (?:very )?sorry|i am (?:very )?sorry|sorry\b|i (?:can'?t|cannot|"
  r"can not|won'?t|will not|must decline)|i'?m (?:not able|unable)|i am (?:not"
  r" able|unable)|i apologi[sz]e|my apologies|as an ai\b|as a(?: large)?"
  r" language model\b)",
  re.IGNORECASE,
)
# What has no business in a field that is written down, wherever it stands; and
# what has none as a field of the request itself.
_SECRETS = {"api_key", "apikey", "x_api_key", "authorization", "access_token"}
_SECRETS_ABOVE = {*_SECRETS, "key", "token"}


class Template:
  """A text with places for the prompt and the two responses."""

  def __init__(self, text: str, where: str):
    """Checks the places.

    Args:
      text: The template.
      where: Where it comes from, for errors.

    Raises:
      ValueError: A place is missing.
    """
    found = _PLACE.findall(text)
    missing = [name for name in _NEEDED if name not in found]
    if missing:
      others = [name for name in found if name not in _KNOWN]
      hint = names.did_you_mean(others[0], missing) if others else ""
      raise ValueError(
        f"{where}: {', '.join(f'{{{name}}}' for name in missing)} is not in the"
        f" template. It needs {{prompt}}, {{a}} and {{b}}, and may have"
        f" {{reference}}.{hint}"
      )
    self._text = text

  @property
  def digest(self) -> str:
    """SHA-256 of the text."""
    return hashlib.sha256(self._text.encode()).hexdigest()

  def fill(self, pair: Pair, swapped: bool) -> str:
    """The text for a pair; `swapped` shows the other response first.

    Braces in what is filled in stay as they are.
    """
    a, b = pair.policy, pair.against
    if swapped:
      a, b = b, a
    values = {
      "prompt": policy_evaluation.prompt_text(pair.row),
      "a": a,
      "b": b,
      "reference": pair.row.reference or "",
    }
    return _PLACE.sub(lambda m: values.get(m[1], m[0]), self._text)


def read_verdict(answer: endpoints.Answer) -> tuple[float, str]:
  """(verdict, fault) of an answer; the verdict is 1 for A and -1 for B.

  The last line with a letter has to be A, B or tie; marks around it and a few
  words are allowed, such as "**Verdict:** B" or "Response A is better.". Or it
  has a verdict in double brackets, "So I choose [[A]].", where [[C]] is a tie
  as in MT-Bench, or [[A>>B]] as in Arena-Hard. Or the answer is a JSON object
  with a `verdict`. What a model thinks aloud before its answer is not read. Of
  an answer that was cut, the last line may be the beginning of another one.
  """
  if answer.ended == "refused":
    return statistics.NONE, pairs_lib.REFUSED
  if answer.ended in ("length", "too_long"):
    return statistics.NONE, pairs_lib.CUT
  if answer.ended == "nothing":
    return statistics.NONE, pairs_lib.UNPARSABLE
  said = answer.text.rpartition(_THOUGHT)[2].strip()
  named = _in_object(said)
  lines = [line for line in said.splitlines() if re.search(r"[^\W_]", line)]
  last = named if named is not None else lines[-1] if lines else ""
  verdict = None if "?" in last else _verdict_in(last.lower())
  if verdict is not None:
    return verdict, ""
  if _REFUSAL.match(said.replace("\u2019", "'")):
    return statistics.NONE, pairs_lib.REFUSED
  return statistics.NONE, pairs_lib.UNPARSABLE


def _verdict_in(line: str) -> float | None:
  """The verdict of a line in small letters; None if it says none, or two."""
  found = _VERDICT.fullmatch(" ".join(re.findall(r"[^\W_]+", line)))
  if found:
    return _WORDS[found["word"].removeprefix("a ")]
  marked = {_MARKS[mark] for mark in _MARKED.findall(line)}
  return marked.pop() if len(marked) == 1 else None


def _in_object(text: str) -> str | None:
  """The verdict of an answer that is a JSON object; None if it is none."""
  try:
    found = json_text.parse(_FENCE.sub("", text))
  except json_text.Fault:
    return None
  values = [found.get(n) for n in _NAMES] if isinstance(found, dict) else []
  return next((value for value in values if isinstance(value, str)), None)


class ChatJudge:
  """A model that is shown each pair twice."""

  everywhere = False

  def __init__(
    self,
    label: str,
    chat: endpoints.Chat,
    template: Template,
    section: str = "config.endpoint",
  ):
    """Binds model and template.

    Args:
      label: What the metrics call it.
      chat: Asks the model.
      template: The text that it is shown.
      section: Config fields that errors name.
    """
    self.label, self._chat, self._template = label, chat, template
    self._section = section

  def __call__(self, pairs: Sequence[Pair]) -> list[Both]:
    """Opinions of pairs; each answer is a reason as it is.

    Raises:
      ValueError: The server failed; what was answered is kept.
    """
    texts = [
      self._template.fill(pair, swapped)
      for pair in pairs
      for swapped in (False, True)
    ]
    doing = f"asking {self.label}"
    try:
      answers = list(phases.track(self._chat.ask(texts), doing, len(texts)))
    except endpoints.EndpointError as error:
      raise ValueError(f"{self._section}: {error}") from None
    found = []
    for first, last in zip(answers[::2], answers[1::2], strict=True):
      verdict, fault = read_verdict(first)
      swapped, other_fault = read_verdict(last)
      found.append(
        (
          Opinion(verdict, first.text, fault),
          Opinion(-swapped, last.text, other_fault),
        )
      )
    return found


def load(
  named: settings.Judge,
  config: shared.Config,
  known: Mapping[str, endpoints.Answer],
  on_answer: Callable[[str, endpoints.Answer], None],
) -> ChatJudge:
  """The judge of `config.endpoint`; nothing is asked yet.

  Args:
    named: The judge; its `of` is the model, if not that of the config.
    config: Config of the task.
    known: Answers of an earlier run of this command, by key.
    on_answer: Keeps each new answer.

  Raises:
    ValueError: A field is missing or wrong, or the key is not there.
  """
  section = settings.section_of(config)
  endpoint, where = section.fields.endpoint, f"{section.path}.endpoint"
  if not endpoint.url:
    raise ValueError(
      f"{section.field} has {named.name!r}, and {where}.url is empty:"
      " give the address of a server with OpenAI's interface, such as"
      " http://127.0.0.1:8080/v1."
    )
  model = named.of or endpoint.model
  if not model:
    raise ValueError(
      f"{section.field} has {named.name!r}, and {where}.model is"
      " empty: give the name by which the server knows its model."
    )
  try:
    client = endpoints.Client(
      chat_lib.address(endpoint.url),
      request_seconds=endpoint.request_seconds,
      key_variable=endpoint.key_variable,
    )
  except ValueError as error:
    raise ValueError(f"{where}.url or {where}.key_variable: {error}") from error
  options = {"model": model}
  if endpoint.max_tokens:
    options["max_tokens"] = endpoint.max_tokens
  if endpoint.temperature is not None:
    options["temperature"] = endpoint.temperature
  options |= _more(endpoint.options, where)
  chat = endpoints.Chat(
    client,
    {name: value for name, value in options.items() if value is not None},
    parallel=endpoint.parallel,
    known=known,
    on_answer=on_answer,
  )
  template = template_of(endpoint.template, where)
  return ChatJudge(named.label, chat, template, where)


def template_of(path: str, section: str = "config.endpoint") -> Template:
  """The template in a file, or that of the package.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is no UTF-8 text, or lacks a place.
  """
  if not path:
    return Template(TEMPLATE.read_text(encoding="utf-8"), str(TEMPLATE))
  where = f"{section}.template={path!r}"
  if not Path(path).is_file():
    raise FileNotFoundError(
      f"{where}: there is no such file. Leave it empty for the template of the"
      f" package, {TEMPLATE}, or begin with a copy of that."
    )
  try:
    return Template(Path(path).read_text(encoding="utf-8"), where)
  except UnicodeDecodeError as error:
    raise ValueError(f"{where} is not UTF-8 text: {error}") from error


def _more(text: str, section: str) -> dict[str, Any]:
  """Further fields of a request, from JSON."""
  if not text:
    return {}
  where = f"{section}.options"
  try:
    found = json_text.parse(text)
  except json_text.Fault as error:
    # The text is not shown: somebody may have written a key into it.
    raise ValueError(f"{where}: {error.what}.") from None
  if not isinstance(found, dict):
    raise ValueError(
      f"{where} is {type(found).__name__} and must be a JSON object, such as"
      f" {json.dumps({'max_tokens': None, 'max_completion_tokens': 2048})}."
    )
  secret = _secret_in(found, _SECRETS_ABOVE)
  if secret:
    raise ValueError(
      f"{where} has the field {secret!r}; what is in it would be written to"
      " config.json. Put a key into an environment variable, and its name into"
      f" {section}.key_variable."
    )
  return found


def _secret_in(value: Any, secrets: set[str]) -> str:
  """The first field, however deep, that is called like a secret; or ""."""
  if isinstance(value, list):
    return next(filter(None, (_secret_in(v, secrets) for v in value)), "")
  if not isinstance(value, dict):
    return ""
  for name, below in value.items():
    plain = name.lower().replace("-", "_")
    found = name if plain in secrets else _secret_in(below, _SECRETS)
    if found:
      return found
  return ""

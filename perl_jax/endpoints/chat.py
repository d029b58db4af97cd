"""Chat completions from a server with OpenAI's interface.

  request  POST URL/chat/completions
           {"model", "messages": [{"role": "user", "content"}], ...}
  answer   {"choices": [{"message": {"content"}, "finish_reason"}]}

So do OpenAI and most other providers, and vLLM, llama.cpp, Ollama and TGI.
"""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from perl_jax.endpoints.client import Client, EndpointError, in_parallel

_PATH = "/chat/completions"
# Words of a status that is about what the message says: of a filter of the
# provider, or of another one that it asks before.
_FILTERED = ("content_filter", "content_policy", "content management policy")
_FILTERED += ("content policy", "usage polic", "invalid_prompt", "moderation")
_FILTERED += ("flagged", "prohibited_content", "responsible ai", "unsafe")
_OF_CONTENT = (400, 403, 422, 451)
# Words of a status that is about a message longer than the model reads.
_TOO_LONG = ("context length", "context size", "context window")
_TOO_LONG += ("context_length", "context_size", "prompt is too long")
_OF_LENGTH = (400, 413, 422)
# Answers that may be others next time: the model has not been heard.
_NOT_KEPT = ("too_long", "nothing")


class Answer(NamedTuple):
  """What a model answered.

  Attributes:
    text: The text; of a refusal, its reason if one was given.
    ended: "stop", "length" (it was cut), "refused" (a refusal, or a filter of
      the provider), "too_long" (the model does not read so much), or "nothing"
      (a completion without any choice).
  """

  text: str
  ended: str


def address(url: str) -> str:
  """The address of a server's chat completions, from that or from its base.

  Raises:
    ValueError: It has a "?": what follows may be a key, and is written down.
  """
  parts = urllib.parse.urlsplit(url)
  if parts.query or parts.fragment:
    raise ValueError(
      f"The address of {parts.hostname} has a '?' or a '#'; what follows may be"
      " a key, and addresses are written to config.json. Leave it out; the key"
      " belongs into an environment variable."
    )
  url = url.rstrip("/")
  return url if url.endswith(_PATH) else url + _PATH


class Chat:
  """Asks a model one message at a time, several at once.

  A message that was answered is not asked about again.
  """

  def __init__(
    self,
    client: Client,
    options: Mapping[str, Any],
    *,
    parallel: int = 4,
    known: Mapping[str, Answer] | None = None,
    on_answer: Callable[[str, Answer], None] = lambda key, answer: None,
  ):
    """Binds a server; nothing is sent yet.

    Args:
      client: Client of the `address`.
      options: Fields of a request beside its messages, such as "model".
      parallel: Requests that are under way at once.
      known: Answers of an earlier run, by `key_of`.
      on_answer: Called with each new answer of the model and its key, one call
        at a time.
    """
    self._client, self._options = client, dict(options)
    self._parallel, self._on_answer = parallel, on_answer
    self._known, self._lock = dict(known or {}), threading.Lock()

  def key_of(self, text: str) -> str:
    """SHA-256 of a request, with the server that it is sent to."""
    told = json.dumps([self._client.url, self._body(text)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()

  def ask(self, texts: Sequence[str]) -> Iterator[Answer]:
    """The answers to messages, in their order, as they come.

    Raises:
      EndpointError: The server failed, or answered with something else than a
        chat completion.
    """
    keys = {self.key_of(text): text for text in texts}
    left = [key for key in keys if key not in self._known]
    coming = in_parallel(lambda key: self._ask(keys[key]), left, self._parallel)
    waiting = iter(left)
    for text in texts:
      key = self.key_of(text)
      while key not in self._known:
        self._known[next(waiting)] = next(coming)
      yield self._known[key]

  def _ask(self, text: str) -> Answer:
    try:
      found = self._client.post(self._body(text))
    except EndpointError as error:
      said = str(error).lower()
      of_content = error.status in _OF_CONTENT
      if of_content and any(word in said for word in _FILTERED):
        answer = Answer("", "refused")
      elif error.status in _OF_LENGTH and any(w in said for w in _TOO_LONG):
        answer = Answer(str(error), "too_long")
      else:
        raise
    else:
      answer = self._read(found)
    if answer.ended not in _NOT_KEPT:
      with self._lock:
        self._on_answer(self.key_of(text), answer)
    return answer

  def _body(self, text: str) -> dict[str, Any]:
    # Half of a surrogate pair, which a model can write, is no UTF-8.
    text = text.encode("utf-8", "replace").decode()
    return {"messages": [{"role": "user", "content": text}], **self._options}

  def _read(self, found: Any) -> Answer:
    answered = isinstance(found, dict) and not found.get("error")
    if answered and found.get("choices", "absent") in ([], None):
      # So do some providers where a filter or a limit left nothing to say.
      return Answer("The completion has no choice.", "nothing")
    try:
      choice = found["choices"][0]
      message, why = choice["message"], choice.get("finish_reason")
      if message is None and why == "content_filter":
        message = {}
      text, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
      text = refusal = why = message = None
    if isinstance(text, list):  # of parts
      parts = [part.get("text") for part in text if isinstance(part, dict)]
      text = "".join(part for part in parts if isinstance(part, str))
    if message is None or not isinstance(text, str | None):
      shown = self._client.without_key(json.dumps(found))[:200]
      raise EndpointError(
        f"{self._client.url} answered {shown}, which is no chat completion:"
        ' {"choices": [{"message": {"content": "..."}}]}.'
      )
    text = self._client.without_key(text or "")
    if refusal or why == "content_filter":
      said = refusal if isinstance(refusal, str) else text
      return Answer(self._client.without_key(said), "refused")
    return Answer(text, "length" if why == "length" else "stop")

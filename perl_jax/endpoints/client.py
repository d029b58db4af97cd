"""A client of a JSON server that may be slow, busy or away for a while."""

import concurrent.futures
import datetime
import email.utils
import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from absl import logging

A, B = TypeVar("A"), TypeVar("B")

# Answers that another try may change: a time-out, too many requests, a server
# that starts or is behind a busy proxy.
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
# Environment variable with a key that is sent as "Authorization: Bearer KEY".
KEY_VARIABLE = "PERL_JAX_ENDPOINT_KEY"
# Names of keys behind the "?" of an address, as cloud servers have them.
_SECRETS = {"key", "token", "secret", "password", "passwd", "pwd", "code"}
_SECRETS |= {"apikey", "auth", "authorization", "sig", "signature"}
_ENDS = ("_key", "_token", "_secret")
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
# A server that asks for a longer wait is not waited for.
_MOST_ASKED = 3600.0
_MOST_BYTES, _MOST_OF_ERROR = 2**26, 2**16


class EndpointError(ValueError):
  """A server could not be reached, refused, or answered with something else.

  Attributes:
    status: HTTP status of an answer that another try would not change, or None.
  """

  status: int | None = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  """A redirected POST would become a GET; the answer is an error instead."""

  def redirect_request(self, *_):
    return None


def in_parallel(
  ask: Callable[[A], B], items: Iterable[A], parallel: int
) -> Iterator[B]:
  """`ask` of all items, in their order; the first error ends it.

  An error is raised as soon as it is there, though an item before it may still
  be waited for. Whoever waits then for a busy server keeps no process alive.

  Args:
    ask: Called in threads.
    items: Arguments of `ask`, one for each call.
    parallel: How many calls are under way at once.
  """
  given = list(items)
  results = [concurrent.futures.Future() for _ in given]
  failed: concurrent.futures.Future = concurrent.futures.Future()
  left, lock, over = iter(range(len(given))), threading.Lock(), False

  def work():
    while not over:
      with lock:
        place = next(left, None)
      if place is None:
        return
      try:
        results[place].set_result(ask(given[place]))
      except BaseException as error:
        with lock:
          if not failed.done():
            failed.set_exception(error)
        return

  for _ in range(min(parallel, len(given))):
    threading.Thread(target=work, daemon=True).start()
  try:
    for result in results:
      concurrent.futures.wait(
        (result, failed), return_when=concurrent.futures.FIRST_COMPLETED
      )
      yield result.result() if result.done() else failed.result()
  finally:
    over = True


class Client:
  """Sends JSON to one address and returns the JSON of the answer.

  Attributes:
    url: The address.
  """

  def __init__(
    self,
    url: str,
    *,
    request_seconds: float = 120.0,
    tries: int = 8,
    headers: Mapping[str, str] | None = None,
    key_variable: str = KEY_VARIABLE,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Checks the address; nothing is sent yet.

    Args:
      url: Address, http:// or https://.
      request_seconds: How long to wait for an answer to one request.
      tries: How often a request is sent at most.
      headers: Headers beside the key.
      key_variable: Environment variable with the key. It has to be set, unless
        it is `KEY_VARIABLE`.
      sleep: Waits between two tries.
      clock: Returns seconds.

    Raises:
      ValueError: The address is none, or has a password or a key in it, which
        would be written to config.json and logs; or the key is missing, or is
        none.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ValueError(f"{url!r} is no address such as http://HOST:PORT/PATH.")
    if parts.username is not None or parts.password is not None:
      raise ValueError(
        f"The address of {parts.hostname} has a user or password in it, which"
        " would be written into logs. Put the key into the environment variable"
        f" {key_variable}: it is sent as 'Authorization: Bearer KEY'."
      )
    for name, _ in urllib.parse.parse_qsl(parts.query, keep_blank_values=True):
      plain = name.lower().replace("-", "_")
      if plain in _SECRETS or plain.endswith(_ENDS):
        raise ValueError(
          f"The address of {parts.hostname} has {name!r} behind its '?', which"
          " would be written into config.json and logs. Put the key into the"
          f" environment variable {key_variable}: it is sent as 'Authorization:"
          " Bearer KEY'."
        )
    self.url = url
    self._key_variable, self._key = key_variable, _key_in(key_variable)
    self._forms = _forms_of(self._key)
    self._request_seconds, self._tries = request_seconds, tries
    self._sleep, self._clock = sleep, clock
    self._headers = {"Content-Type": "application/json"}
    if self._key:
      self._headers["Authorization"] = f"Bearer {self._key}"
    self._headers |= dict(headers or {})
    self._opener = urllib.request.build_opener(_NoRedirect)

  def post(self, content: Any, *, deadline: float = math.inf) -> Any:
    """The JSON of the answer.

    A request is sent again, after 0.5 s and each time twice as long up to 30 s,
    or after the time that a Retry-After asks for, where the server was not
    reached, did not answer in time, or said that it is busy (`RETRIED`).

    Args:
      content: JSON of the request.
      deadline: Value of the clock after which nothing is sent and no answer is
        waited for.

    Raises:
      EndpointError: There was no answer, another one than JSON, or an error
        that another try would not change.
    """
    body = json.dumps(content, default=str).encode()
    wait = _FIRST_WAIT
    for tried in range(1, self._tries + 1):
      left = deadline - self._clock()
      if left <= 0:
        raise EndpointError(f"{self.url}: no time is left to ask.")
      asked = refusal = None
      try:
        return self._once(body, min(self._request_seconds, left))
      except urllib.error.HTTPError as error:
        with error:
          reason = self.without_key(str(error.reason))
          problem = f"{error.code} {reason}{self._text_of(error)}"
          if error.code not in RETRIED:
            refusal = EndpointError(
              f"{self.url} answered {problem}{self._hint(error)}"
            )
            refusal.status = error.code
          asked = _asked_wait(error.headers.get("Retry-After"))
      except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        problem = self.without_key(str(reason)) or type(reason).__name__
      if refusal is not None:
        # Out of the handler: the error that was caught may repeat the key.
        raise refusal
      pause = wait if asked is None else asked
      if pause > _MOST_ASKED:
        raise EndpointError(
          f"{self.url} answered {problem} and asks to wait {pause:g} seconds."
          " Run the same command again then."
        )
      if tried == self._tries or self._clock() + pause >= deadline:
        break
      logging.warning("%s: %s; trying again in %g s.", self.url, problem, pause)
      self._sleep(pause)
      wait = min(2.0 * wait, _LONGEST_WAIT)
    raise EndpointError(
      f"{self.url} gave no answer in {tried} tries; the last: {problem}. Check"
      " that the server runs and can be reached from here."
    )

  def _text_of(self, error: urllib.error.HTTPError) -> str:
    """What the server wrote about an error, shortened."""
    try:
      text = error.read(_MOST_OF_ERROR).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
      return ""
    return f" ({self.without_key(text)[:200]!r})" if text else ""

  def _hint(self, error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
      where = self.without_key(str(error.headers.get("Location")))
      return f". It is elsewhere: give the final address, {where}."
    if error.code in (401, 403):
      name = self._key_variable
      return f". A key is taken from the environment variable {name}."
    return ". Another try would not change that: check address and request."

  def without_key(self, text: str) -> str:
    """A text of the server without the key, which it may have repeated."""
    for form in self._forms:
      text = text.replace(form, "(the key)")
    return text

  def _once(self, body: bytes, seconds: float) -> Any:
    request = urllib.request.Request(self.url, body, self._headers)
    with self._opener.open(request, timeout=seconds) as answer:
      text = answer.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
      raise EndpointError(f"{self.url} answered with more than 64 MiB.")
    try:
      return json.loads(text)
    except ValueError as error:
      shown = self.without_key(text.decode(errors="replace"))[:200]
      raise EndpointError(
        f"{self.url} answered with something else than JSON: {shown!r}."
      ) from error


def _key_in(variable: str) -> str:
  """The key in an environment variable, "" without one.

  Messages name neither the key nor the variable: somebody may have written the
  key itself where its name belongs.

  Raises:
    ValueError: The variable is not set, or holds what is no header.
  """
  key = os.environ.get(variable, "").strip()
  if not key and variable != KEY_VARIABLE:
    raise ValueError(
      "The environment variable that is to hold the key of an endpoint is not"
      " set. Give its NAME in the config, such as OPENAI_API_KEY, and its value"
      f" to the shell: export NAME=...; a server without a key: {KEY_VARIABLE}."
    )
  if not (key.isascii() and key.isprintable()):
    raise ValueError(
      "The environment variable with the key of an endpoint holds other"
      " characters than a header may have: a line break within it, or letters"
      " beyond ASCII."
    )
  return key


def _forms_of(key: str) -> list[str]:
  """The key as a server may write it: as it is, in JSON, in an address."""
  if not key:
    return []
  in_json = json.dumps(key)[1:-1]
  forms = [key, in_json, in_json.replace("/", "\\/")]
  forms += [urllib.parse.quote(key), urllib.parse.quote(key, safe="")]
  return sorted({*forms}, key=len, reverse=True)


def _asked_wait(header: str | None) -> float | None:
  """Seconds that a Retry-After asks for, as a number or a date; or None."""
  if header is None:
    return None
  if header.strip().isdecimal():
    return float(header)
  try:
    date = email.utils.parsedate_to_datetime(header)
  except ValueError:
    return None
  if date.tzinfo is None:  # of a date with -0000, or without a zone
    date = date.replace(tzinfo=datetime.UTC)
  now = datetime.datetime.now(datetime.UTC)
  return max(0.0, (date - now).total_seconds())

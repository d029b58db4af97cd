"""Scores of conversations from a server.

  request  {"conversations": [[{"role", "content"}, ...], ...],
            "rows": [{"id", "group", "reference", ...}, ...]}
  answer   {"scores": [number, ...]}, or the list alone

A conversation ends with the response that is judged. `rows` has what else is
known of each, for servers that compare with a reference.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from perl_jax.endpoints.client import Client, EndpointError, in_parallel

Message = Mapping[str, Any]


class Scorer:
  """`scorer(prompts, responses, rows)` -> a score for each response.

  Equal conversations are asked about once, and what was answered is kept (the
  latest `kept` of them), so that evaluations of the same responses cost
  nothing.
  """

  def __init__(
    self,
    url: str,
    *,
    seconds: float = 0.0,
    batch: int = 32,
    parallel: int = 4,
    kept: int = 100_000,
    client: Client | None = None,
  ):
    """Binds a server.

    Args:
      url: Address of the server.
      seconds: Time of a call, all requests and tries together; 0 for any.
      batch: Conversations in a request.
      parallel: Requests that are under way at once.
      kept: Scores that are kept.
      client: The client to use, in place of one of its own.

    Raises:
      ValueError: The address is none.
    """
    self._client = client or Client(url)
    self._seconds = seconds
    self._batch, self._parallel, self._kept = batch, parallel, kept
    self._known: dict[str, float] = {}

  def __call__(
    self,
    prompts: Sequence[Sequence[Message]],
    responses: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
  ) -> list[float]:
    """Scores in the order of the responses.

    Args:
      prompts: Messages of each prompt.
      responses: Texts that were answered.
      rows: What else is known of each.

    Raises:
      EndpointError: The server failed, or answered with another number of
        scores or with something else than finite numbers.
    """
    items = {}
    keys = []
    for prompt, response, row in zip(prompts, responses, rows, strict=True):
      beside = {name: row[name] for name in row if name != "prompt"}
      item = (
        [*prompt, {"role": "assistant", "content": response}],
        beside,
      )
      text = json.dumps(item, sort_keys=True, default=str)
      keys.append(hashlib.sha256(text.encode()).hexdigest())
      items[keys[-1]] = item
    asked = [key for key in items if key not in self._known]
    parts = [
      asked[start : start + self._batch]
      for start in range(0, len(asked), self._batch)
    ]
    deadline = time.monotonic() + self._seconds if self._seconds else math.inf
    ask = functools.partial(self._ask, items, deadline)
    found = {}
    answers = in_parallel(ask, parts, self._parallel)
    for part, scores in zip(parts, answers, strict=True):
      found |= dict(zip(part, scores, strict=True))
    scores = [self._known[k] if k in self._known else found[k] for k in keys]
    self._known |= found
    while len(self._known) > self._kept:
      del self._known[next(iter(self._known))]
    return scores

  def forget(self) -> None:
    """Forgets all scores, so that the server is asked again."""
    self._known.clear()

  def _ask(self, items, deadline, keys) -> list[float]:
    conversations, rows = zip(*(items[key] for key in keys))
    request = {"conversations": conversations, "rows": rows}
    answer = self._client.post(request, deadline=deadline)
    url = self._client.url
    scores = answer.get("scores") if isinstance(answer, dict) else answer
    if not isinstance(scores, list):
      shown = self._client.without_key(json.dumps(answer))[:200]
      raise EndpointError(
        f"{url} answered {shown}, in which there is no list of scores. It must"
        ' answer {"scores": [number, ...]}.'
      )
    if len(scores) != len(keys):
      raise EndpointError(
        f"{url} was sent {len(keys)} conversations and answered with"
        f" {len(scores)} scores. It must answer with one for each, in their"
        " order."
      )
    for score, conversation in zip(scores, conversations, strict=True):
      if not _is_finite(score):
        text = conversation[-1]["content"][:200]
        shown = self._client.without_key(repr(score))[:200]
        raise EndpointError(
          f"{url} answered with {shown} for the response {text!r}. A score must"
          " be a finite number."
        )
    return scores


def _is_finite(score: Any) -> bool:
  """Whether it is a finite number (true and false are 1 and 0)."""
  try:
    return isinstance(score, int | float) and math.isfinite(score)
  except OverflowError:  # an integer of more than 308 digits
    return False

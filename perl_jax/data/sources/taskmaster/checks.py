"""Checks of a response to a Taskmaster prompt: API calls and exact matches."""

import json
from collections.abc import Callable
from typing import Any

from perl_jax.data.records import Prompt
from perl_jax.data.sources.taskmaster.turns import canonical_json

# The API names of all calls upstream. In coffee the empty name marks an
# off-topic request.
APIS = {
  "taskmaster_coffee": frozenset(
    {
      "",
      "add_order_item",
      "cancel_order",
      "escalate_order",
      "finish_order",
      "get_addons",
      "get_menu_items",
      "get_order_details",
      "remove_order_item",
      "show_menu",
      "update_order",
      "update_order_item",
    }
  ),
  "taskmaster_ticketing": frozenset(
    {
      "book_tickets",
      "check_tickets",
      "find_movies",
      "find_showtimes",
      "find_theaters",
      "get_movie_attribute",
      "resolve_location",
      "resolve_movie",
      "resolve_theater",
    }
  ),
}


def make_checker(dataset: str) -> Callable[[Prompt, str], dict[str, float]]:
  """Returns a function that checks a response to a prompt of `dataset`.

  The function takes a prompt and a response, and returns these checks, each 0.0
  or 1.0:

  - valid_json: the response is a JSON object with one entry, whose value is an
    object: `{"name": {"argument": ...}}`.
  - known_api: that name is also one of `APIS[dataset]`.
  - exact_match: the response is the reference: as canonical JSON if both are
    API calls (the order of keys, attributes and add-ons does not matter), else
    as text without the space around it.

  The first two are present if the reference is an API call or the response
  starts with "{", the third if there is a reference.

  Raises:
    ValueError: There is no such data set.
  """
  apis = APIS[require_dataset(dataset)]

  def check(prompt: Prompt, response: str) -> dict[str, float]:
    response = response.strip()
    reference = prompt.reference
    call = parse_call(response)
    expected = None if reference is None else parse_call(reference)
    checks = {}
    if expected is not None or response.startswith("{"):
      checks["valid_json"] = float(call is not None)
      checks["known_api"] = float(call is not None and set(call) <= apis)
    if reference is not None:
      if call is not None and expected is not None:
        same = canonical_json(call) == canonical_json(expected)
      else:
        same = response == reference.strip()
      checks["exact_match"] = float(same)
    return checks

  return check


def parse_call(text: str) -> dict[str, Any] | None:
  """Returns `{name: arguments}` if the text is an API call, else None."""
  try:
    call = json.loads(text)
  # Text with too many nested brackets is no API call either.
  except (json.JSONDecodeError, RecursionError):
    return None
  if not isinstance(call, dict) or len(call) != 1:
    return None
  return call if isinstance(next(iter(call.values())), dict) else None


def require_dataset(dataset: str) -> str:
  """Returns the name of a Taskmaster data set.

  Raises:
    ValueError: There is no such data set.
  """
  if dataset not in APIS:
    names = " or ".join(sorted(APIS))
    raise ValueError(f"No Taskmaster data set {dataset!r}: choose {names}.")
  return dataset

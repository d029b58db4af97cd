"""Taskmaster turns as messages, in one form for every upstream file.

Upstream has the same conversations in two dialects: dialogs (training data for
the policy) and rated turns (`context`, `generation`). A policy trained on the
first is prompted with the second, so everything they differ in is made equal
here and nowhere else.

A turn becomes a message: user text -> role "user"; agent text -> "assistant";
agent API call -> "assistant" with the JSON text of `{name: arguments}`; API
response -> "tool" with the JSON text of `{name: response}`. JSON text is
`canonical_json`: keys sorted, a space after each comma and colon, lists of
attributes and add-ons (which are sets) sorted by their id. Every text is
stripped, and runs of whitespace inside JSON strings are folded.

What is made equal, for the coffee data (dialogs | rated turns):

- Greeting: absent | a fixed one opens nearly every context. Every conversation
  starts with it here; it is given, and never a target.
- Order ids: 5 digits | 32 hex digits, random in both. They become `order-1`,
  `order-2` ..., order item ids `item-1` ..., in order of first appearance.
- Menu item and add-on ids: `mocha-3844`, `Mocha -384`, `76923` (random number)
  | `mocha-0006` (fixed). They become the bare slug, `mocha` (of the name beside
  it, where the id is a number only); a second id with the same slug becomes
  `mocha-2`. An id that the agent made up therefore reads as one that is
  nowhere in the context, which is also how a policy's own mistake reads; it is
  counted, and never merged with a different id.
- Responses: `menu_items` | `items`; `show_menu` shows nothing | sometimes the
  (constant) menu: nothing here; names that repeat the id beside them
  (`attribute_name`, an attribute's `name`, `menu_item_name`, which can be the
  placeholder `var_drink` in dialogs), `default`, `addon_type_*`,
  `modifier_name` and an empty `order` are dropped, as is a quantity of 1 in
  order details (left out | always there); a quantity that dialogs put beside
  the customer's name goes to the item; names are capitalised alike (`latte `
  | `Latte`); a customer is `two of hearts` (`Two of hearts` |
  `two-of-hearts`).
- Attribute ids are lower-cased (`Name` | `name`), and so is the order type
  (`Togo`, `Here` | `togo`, `here`). Other option values keep their case, since
  `Non-Fat Milk` where `Non-fat Milk` is offered was rated down.
- Users are written as they type: `I'd like a Mocha.` | `i'd like a mocha` (4 %
  of the turns of dialogs are all lower case, 51 % of those before rated turns).
  User turns are lower-cased here, without the punctuation at their end; what
  the agent takes from them into a `query` or into `notes` is lower-cased too.

Ticketing has one dialect; only the JSON text is made canonical.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from perl_jax.data.records import Message

COFFEE_GREETING = (
  "Welcome to the Coffee Bar where you can order coffee, tea, espresso, and"
  " other drinks ahead of time. What can I get for you?"
)

OR = " OR "  # between the terms of a query

_SPOKEN = ("query", "notes")
_REPEATS = ("attribute_name", "menu_item_name")
_ONE_SIDED = ("default", "addon_type_id", "addon_type_name", "modifier_name")
_ID_KINDS = {
  "order_id": "order",
  "order_item_id": "item",
  "menu_item_id": "menu",
  "addon_id": "addon",
}
_OPAQUE = re.compile(r"[0-9a-f]{32}|\d{5}")
_ID_IN_TEXT = re.compile(r"[0-9a-f]{32}|[a-z]+(?:-[a-z]+)*-\d{3,4}")
_CARD = re.compile(r"(\w+)[ -]of[ -](\w+)", re.IGNORECASE)


class _Coffee:
  """One coffee conversation: what its ids are called."""

  def __init__(self, counts: Counter):
    self._counts = counts
    self._names: dict[tuple[str, str], str] = {}

  def request(self, call: Mapping[str, Any]) -> dict[str, Any]:
    """Normalises `{name: arguments}` of an API call."""
    return self._walk(_fold_strings(call), "", seen_only=True)

  def response(self, response: Mapping[str, Any]) -> dict[str, Any]:
    """Normalises `{name: response}` of an API response."""
    tidy = {}
    for name, value in _fold_strings(response).items():
      if isinstance(value, dict):
        value = self._tidy_response(name, value)
      tidy[name] = value
    return self._walk(tidy, "", seen_only=False)

  def text(self, text: str) -> str:
    """Renames the ids that an agent text mentions."""
    names = {raw: name for (_, raw), name in self._names.items()}
    return _ID_IN_TEXT.sub(lambda m: names.get(m[0], m[0]), text)

  def _tidy_response(self, api: str, value: dict[str, Any]) -> dict[str, Any]:
    value = dict(value)
    if api == "show_menu" and "menu_items" in value:
      self._counts["menu_left_out"] += 1
      return {"success": True}
    if "menu_items" in value:
      value["items"] = value.pop("menu_items")
    if value.get("order") == {}:
      del value["order"]
    items = _dicts(value.get("items"))
    if api == "get_menu_items":
      for item in items:
        for attribute in _dicts(item.get("attributes")):
          attribute.pop("name", None)
    if api == "get_order_details":
      self._tidy_quantities(value, items)
    for owner in (value, *items):
      for addon in _dicts(owner.get("addons")):
        for key in _ONE_SIDED:
          addon.pop(key, None)
    return value

  def _tidy_quantities(
    self, details: dict[str, Any], items: list[dict[str, Any]]
  ) -> None:
    for attribute in _dicts(details.get("attributes")):
      quantity = attribute.pop("quantity", None)
      if quantity and len(items) == 1 and "quantity" not in items[0]:
        items[0]["quantity"] = quantity
        self._counts["quantity_moved"] += 1
    for item in items:
      if str(item.get("quantity")) == "1":
        del item["quantity"]

  def _walk(self, value: Any, key: str, seen_only: bool) -> Any:
    if isinstance(value, list):
      return [self._walk(entry, key, seen_only) for entry in value]
    if not isinstance(value, dict):
      return value
    result = {}
    lower = str(value.get("attribute_id", "")).lower() == "order-type"
    for name, entry in value.items():
      if name in _ID_KINDS and isinstance(entry, str):
        hint = str(value.get("name", value.get("menu_item_name", "")))
        entry = self._id(_ID_KINDS[name], entry, hint, seen_only)
      elif name == "attribute_id" and isinstance(entry, str):
        # An add-on's id in the wrong place is renamed as elsewhere.
        entry = self._names.get(("addon", entry), entry.lower())
      elif name in ("option", "options") and lower:
        entry = _lower(entry)
      elif name == "option" and not seen_only and isinstance(entry, str):
        entry = _card(entry)
      elif name == "name" and not seen_only and isinstance(entry, str):
        entry = string.capwords(entry)
      elif name == "quantity" and isinstance(entry, int):
        entry = str(entry)
      elif name in _SPOKEN and seen_only:
        entry = _lower_query(entry)
      elif name in _REPEATS and not seen_only:
        continue
      result[name] = self._walk(entry, name, seen_only)
    return result

  def _id(self, kind: str, raw: str, hint: str, seen_only: bool) -> str:
    if (kind, raw) in self._names:
      return self._names[kind, raw]
    if seen_only:
      self._counts["id_not_in_context"] += 1
      # An id of another kind, in the wrong place, still is that id.
      for (_, known), name in self._names.items():
        if known == raw:
          return name
    base = _slug(raw) or _slug(hint) or kind
    numbered = kind in ("order", "item") and bool(_OPAQUE.fullmatch(raw))
    if numbered:
      base = kind
    taken = set(self._names.values())
    number = 1
    name = f"{base}-1" if numbered else base
    while name in taken:
      number += 1
      name = f"{base}-{number}"
    self._names[kind, raw] = name
    return name


def canonical_json(value: Any) -> str:
  """Returns JSON text in which equal calls are equal strings.

  Keys are sorted, and in `attributes` and `addons` (sets, whose order means
  nothing) the entries are sorted by their id. There is a space after each comma
  and colon: tokens are cut before spaces, so without any a frequent call would
  be one token, and a policy would choose it as a whole.
  """
  return json.dumps(_sorted_sets(value), ensure_ascii=False, sort_keys=True)


def ticketing_messages(
  turns: Iterable[Mapping[str, Any]], counts: Counter
) -> list[Message]:
  """Returns one message per turn, JSON in canonical form."""
  del counts
  return [_message(turn, _fold_strings) for turn in turns]


def coffee_messages(
  turns: Iterable[Mapping[str, Any]], counts: Counter
) -> list[Message]:
  """Returns the greeting and one message per turn, in the form above.

  The turns are those of one conversation from its start, with the response to
  be rated (if any) last, so that ids are named alike throughout.
  """
  turns = list(turns)
  messages = []
  if not turns or turns[0].get("text") != COFFEE_GREETING:
    counts["greeting_added"] += 1
    messages.append({"role": "assistant", "content": COFFEE_GREETING})
  conversation = _Coffee(counts)
  for turn in turns:
    if "response" in turn:
      messages.append(_message(turn, conversation.response))
    elif "api" in turn:
      messages.append(_message(turn, conversation.request))
    else:
      message = _message(turn, _fold_strings)
      normalise = conversation.text
      if message["role"] == "user":
        normalise = _typed
      message["content"] = normalise(message["content"])
      messages.append(message)
  return messages


def _sorted_sets(value: Any, key: str = "") -> Any:
  if isinstance(value, dict):
    return {k: _sorted_sets(v, k) for k, v in value.items()}
  if isinstance(value, list):
    entries = [_sorted_sets(v) for v in value]
    if key in ("attributes", "addons") and all(
      isinstance(entry, dict) for entry in entries
    ):
      # The whole entry breaks ties, so the order of the input never matters.
      entries.sort(
        key=lambda e: (
          str(e.get("attribute_id", e.get("addon_id", ""))),
          json.dumps(e, sort_keys=True),
        )
      )
    return entries
  return value


def _message(turn: Mapping[str, Any], normalise) -> Message:
  role = turn["role"]
  if role == "api":
    content = canonical_json(normalise(turn["response"]))
    return {"role": "tool", "content": content}
  if role == "agent" and "api" in turn:
    content = canonical_json(normalise(turn["api"]))
    return {"role": "assistant", "content": content}
  if role not in ("agent", "user"):
    raise ValueError(f"the role {role!r} is not agent, user or api")
  role = "assistant" if role == "agent" else "user"
  return {"role": role, "content": turn["text"].strip()}


def _fold_strings(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _fold_strings(entry) for key, entry in value.items()}
  if isinstance(value, list):
    return [_fold_strings(entry) for entry in value]
  return " ".join(value.split()) if isinstance(value, str) else value


def _dicts(value: Any) -> list[dict[str, Any]]:
  """Returns the objects in a list; nothing if it is no list (`"empty"`)."""
  if not isinstance(value, list):
    return []
  return [entry for entry in value if isinstance(entry, dict)]


def _slug(text: str) -> str:
  words = re.sub(r"[-\s_]+", "-", re.sub(r"\d+", "", text.lower()))
  return words.strip("-")


def _lower(value: Any) -> Any:
  if isinstance(value, list):
    return [_lower(entry) for entry in value]
  return value.lower() if isinstance(value, str) else value


def _lower_query(value: Any) -> Any:
  """Lower case but for the `OR` between the terms of a query."""
  if not isinstance(value, str):
    return value
  return OR.join(term.lower() for term in value.split(OR))


def _typed(text: str) -> str:
  """A user's turn in lower case, without punctuation at its end."""
  return text.lower().rstrip(" .!?,") or text


def _card(text: str) -> str:
  match = _CARD.fullmatch(text.strip('"'))
  return f"{match[1]} of {match[2]}".lower() if match else text

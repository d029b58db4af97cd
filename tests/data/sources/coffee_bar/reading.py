"""Reads orders in plain words, independently of the code that writes them."""

import json
import math
import re

from perl_jax.data.sources.coffee_bar import orders

ROWS = 2000
HELD_OUT = 300  # One order in ten is held out, so these cost more to draw.


def words_of(text):
  return re.findall(r"[a-z]+|[0-9]", text.lower())


def read(messages):
  """Reads an order from its words alone; later words replace earlier ones.

  Independent of how the orders are made: it knows the menu and English, and
  not the templates.
  """
  menu = orders
  numbers = dict(zip(menu.NUMBERS, menu.QUANTITIES, strict=True))
  numbers |= {digit: digit for digit in menu.QUANTITIES}
  found, extras = {"quantity": "1"}, set()
  said = " . ".join(m["content"] for m in messages if m["role"] == "user")
  words = words_of(said)
  for word, after in zip(words, [*words[1:], ""], strict=True):
    if word in menu.MILKS and after == "milk":
      found["milk"] = word
    elif word in menu.FLAVOURS:
      found["flavour"] = word
    elif word in menu.SIZES:
      found["size"] = word
    elif word in menu.TEMPERATURES:
      found["temperature"] = word
    elif word in numbers:
      found["quantity"] = numbers[word]
    elif word in menu.EXTRAS:
      extras.add(word)
    elif word.removesuffix("s") in menu.DRINKS:
      found["drink"] = word.removesuffix("s")
  item = f"{found.get('flavour', '')} {found['drink']}".strip()
  fields = {"item": item, "quantity": found["quantity"]}
  fields |= {
    name: found[name]
    for name in ("size", "temperature", "milk")
    if name in found
  }
  return {"add_item": fields | ({"extras": sorted(extras)} if extras else {})}


def repaired(answer):
  """Returns the call in an answer, and whether it had to be repaired."""
  for call in (
    answer,
    answer.removeprefix("sure, "),
    answer + "}",
    answer[:-1],
  ):
    try:
      return json.loads(call)["add_item"], call != answer
    except ValueError:
      pass
  raise AssertionError(f"no call in {answer!r}")


def differing_fields(answer, truth):
  """Counts the fields in which two calls differ; 1 more if one is malformed."""
  _, malformed = repaired(answer)

  def fields(text):
    call = dict(repaired(text)[0])
    *flavour, call["drink"] = call.pop("item").split()
    return call | ({"flavour": flavour} if flavour else {})

  answer, truth = fields(answer), fields(truth)
  differing = sum(answer.get(k) != truth.get(k) for k in answer.keys() | truth)
  return differing + malformed


def within(count, rows, share, sigmas=5):
  """Whether a count of random rows agrees with their expected share."""
  return abs(count - rows * share) <= sigmas * math.sqrt(
    rows * share * (1 - share)
  )

"""Coffee orders: sampled, phrased in everyday words, answered with mistakes.

The rows of `coffee_bar` are made of these. An order is sampled; a customer
phrases it and sometimes corrects it, in the same message or in a second turn;
it is answered by one JSON call, right or with the mistakes of a hurried clerk.
The vocabulary leaves only one reading of a request: a word belongs to one list,
and what is said last about a field holds.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from perl_jax.data.records import Message

# fmt: off
FLAVOURS = (
  "vanilla", "caramel", "hazelnut", "cinnamon", "pumpkin", "maple", "honey",
  "toffee", "peppermint", "raspberry", "cherry", "banana", "ginger", "lavender",
  "rose", "pistachio", "praline", "chocolate", "cardamom", "nutmeg", "orange",
  "strawberry", "walnut", "pecan", "blueberry", "butterscotch",
)

DRINKS = (
  "latte", "cappuccino", "cortado", "macchiato", "americano", "espresso",
  "ristretto", "lungo", "mocha", "cocoa", "steamer", "chai", "matcha", "tea",
  "frappe", "smoothie", "shake",
)

# fmt: on
SIZES = ("small", "medium", "large")
TEMPERATURES = ("hot", "iced")
MILKS = ("whole", "skim", "oat", "soy", "almond", "coconut", "rice", "cashew")

# The name in the call -> how customers say it.
EXTRAS = {
  "shot": ("an extra shot", "another shot"),
  "whip": ("whip", "some whip"),
  "foam": ("foam", "extra foam"),
  "sugar": ("sugar", "some sugar"),
  "drizzle": ("drizzle", "a drizzle"),
  "sprinkles": ("sprinkles", "some sprinkles"),
  "stevia": ("stevia", "a stevia"),
  "ice": ("extra ice", "more ice"),
}
NUMBERS = ("one", "two", "three", "four", "five", "six")
QUANTITIES = ("1", "2", "3", "4", "5", "6")

# The mistake that concerns no field: the answer is not one JSON call.
FORM = "form"
_MALFORMED = {
  "unclosed": lambda call: call[:-1],
  "overclosed": lambda call: call + "}",
  "chatty": lambda call: "sure, " + call,
}

# Of the answers with a mistake, how many have another; of these, a third one.
SECOND_SLIP = 0.3
THIRD_SLIP = 0.15
CORRECTED_SHARE = 0.35

_OPENINGS = (
  "hi, can i get", "hello, could i have", "can i get", "could i get",
  "i'd like", "i want", "i'll have", "i'll take", "let me get", "may i have",
  "hey, i need", "hello, i'd like", "hi, i'll have", "we need",
)  # fmt: skip
_CLOSINGS = (" please", " please", ", thanks", ", thank you", "", "", "")
_INTERJECTIONS = ("actually ", "no wait, ", "sorry, ", "hmm, ", "oh, ", "")
_CHANGES = {
  "quantity": ("make that {}", "make it {}", "{} of those", "i need {}"),
  "size": ("make it {}", "make that {}", "{} instead", "i meant {}"),
  "temperature": ("make it {}", "make that {}", "{} instead"),
  "milk": ("{} milk", "make it {} milk", "use {} milk", "{} milk instead"),
  "flavour": ("make it {}", "i meant {}", "{} instead", "make that {}"),
  "extras": ("add {}", "and add {}", "also {}", "with {} too"),
}  # fmt: skip
_VALUES = {
  "quantity": QUANTITIES,
  "size": SIZES,
  "temperature": TEMPERATURES,
  "milk": MILKS,
  "flavour": FLAVOURS,
}

# What can be misheard as another value of the same kind.
_HEARD = _VALUES | {"drink": DRINKS}
_REPLIES = ("anything else?", "sure, anything else?", "ok, is that all?")


@dataclasses.dataclass(frozen=True)
class Order:
  """What is ordered. `None` and `()` are fields that nobody mentioned."""

  flavour: str | None
  drink: str
  size: str | None
  temperature: str | None
  milk: str | None
  extras: tuple[str, ...]  # sorted
  quantity: str

  def call(self) -> str:
    """The right answer: canonical JSON, and the key of the split."""
    item = f"{self.flavour} {self.drink}" if self.flavour else self.drink
    fields: dict[str, Any] = {"item": item}
    for name in ("size", "temperature", "milk"):
      if getattr(self, name):
        fields[name] = getattr(self, name)
    if self.extras:
      fields["extras"] = list(self.extras)
    fields["quantity"] = self.quantity
    return json.dumps({"add_item": fields})


@dataclasses.dataclass(frozen=True)
class Request:
  """An order as it is phrased: first `first`, then a correction of `field`."""

  order: Order
  first: Order
  field: str | None


class Dice:
  """Cheap draws from one stream of random numbers."""

  def __init__(self, *key: int):
    self._random = np.random.default_rng(key).random

  def chance(self, share: float) -> bool:
    """True in a share of the draws."""
    return self._random() < share

  def pick(self, options: Sequence[Any]) -> Any:
    """One of the options, all alike."""
    return options[int(self._random() * len(options))]

  def maybe(self, share: float, options: Sequence[str]) -> str | None:
    """One of the options in a share of the draws, else None."""
    return self.pick(options) if self.chance(share) else None

  def other(self, options: Sequence[str], value: str) -> str:
    """One of the options, but not this one."""
    return self.pick([option for option in options if option != value])

  def shuffled(self, options: Iterable[Any]) -> list[Any]:
    """The options in random order."""
    return sorted(options, key=lambda _: self._random())


def draw(dice: Dice) -> Request:
  """Draws an order and, sometimes, what was said before a correction."""
  count = 0 if dice.chance(0.5) else 1 if dice.chance(0.75) else 2
  order = Order(
    flavour=dice.maybe(0.9, FLAVOURS),
    drink=dice.pick(DRINKS),
    size=dice.maybe(0.65, SIZES),
    temperature=dice.maybe(0.35, TEMPERATURES),
    milk=dice.maybe(0.5, MILKS),
    extras=tuple(sorted(dice.shuffled(EXTRAS)[:count])) if count else (),
    quantity="1" if dice.chance(0.4) else dice.pick(QUANTITIES[1:]),
  )
  if not dice.chance(CORRECTED_SHARE):
    return Request(order, order, None)
  # What is corrected is something that the final order has.
  field = dice.pick([name for name in _CHANGES if getattr(order, name)])
  if field == "extras":
    added = dice.pick(order.extras)
    old: Any = tuple(extra for extra in order.extras if extra != added)
  else:
    old = dice.other(_VALUES[field], getattr(order, field))
  return Request(order, dataclasses.replace(order, **{field: old}), field)


def phrase(request: Request, dice: Dice) -> tuple[Message, ...]:
  """The order in everyday words: one user message, or two with a reply."""
  text = dice.pick(_OPENINGS) + " " if dice.chance(0.85) else ""
  text += _phrase(request.first, dice) + dice.pick(_CLOSINGS)
  if request.field is None:
    return (_message("user", text, dice),)
  change = dice.pick(_INTERJECTIONS) + _change(request, dice)
  if dice.chance(0.5):
    return (_message("user", f"{text}, {change}", dice),)
  return (
    _message("user", text, dice),
    {"role": "assistant", "content": dice.pick(_REPLIES)},
    _message("user", change, dice),
  )


def answer(request: Request, count: int, dice: Dice) -> str:
  """The answer of a clerk who makes exactly `count` (at most 3) mistakes."""
  wrong: dict[str, Any] = {}
  if count:
    for field, value in dice.shuffled(_mistakes(request, dice)):
      if field not in wrong:
        wrong[field] = value
      if len(wrong) == count:
        break
  malformed = wrong.pop(FORM, None)
  call = dataclasses.replace(request.order, **wrong).call()
  return _MALFORMED[malformed](call) if malformed else call


def mistake_count(quality: float, dice: Dice) -> int:
  """How many mistakes an answer has: none in a share `quality` of them."""
  if dice.chance(quality):
    return 0
  if not dice.chance(SECOND_SLIP):
    return 1
  return 3 if dice.chance(THIRD_SLIP) else 2


def _phrase(order: Order, dice: Dice) -> str:
  """`two large iced vanilla lattes with oat milk and some whip`."""
  several = order.quantity != "1"
  size_last = order.size and dice.chance(0.25)
  words = [
    None if size_last else order.size,
    order.temperature,
    order.flavour,
    order.drink + ("s" if several else ""),
  ]
  words = [word for word in words if word]
  if several or dice.chance(0.3):
    number = _number(order.quantity, dice)
  else:
    number = "an" if words[0][0] in "aeiou" else "a"
  text = " ".join([number, *words])
  if size_last:
    text += f", {order.size}"
  sides = [f"{order.milk} milk"] if order.milk else []
  sides += [dice.pick(EXTRAS[extra]) for extra in dice.shuffled(order.extras)]
  if not sides:
    return text
  if dice.chance(0.25):
    return ", ".join([text, *sides])
  return f"{text} with {' and '.join(sides)}"


def _change(request: Request, dice: Dice) -> str:
  field = request.field
  if field == "quantity":
    value = _number(request.order.quantity, dice)
  elif field == "extras":
    (added,) = set(request.order.extras) - set(request.first.extras)
    value = dice.pick(EXTRAS[added])
  else:
    value = getattr(request.order, field)
  return dice.pick(_CHANGES[field]).format(value) + dice.pick(_CLOSINGS)


def _number(quantity: str, dice: Dice) -> str:
  return dice.pick((quantity, NUMBERS[int(quantity) - 1]))


def _message(role: str, text: str, dice: Dice) -> Message:
  if dice.chance(0.3):
    text = text[0].upper() + text[1:]
  return {"role": role, "content": text}


def _mistakes(request: Request, dice: Dice) -> list[tuple[str, Any]]:
  """Every mistake that this order invites: (field, wrong value)."""
  order = request.order
  unasked = [extra for extra in EXTRAS if extra not in order.extras]
  mistakes = [
    ("quantity", dice.other(QUANTITIES[:3], order.quantity)),
    ("extras", tuple(sorted((*order.extras, dice.pick(unasked))))),
  ]
  if order.flavour:
    mistakes.append(("flavour", None))
  # The size forgotten, or the default one invented or entered by habit.
  mistakes.append(("size", None if order.size == "medium" else "medium"))
  if order.temperature:
    mistakes.append(("temperature", None))
  if order.milk:
    mistakes.append(("milk", None))
  if order.extras:
    dropped = dice.pick(order.extras)
    kept = tuple(extra for extra in order.extras if extra != dropped)
    mistakes.append(("extras", kept))
  if request.field:
    # The correction ignored.
    mistakes.append((request.field, getattr(request.first, request.field)))
  # Something misheard, as any other value: without these a reward model never
  # learns to look the values up in the order, and RL finds that out.
  field = dice.pick([field for field in _HEARD if getattr(order, field)])
  mistakes.append((field, dice.other(_HEARD[field], getattr(order, field))))
  # Not a call at all: the commonest mistake, and the easiest to see.
  mistakes += [(FORM, dice.pick(tuple(_MALFORMED)))] * 2
  return mistakes

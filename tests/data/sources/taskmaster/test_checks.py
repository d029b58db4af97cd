"""Checks of a response against the reference of its prompt."""

import pytest

from perl_jax.data.records import Prompt
from perl_jax.data.sources.taskmaster import checks
from tests.data.sources.taskmaster import cases

_REFERENCE = '{"get_addons": {"menu_item_id": "latte", "query": "oat"}}'


@pytest.mark.parametrize(
  ("reference", "response", "expected"),
  [
    (_REFERENCE, _REFERENCE, (1, 1, 1)),
    (
      _REFERENCE,
      ' {"get_addons":{"query":"oat",  "menu_item_id": "latte"}} ',
      (1, 1, 1),
    ),
    (_REFERENCE, '{"get_addons": {"query": "oat"}}', (1, 1, 0)),
    (_REFERENCE, '{"get_addon": {"query": "oat"}}', (1, 0, 0)),
    (_REFERENCE, _REFERENCE[:-1], (0, 0, 0)),
    (_REFERENCE, '{"get_addons": "oat"}', (0, 0, 0)),
    (_REFERENCE, '{"get_addons": {}, "show_menu": {}}', (0, 0, 0)),
    (_REFERENCE, "Oat milk?", (0, 0, 0)),
    (_REFERENCE, "[" * 100_000, (0, 0, 0)),
    ('{"":{}}', '{"": {}}', (1, 1, 1)),
    ("Right?", " Right?\n", (None, None, 1)),
    ("Right?", "right?", (None, None, 0)),
    ("Right?", '{"show_menu": {}}', (1, 1, 0)),
    ("Right?", "{right", (0, 0, 0)),
    (None, '{"show_menu": {}}', (1, 1, None)),
    (None, "Right?", (None, None, None)),
  ],
)
def test_checks_against_the_reference(reference, response, expected):
  check = checks.make_checker(cases.COFFEE)
  names = ("valid_json", "known_api", "exact_match")
  results = check(Prompt("x", "", (), reference), response)
  assert results == {
    name: float(value)
    for name, value in zip(names, expected, strict=True)
    if value is not None
  }
  assert all(type(value) is float for value in results.values())


def test_exact_match_ignores_the_order_of_attributes():
  check = checks.make_checker(cases.COFFEE)
  first = '{"attribute_id": "a", "option": "x"}'
  second = '{"option": "y", "attribute_id": "b"}'
  call = '{"add_order_item": {"attributes": [%s, %s], "menu_item_id": "m"}}'
  prompt = Prompt("x", "", (), call % (first, second))
  assert check(prompt, call % (second, first))["exact_match"] == 1.0
  assert check(prompt, call % (second, second))["exact_match"] == 0.0

"""Turns become the same messages from dialogs and from rated turns."""

import json
from collections import Counter

from perl_jax.data.sources.taskmaster import records
from perl_jax.data.sources.taskmaster import turns as turns_lib
from tests.data.sources.taskmaster import cases


def test_users_are_written_as_they_type_and_options_as_they_are_offered():
  call = {"query": "Oat Milk OR Decaf", "option": "Oat Milk", "notes": "Extra"}
  messages = turns_lib.coffee_messages(
    [
      {"role": "user", "text": "I'd like 2.5 Mochas?! "},
      {"role": "agent", "api": {"get_addons": call}},
      {"role": "user", "text": "?!"},
      {"role": "agent", "text": "Anything else?"},
    ],
    Counter(),
  )
  assert [m["content"] for m in messages[1:]] == [
    "i'd like 2.5 mochas",
    '{"get_addons": {"notes": "extra", "option": "Oat Milk", "query":'
    ' "oat milk OR decaf"}}',
    "?!",
    "Anything else?",
  ]


def test_both_dialects_become_the_same_messages():
  dialogs, counts = records.dialog_demonstrations([cases.DIALOG])
  (dialog,) = dialogs
  (row,), _ = records.reward_labelled(
    [cases.rated(cases.CONTEXT, cases.MENU_CALL)], cases.COFFEE
  )
  assert dialog.prompt + dialog.turns == (
    *row.prompt,
    {"role": "assistant", "content": row.response},
  )
  assert dialog.group == row.group == "two lattes please"
  assert dialog.prompt == (cases.GREETING,)
  assert [m["content"] for m in dialog.turns] == [
    "two lattes, please",
    '{"get_menu_items": {"query": "latte"}}',
    '{"get_menu_items": {"items": [{"menu_item_id": "latte", "name":'
    ' "Latte"}]}}',
    '{"add_order_item": {"attributes": [{"attribute_id": "caffeine", "option":'
    ' "Decaf"}, {"attribute_id": "milk-options", "option": "Oat Milk"}],'
    ' "menu_item_id": "latte", "quantity": "1"}}',
    '{"add_order_item": {"order_id": "order-1", "order_item_id": "item-1"}}',
    '{"get_order_details": {"order_id": "order-1"}}',
    '{"get_order_details": {"attributes": [{"attribute_id": "name", "option":'
    ' "four of diamonds"}, {"attribute_id": "order-type", "option": "here"}],'
    ' "items": [{"menu_item_id": "latte", "order_item_id": "item-1",'
    ' "quantity": "2"}], "order_id": "order-1"}}',
    "is it right?",
    "and the menu",
    '{"show_menu": {}}',
  ]
  roles = "user assistant tool assistant tool assistant tool assistant user"
  assert [m["role"] for m in dialog.turns] == [*roles.split(), "assistant"]
  assert counts == {
    "rows": 1,
    "json_mended": 2,
    "dialogs_dropped": 0,
    "request_missing": 1,
    "turns_cut": 1,
    "repeated": 0,
    "greeting_added": 1,
    "id_not_in_context": 0,
    "quantity_moved": 1,
    "menu_left_out": 0,
  }


def _add(menu_item, **more):
  call = {"menu_item_id": menu_item, "quantity": "1", **more}
  return {"role": "agent", "api": {"add_order_item": call}}


def _response(generation, context=cases.CONTEXT):
  (row,), counts = records.reward_labelled(
    [cases.rated(context, generation)], cases.COFFEE
  )
  return row.response, counts["id_not_in_context"]


def test_ids_that_are_not_in_the_context_stay_apart():
  known = '{"add_order_item": {"menu_item_id": "latte", "quantity": "1"}}'
  assert _response(_add("latte-0002")) == (known, 0)
  # The same drink under another id, and one that was never looked up.
  for raw, name in (
    ("latte-0007", "latte-2"),
    ("Latte-0002", "latte-2"),
    ("mocha-0006", "mocha"),
    ("item", "item"),
  ):
    assert _response(_add(raw)) == (known.replace("latte", name), 1), raw
  details = {"role": "agent", "api": {"get_order_details": {"order_id": "x"}}}
  for raw, name in (("c" * 32, "order-2"), (cases.ITEM, "item-1")):
    details["api"]["get_order_details"]["order_id"] = raw
    expected = f'{{"get_order_details": {{"order_id": "{name}"}}}}'
    assert _response(details) == (expected, 1)


def test_ids_of_numbers_only_are_named_after_the_item():
  context = [
    {"role": "user", "text": "tea"},
    {
      "role": "api",
      "response": {
        "get_menu_items": {
          "menu_items": [
            {"menu_item_id": "76923", "name": "Earl  Grey"},
            {"menu_item_id": "31654", "name": "Assam"},
            {"menu_item_id": "5", "name": "assam"},
          ]
        }
      },
    },
  ]
  for raw, name in (
    ("76923", "earl-grey"),
    ("31654", "assam"),
    ("5", "assam-2"),
  ):
    response, unknown = _response(_add(raw), context)
    assert json.loads(response)["add_order_item"]["menu_item_id"] == name
    assert unknown == 0


def test_ids_in_texts_are_renamed_if_they_are_known():
  text = f"No latte-0002 and mocha-0006 in {cases.ORDER}, 2% or 12 oz-size."
  generation = {"role": "agent", "text": text}
  assert _response(generation)[0] == (
    "No latte and mocha-0006 in order-1, 2% or 12 oz-size."
  )


def test_option_values_that_are_not_an_order_type_keep_their_case():
  # Non-Fat Milk, where Non-fat Milk is offered, is a mistake raters mark.
  milk = [{"attribute_id": "milk-options", "option": "Non-Fat Milk"}]
  togo = [{"attribute_id": "order-type", "option": "Togo"}]
  assert "Non-Fat Milk" in _response(_add("latte-0002", attributes=milk))[0]
  assert '"togo"' in _response(_add("latte-0002", attributes=togo))[0]


def test_responses_lose_what_only_one_dialect_has():
  addon = {
    "addon_id": "honey-123",
    "addon_type_id": "sweeteners",
    "addon_type_name": "Sweeteners",
    "modifier_name": "Honey",
    "default": "NO",
    "option": "ADD",
  }
  item = {"order_item_id": cases.ITEM, "quantity": "1", "addons": [addon]}
  responses = [
    {"get_order_details": {"items": [item]}},
    {"finish_order": {"success": True, "order": {}}},
    {"finish_order": {"success": True, "order": {"total_price": "12.34"}}},
    {"show_menu": {"menu_items": ["Latte", "Mocha"]}},
    {"get_addons": "empty"},
    {"add_order_item": {}},
    {"get_addons": {"attributes": "empty", "addons": None}},
  ]
  counts = Counter()
  _, *messages = turns_lib.coffee_messages(
    [{"role": "api", "response": response} for response in responses], counts
  )
  assert [m["content"] for m in messages] == [
    '{"get_order_details": {"items": [{"addons": [{"addon_id": "honey",'
    ' "option": "ADD"}], "order_item_id": "item-1"}]}}',
    '{"finish_order": {"success": true}}',
    '{"finish_order": {"order": {"total_price": "12.34"}, "success": true}}',
    '{"show_menu": {"success": true}}',
    '{"get_addons": "empty"}',
    '{"add_order_item": {}}',
    '{"get_addons": {"addons": null, "attributes": "empty"}}',
  ]
  assert counts["menu_left_out"] == 1

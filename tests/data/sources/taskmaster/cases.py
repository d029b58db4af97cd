"""Rows in the two upstream formats of Taskmaster: dialogs and rated turns."""

import json

from perl_jax.data.sources.taskmaster import turns as turns_lib

GREETING = {
  "role": "assistant",
  "content": turns_lib.COFFEE_GREETING,
}
COFFEE = "taskmaster_coffee"
TICKETS = "taskmaster_ticketing"


def run(name, request, response):
  """The four annotations of one API call, with JSON text as it stands."""
  annotations = [{"name": "api_call", "value": name}]
  if request is not None:
    annotations.append({"name": "request", "value": request})
  annotations.append({"name": "api_response", "value": name})
  annotations.append({"name": "response", "value": response})
  return [{**annotation, "context": "x"} for annotation in annotations]


def dialog(*utterances, name="dlg-1"):
  return {
    "conversation_id": name,
    "utterances": [
      {"index": n, "speaker": speaker, "text": text, "annotations": runs}
      for n, (speaker, text, runs) in enumerate(utterances)
    ],
  }


def rated(context, generation, reward=1.0, name="r-1"):
  return {
    "conversation_id": name,
    "context": json.dumps(context),
    "generation": json.dumps(generation),
    "reward": reward,
  }


# One conversation as upstream writes it in the dialogs ...
DIALOG = dialog(
  (
    "user",
    "Two lattes, please ",
    run(
      "get_menu_items",
      '{"query": "Latte "}',
      '{"menu_items":[{"menu_item_id":""latte-3844"","name":"latte "}]}',
    )
    + run(
      "add_order_item",
      '{"menu_item_id": "latte-3844", "quantity": "1", "attributes":'
      ' [{"attribute_id": "milk-options", "option": "Oat Milk"},'
      ' {"attribute_id": "Caffeine", "option": "Decaf"}]}',
      '{"order_id": "28740","order_item_id":"92049"}',
    )
    + run(
      "get_order_details",
      '{"order_id": "28740"}',
      '{"order_id": "28740", "attributes": [{"attribute_id": "Name",'
      ' "attribute_name": "Name", "option": "Four of\tdiamonds",'
      ' "quantity": "2"}, {"attribute_id": "order-type", "attribute_name":'
      ' "Order Type", "option": "Here"}], "menu_items": [{"order_item_id":'
      ' "92049", "menu_item_id": "latte-3844", "menu_item_name":'
      ' "var_drink"}]}',
    ),
  ),
  ("assistant", "is it right? ", []),
  ("user", "and the menu", run("show_menu", None, '{"success":true}')),
)


# ... and in the context of rated turns.
ORDER, ITEM = "a" * 32, "b" * 32
CONTEXT = [
  {"role": "agent", "text": turns_lib.COFFEE_GREETING},
  {"role": "user", "text": "Two lattes, please"},
  {"role": "agent", "api": {"get_menu_items": {"query": "Latte"}}},
  {
    "role": "api",
    "response": {
      "get_menu_items": {
        "items": [{"menu_item_id": "latte-0002", "name": "Latte"}]
      }
    },
  },
  {
    "role": "agent",
    "api": {
      "add_order_item": {
        "menu_item_id": "latte-0002",
        "quantity": "1",
        "attributes": [
          {"attribute_id": "caffeine", "option": "Decaf"},
          {"attribute_id": "milk-options", "option": "Oat Milk"},
        ],
      }
    },
  },
  {
    "role": "api",
    "response": {"add_order_item": {"order_id": ORDER, "order_item_id": ITEM}},
  },
  {"role": "agent", "api": {"get_order_details": {"order_id": ORDER}}},
  {
    "role": "api",
    "response": {
      "get_order_details": {
        "attributes": [
          {
            "attribute_id": "order-type",
            "attribute_name": "Order Type",
            "option": "here",
          },
          {
            "attribute_id": "name",
            "attribute_name": "Name",
            "option": "four-of-diamonds",
          },
        ],
        "items": [
          {
            "menu_item_id": "latte-0002",
            "menu_item_name": "Latte",
            "order_item_id": ITEM,
            "quantity": 2,
          }
        ],
        "order_id": ORDER,
      }
    },
  },
  {"role": "agent", "text": "is it right?"},
  {"role": "user", "text": "and the menu"},
]
MENU_CALL = {"role": "agent", "api": {"show_menu": {}}}

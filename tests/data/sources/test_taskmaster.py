"""Taskmaster rows: both dialects become the same messages, none is hidden."""

import gzip
import json
import pathlib
import re
from collections import Counter

import pytest

from perl_jax.data.records import Prompt
from perl_jax.data.sources.taskmaster import checks, records
from perl_jax.data.sources.taskmaster import turns as turns_lib
from perl_jax.data.sources.taskmaster import utterances as utterances_lib

_SHARED = pathlib.Path(__file__).parents[4] / "shared" / "data"


_GREETING = {
  "role": "assistant",
  "content": turns_lib.COFFEE_GREETING,
}
_COFFEE = "taskmaster_coffee"
_TICKETS = "taskmaster_ticketing"


def _run(name, request, response):
  """The four annotations of one API call, with JSON text as it stands."""
  annotations = [{"name": "api_call", "value": name}]
  if request is not None:
    annotations.append({"name": "request", "value": request})
  annotations.append({"name": "api_response", "value": name})
  annotations.append({"name": "response", "value": response})
  return [{**annotation, "context": "x"} for annotation in annotations]


def _dialog(*utterances, name="dlg-1"):
  return {
    "conversation_id": name,
    "utterances": [
      {"index": n, "speaker": speaker, "text": text, "annotations": runs}
      for n, (speaker, text, runs) in enumerate(utterances)
    ],
  }


def _rated(context, generation, reward=1.0, name="r-1"):
  return {
    "conversation_id": name,
    "context": json.dumps(context),
    "generation": json.dumps(generation),
    "reward": reward,
  }


# One conversation as upstream writes it in the dialogs ...
_DIALOG = _dialog(
  (
    "user",
    "Two lattes, please ",
    _run(
      "get_menu_items",
      '{"query": "Latte "}',
      '{"menu_items":[{"menu_item_id":""latte-3844"","name":"latte "}]}',
    )
    + _run(
      "add_order_item",
      '{"menu_item_id": "latte-3844", "quantity": "1", "attributes":'
      ' [{"attribute_id": "milk-options", "option": "Oat Milk"},'
      ' {"attribute_id": "Caffeine", "option": "Decaf"}]}',
      '{"order_id": "28740","order_item_id":"92049"}',
    )
    + _run(
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
  ("user", "and the menu", _run("show_menu", None, '{"success":true}')),
)


# ... and in the context of rated turns.
_ORDER, _ITEM = "a" * 32, "b" * 32
_CONTEXT = [
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
    "response": {
      "add_order_item": {"order_id": _ORDER, "order_item_id": _ITEM}
    },
  },
  {"role": "agent", "api": {"get_order_details": {"order_id": _ORDER}}},
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
            "order_item_id": _ITEM,
            "quantity": 2,
          }
        ],
        "order_id": _ORDER,
      }
    },
  },
  {"role": "agent", "text": "is it right?"},
  {"role": "user", "text": "and the menu"},
]
_MENU_CALL = {"role": "agent", "api": {"show_menu": {}}}


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
  dialogs, counts = records.dialog_demonstrations([_DIALOG])
  (dialog,) = dialogs
  (row,), _ = records.reward_labelled([_rated(_CONTEXT, _MENU_CALL)], _COFFEE)
  assert dialog.prompt + dialog.turns == (
    *row.prompt,
    {"role": "assistant", "content": row.response},
  )
  assert dialog.group == row.group == "two lattes please"
  assert dialog.prompt == (_GREETING,)
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


def test_dialogs_give_a_prompt_for_every_agent_turn():
  prompts, _ = records.dialog_prompts([_DIALOG])
  (dialog,), _ = records.dialog_demonstrations([_DIALOG])
  messages = dialog.prompt + dialog.turns
  assert [p.id for p in prompts] == [f"dlg-1#{n}" for n in (2, 4, 6, 8, 10)]
  for prompt in prompts:
    number = int(prompt.id.split("#")[1])
    assert prompt.prompt == messages[:number]
    assert prompt.reference == messages[number]["content"]
    assert prompt.prompt[-1]["role"] in ("user", "tool")


def _add(menu_item, **more):
  call = {"menu_item_id": menu_item, "quantity": "1", **more}
  return {"role": "agent", "api": {"add_order_item": call}}


def _response(generation, context=_CONTEXT):
  (row,), counts = records.reward_labelled(
    [_rated(context, generation)], _COFFEE
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
  for raw, name in (("c" * 32, "order-2"), (_ITEM, "item-1")):
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
  text = f"No latte-0002 and mocha-0006 in {_ORDER}, 2% or 12 oz-size."
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
  item = {"order_item_id": _ITEM, "quantity": "1", "addons": [addon]}
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


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ('{"a": ""x-1""}', {"a": "x-1"}),
    ('{"a":""x-1"", "b": ["", "y"]}', {"a": "x-1", "b": ["", "y"]}),
    ('{"a": "two of clubs""},', None),
    ('{"a": "two of clubs""}', {"a": "two of clubs"}),
    ('{"a": "raw\ttab", "b": ""}', {"a": "raw\ttab", "b": ""}),
  ],
)
def test_broken_json_is_mended_or_refused(text, value):
  counts = Counter()
  if value is None:
    with pytest.raises(json.JSONDecodeError):
      utterances_lib.parse_value(text, counts)
  else:
    assert utterances_lib.parse_value(text, counts) == value
  assert counts["json_mended"] == (value is not None)


def test_dialogs_that_cannot_be_used_are_counted():
  broken = _dialog(("user", "a", _run("show_menu", "{", "{}")), name="b")
  silent = _dialog(("user", "a", []), name="s")
  stray = _dialog(("user", "a", _run("x", "{}", "{}")[2:]), name="t")
  rows = [_DIALOG, broken, silent, stray, _DIALOG]
  dialogs, counts = records.dialog_demonstrations(rows)
  assert [d.id for d in dialogs] == ["dlg-1", "dlg-1"]
  assert counts["dialogs_dropped"] == 3
  assert counts["repeated"] == 1
  assert counts["rows"] == 5


def test_irregular_rated_turns_are_kept_and_counted():
  text = {"role": "agent", "text": "Sorry, no."}
  empty = {"role": "agent", "text": " "}
  as_text = {"role": "agent", "text": '{"name": "x"}'}
  rows = [
    _rated([], text, name="a"),
    _rated(_CONTEXT, text, 1.0, name="b"),
    _rated(_CONTEXT, text, 0.0, name="c"),
    _rated(_CONTEXT, text, 0, name="d"),
    _rated(_CONTEXT, empty, 0.0, name="e"),
    _rated(_CONTEXT, as_text, 0.0, name="f"),
  ]
  labelled, counts = records.reward_labelled(rows, _COFFEE)
  assert [row.id for row in labelled] == list("abcdef")
  assert [row.label for row in labelled] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
  assert labelled[0].prompt == (_GREETING,)
  assert labelled[0].group == "sorry no"
  assert labelled[4].response == ""
  assert counts == {
    "rows": 6,
    "repeated": 2,
    "conflicting": 3,
    "empty_context": 1,
    "empty_response": 1,
    "json_as_text": 1,
    "greeting_added": 1,
    "id_not_in_context": 0,
    "quantity_moved": 0,
    "menu_left_out": 0,
  }
  prompts, _ = records.reward_prompts(rows, _COFFEE)
  assert [p.reference for p in prompts] == ["Sorry, no."] * 2 + [None] * 4
  assert [p.group for p in prompts] == [row.group for row in labelled]


def test_ticketing_keeps_its_words():
  context = [
    {"role": "agent", "text": "Hi."},
    {"role": "user", "text": "Dune?"},
    {"role": "agent", "text": ""},
  ]
  call = {"find_theaters": {"name.movie": "Dune", "location": "_AUTOMATIC"}}
  rows = [_rated(context, {"role": "agent", "api": call}, 0.0)]
  (row,), counts = records.reward_labelled(rows, _TICKETS)
  assert [m["content"] for m in row.prompt] == ["Hi.", "Dune?", ""]
  assert row.response == (
    '{"find_theaters": {"location": "_AUTOMATIC", "name.movie": "Dune"}}'
  )
  assert "greeting_added" not in counts


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"reward": 0.5}, r"Row 1 \(r-1\): the reward is 0.5"),
    ({"context": "[{"}, r"Row 1 \(r-1\): the field 'context' is not JSON"),
    (
      {"context": "{}"},
      r"Row 1 \(r-1\): the field 'context' must be JSON of a",
    ),
    ({"generation": "[]"}, "the field 'generation' must be JSON of a dict"),
    ({"context": '[{"role": "user"}]'}, "upstream format: KeyError: 'text'"),
    ({"context": '[{"role": "x", "text": ""}]'}, "the role 'x' is not"),
    ({"context": "[3]"}, r"Row 1 \(r-1\): a turn is not in the upstream"),
    ({"generation": '{"role": "user", "text": "a"}'}, "a turn of the user"),
  ],
)
def test_malformed_rows_are_named(change, message):
  row = _rated(_CONTEXT, _MENU_CALL)
  for dataset in (_COFFEE, _TICKETS):
    with pytest.raises(ValueError, match=message):
      records.reward_labelled([row, row | change], dataset)


def test_missing_fields_and_unknown_data_sets_are_named():
  row = _rated(_CONTEXT, _MENU_CALL)
  del row["generation"]
  with pytest.raises(ValueError, match="Row 0 has no field 'generation'"):
    records.reward_labelled([row], _COFFEE)
  with pytest.raises(ValueError, match="Row 0 has no field 'utterances'"):
    records.dialog_demonstrations([row])
  with pytest.raises(ValueError, match=r"Row 0 \(d\).*KeyError: 'speaker'"):
    records.dialog_demonstrations(
      [{"conversation_id": "d", "utterances": [{}]}]
    )
  for function in (
    checks.make_checker,
    lambda n: records.reward_prompts([], n),
  ):
    with pytest.raises(ValueError, match="No Taskmaster data set 'tea'"):
      function("tea")


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
def test_judge(reference, response, expected):
  judge = checks.make_checker(_COFFEE)
  names = ("valid_json", "known_api", "exact_match")
  judgements = judge(Prompt("x", "", (), reference), response)
  assert judgements == {
    name: float(value)
    for name, value in zip(names, expected, strict=True)
    if value is not None
  }
  assert all(type(value) is float for value in judgements.values())


def test_exact_match_ignores_the_order_of_attributes():
  judge = checks.make_checker(_COFFEE)
  first = '{"attribute_id": "a", "option": "x"}'
  second = '{"option": "y", "attribute_id": "b"}'
  call = '{"add_order_item": {"attributes": [%s, %s], "menu_item_id": "m"}}'
  prompt = Prompt("x", "", (), call % (first, second))
  assert judge(prompt, call % (second, first))["exact_match"] == 1.0
  assert judge(prompt, call % (second, second))["exact_match"] == 0.0


def _shared_rows(folder):
  if not _SHARED.exists():
    pytest.skip("there is no ../shared/data")
  rows = []
  for path in sorted((_SHARED / folder).glob("*.json.gz")):
    with gzip.open(path, "rt", encoding="utf-8") as file:
      rows += json.load(file)
  return rows


@pytest.mark.slow
@pytest.mark.shared_data
def test_upstream_coffee():
  prompts, counts = records.dialog_prompts(
    _shared_rows("taskmaster_coffee/data")
  )
  assert len(prompts) == 21112
  calls = [p.reference for p in prompts if p.reference.startswith("{")]
  assert len(calls) == 14563
  assert (counts["rows"], counts["dialogs_dropped"]) == (3510, 0)
  assert (counts["json_mended"], counts["request_missing"]) == (62, 74)
  assert (counts["turns_cut"], counts["quantity_moved"]) == (70, 97)
  assert all(p.prompt[-1]["role"] in ("user", "tool") for p in prompts)

  rows = _shared_rows("taskmaster_coffee/reward")
  labelled, counts = records.reward_labelled(rows, _COFFEE)
  assert len(labelled) == 2453
  assert (counts["repeated"], counts["conflicting"]) == (176, 0)
  assert (counts["empty_context"], counts["greeting_added"]) == (6, 10)
  assert len({row.group for row in labelled}) == 634 + 6
  rated = [json.loads(row["generation"]).get("api") for row in rows]
  assert sum(call is not None for call in rated) == 1842

  # No raw id is left in a call or a response.
  contents = [m["content"] for row in labelled for m in row.prompt]
  contents += [row.response for row in labelled] + calls
  contents += [m["content"] for p in prompts for m in p.prompt[-1:]]
  raw = re.compile(r'(item|order|addon)_id": "[^"]*\d{3}|[0-9a-f]{32}')
  assert raw.search(json.dumps({"menu_item_id": "latte-0002"}))
  assert [c for c in contents if c.startswith("{") and raw.search(c)] == []

  names = {next(iter(json.loads(call))) for call in calls}
  names |= {next(iter(call)) for call in rated if call is not None}
  for row in rows:
    for turn in json.loads(row["context"]):
      names |= set(turn.get("api", {}))
  assert names == checks.APIS[_COFFEE] | checks.INVENTED_APIS
  judge = checks.make_checker(_COFFEE)
  for prompt in prompts:
    assert set(judge(prompt, prompt.reference).values()) == {1.0}


@pytest.mark.shared_data
def test_upstream_ticketing():
  rows = _shared_rows("taskmaster_ticketing/reward")
  labelled, counts = records.reward_labelled(rows, _TICKETS)
  assert len(labelled) == 2787
  assert sum(row.label for row in labelled) == 424
  assert counts == {
    "rows": 2787,
    "repeated": 34,
    "conflicting": 10,
    "empty_context": 0,
    "empty_response": 4,
    "json_as_text": 18,
  }
  assert len({row.group for row in labelled}) == 196
  names = set()
  for row in rows:
    turns = [*json.loads(row["context"]), json.loads(row["generation"])]
    names |= {name for turn in turns for name in turn.get("api", {})}
  assert names == checks.APIS[_TICKETS]

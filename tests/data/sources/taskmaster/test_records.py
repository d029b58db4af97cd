"""Records of Taskmaster: every row is used or counted, bad ones are named."""

import json
import re

import pytest

from perl_jax.data.sources.taskmaster import checks, records
from tests.data import shared_files
from tests.data.sources.taskmaster import cases


def test_dialogs_give_a_prompt_for_every_agent_turn():
  prompts, _ = records.dialog_prompts([cases.DIALOG])
  (dialog,), _ = records.dialog_demonstrations([cases.DIALOG])
  messages = dialog.prompt + dialog.turns
  assert [p.id for p in prompts] == [f"dlg-1#{n}" for n in (2, 4, 6, 8, 10)]
  for prompt in prompts:
    number = int(prompt.id.split("#")[1])
    assert prompt.prompt == messages[:number]
    assert prompt.reference == messages[number]["content"]
    assert prompt.prompt[-1]["role"] in ("user", "tool")


def test_dialogs_that_cannot_be_used_are_counted():
  broken = cases.dialog(
    ("user", "a", cases.run("show_menu", "{", "{}")), name="b"
  )
  silent = cases.dialog(("user", "a", []), name="s")
  stray = cases.dialog(("user", "a", cases.run("x", "{}", "{}")[2:]), name="t")
  rows = [cases.DIALOG, broken, silent, stray, cases.DIALOG]
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
    cases.rated([], text, name="a"),
    cases.rated(cases.CONTEXT, text, 1.0, name="b"),
    cases.rated(cases.CONTEXT, text, 0.0, name="c"),
    cases.rated(cases.CONTEXT, text, 0, name="d"),
    cases.rated(cases.CONTEXT, empty, 0.0, name="e"),
    cases.rated(cases.CONTEXT, as_text, 0.0, name="f"),
  ]
  labelled, counts = records.reward_labelled(rows, cases.COFFEE)
  assert [row.id for row in labelled] == list("abcdef")
  assert [row.label for row in labelled] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
  assert labelled[0].prompt == (cases.GREETING,)
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
  prompts, _ = records.reward_prompts(rows, cases.COFFEE)
  assert [p.reference for p in prompts] == ["Sorry, no."] * 2 + [None] * 4
  assert [p.group for p in prompts] == [row.group for row in labelled]


def test_ticketing_keeps_its_words():
  context = [
    {"role": "agent", "text": "Hi."},
    {"role": "user", "text": "Dune?"},
    {"role": "agent", "text": ""},
  ]
  call = {"find_theaters": {"name.movie": "Dune", "location": "_AUTOMATIC"}}
  rows = [cases.rated(context, {"role": "agent", "api": call}, 0.0)]
  (row,), counts = records.reward_labelled(rows, cases.TICKETS)
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
  row = cases.rated(cases.CONTEXT, cases.MENU_CALL)
  for dataset in (cases.COFFEE, cases.TICKETS):
    with pytest.raises(ValueError, match=message):
      records.reward_labelled([row, row | change], dataset)


def test_missing_fields_and_unknown_data_sets_are_named():
  row = cases.rated(cases.CONTEXT, cases.MENU_CALL)
  del row["generation"]
  with pytest.raises(ValueError, match="Row 0 has no field 'generation'"):
    records.reward_labelled([row], cases.COFFEE)
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


@pytest.mark.slow
@pytest.mark.shared_data
def test_upstream_coffee():
  prompts, counts = records.dialog_prompts(
    shared_files.rows("taskmaster_coffee/data")
  )
  assert len(prompts) == 21112
  calls = [p.reference for p in prompts if p.reference.startswith("{")]
  assert len(calls) == 14563
  assert (counts["rows"], counts["dialogs_dropped"]) == (3510, 0)
  assert (counts["json_mended"], counts["request_missing"]) == (62, 74)
  assert (counts["turns_cut"], counts["quantity_moved"]) == (70, 97)
  assert all(p.prompt[-1]["role"] in ("user", "tool") for p in prompts)

  rows = shared_files.rows("taskmaster_coffee/reward")
  labelled, counts = records.reward_labelled(rows, cases.COFFEE)
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
  assert names == checks.APIS[cases.COFFEE] | {
    "show_hidden_menu",
    "show_order_screen",
  }
  check = checks.make_checker(cases.COFFEE)
  for prompt in prompts:
    assert set(check(prompt, prompt.reference).values()) == {1.0}


@pytest.mark.shared_data
def test_upstream_ticketing():
  rows = shared_files.rows("taskmaster_ticketing/reward")
  labelled, counts = records.reward_labelled(rows, cases.TICKETS)
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
  assert names == checks.APIS[cases.TICKETS]

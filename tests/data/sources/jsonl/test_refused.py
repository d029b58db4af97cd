"""Keys under near names: honoured, refused by name, or left out."""

import pytest

from perl_jax.data.sources.jsonl import files, messages, refused
from tests.data.sources.jsonl import cases
from tests.data.text.messages import assistant, system, user

ROW = {"prompt": "Hi", "response": "Salut"}
TALK = {"messages": [user("Hi"), assistant("Salut")]}


@pytest.mark.parametrize(
  ("key", "plain"),
  [
    ("System Prompt", "system_prompt"),
    ("SYSTEM", "system"),
    ("system-prompt", "system_prompt"),
    ("systemPrompt", "system_prompt"),
    (" train_onTurn ", "train_on_turn"),
  ],
)
def test_plain_names(key, plain):
  assert refused.plain_name(key) == plain


@pytest.mark.parametrize(
  ("key", "value", "masked"),
  [
    ("loss_scale", 0, True),
    ("loss_scale", 0.0, True),
    ("loss_weight", 0, True),
    ("lossWeight", 0, True),
    ("train_on_turn", False, True),
    ("train_on_turn", True, False),
    ("weight", "0", True),
    ("weight", "1", False),
    ("train", " False ", True),
    ("train", "true", False),
  ],
)
def test_a_mask_under_another_name_is_honoured(key, value, masked):
  talk = [user("q"), assistant("a") | {key: value}]
  (_, answer), ignored = messages.read(talk, "messages", "a.jsonl:1")
  assert answer == assistant("a") | ({"weight": 0} if masked else {})
  assert ignored == set()


@pytest.mark.parametrize("value", [0.5, "half", 2, [0]])
def test_a_weight_that_is_neither_makes_the_row_unusable(value):
  talk = [user("q"), assistant("a") | {"loss_scale": value}]
  with pytest.raises(
    messages.UnusableError, match=r"'messages\[1\]\.loss_scale': must be 0 or 1"
  ):
    messages.read(talk, "messages", "a.jsonl:1")


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("compute_loss", False),
    ("ignore", "true"),
    ("is_masked", True),
    ("trainThis", 0),
    ("loss_factor", 0.5),
  ],
)
def test_what_may_mask_a_message_is_refused(key, value):
  talk = [user("q"), assistant("a") | {key: value}]
  with pytest.raises(
    ValueError, match=rf"'messages\[1\]\.{key}': may say .*data\.ignore"
  ) as found:
    messages.read(talk, "messages", "a.jsonl:1")
  assert not isinstance(found.value, messages.UnusableError)
  read, ignored = messages.read(talk, "messages", "a.jsonl:1", {key})
  assert read == (user("q"), assistant("a")) and ignored == {key}


@pytest.mark.parametrize(
  ("key", "value"),
  [("glossary", 0), ("constraint", 1), ("training_source", "web"),
   ("ignored_by", None)],
)  # fmt: skip
def test_what_masks_nothing_is_left_out(key, value):
  talk = [user("q"), assistant("a") | {key: value}]
  read, _ = messages.read(talk, "messages", "a.jsonl:1")
  assert read == (user("q"), assistant("a"))


@pytest.mark.parametrize("kind", ["demonstrations", "prompts"])
@pytest.mark.parametrize("row", [ROW, TALK], ids=["texts", "messages"])
@pytest.mark.parametrize(
  "column",
  ["System Prompt", "SYSTEM", "system-message", "system_instruction", "sys"],
)
def test_a_system_column_in_other_letters_is_honoured(write, column, row, kind):
  path = write({**row, column: "Be brief."})
  found = files.load(path, kind, validation_path=path)
  assert found.train[0].prompt == (system("Be brief."), user("Hi"))
  assert found.notes == ()


def test_a_second_system_column_is_refused(write):
  path = write({**ROW, "system": "Be brief.", "sys": "Be long."})
  with pytest.raises(ValueError, match=r"'sys'.* Is 'system' meant"):
    cases.read(path, "demonstrations")
  path = write({**ROW, "system": None, "System": "Be brief.", "sys": 3})
  (row,) = cases.read(path, "demonstrations")
  assert row.prompt == (system("Be brief."), user("Hi"))


@pytest.mark.parametrize(
  ("column", "value", "kinds"),
  [
    ("Context", "It was Bob.", 2),
    ("passage", "It was Bob.", 1),
    ("image_path", "a.png", 2),
    ("img", {"bytes": "..."}, 2),
    ("attachments", ["a.pdf"], 2),
    ("audio_path", "a.wav", 2),
    ("pixel_values", [[0.5]], 2),
    ("Images", ["a.png"], 2),
  ],
)
def test_what_is_asked_under_other_names_is_refused(
  write, column, value, kinds
):
  path = write({**ROW, column: value})
  why = rf"'{column}': changes what the row means and cannot .*data\.ignore"
  for kind in ("demonstrations", "prompts")[:kinds]:
    with pytest.raises(ValueError, match=why):
      cases.read(path, kind)
  found = files.load(
    path, "demonstrations", validation_path=path, ignore=(column,)
  )
  assert found.train[0].prompt == (user("Hi"),)


@pytest.mark.parametrize(
  ("column", "value"),
  [
    ("story", "Once."),
    ("height", "1 m"),
    ("height", 3),
    ("is_refusal", True),
    ("ranking", [1, 2]),
    ("n_images", 2),
    ("system_id", "a7"),
    ("toolset", "web"),
    ("sys", 3),
    ("image_path", None),
    ("images", [None]),
    ("image_urls", [None, float("nan")]),
  ],
)
def test_harmless_columns_are_left_out(write, column, value):
  (row,) = cases.read(write({**ROW, column: value}), "demonstrations")
  assert row.prompt == (user("Hi"),)


@pytest.mark.parametrize(
  ("column", "meant"),
  [
    ("tool", "tools"),
    ("toosl", "tools"),
    ("Tools", "tools"),
    ("wieght", "weight"),
    ("hsitory", "history"),
    ("systm_prompt", "system_prompt"),
    ("chat_template_kwarg", "chat_template_kwargs"),
  ],
)
def test_a_slip_is_refused(write, column, meant):
  with pytest.raises(ValueError, match=rf"'{column}'.* Is '{meant}' meant"):
    cases.read(write({**ROW, column: "x"}), "demonstrations")

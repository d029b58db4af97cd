"""Optional fields whose text stands for nothing, as public files have them."""

import pytest

from perl_jax.data.sources.jsonl import files
from tests.data.sources.jsonl import cases
from tests.data.text.messages import system, user

# The first four are those that the cleaned Alpaca says the first release has.
NOTHING = (
  *("<no input>", "No input", "noinput", "<noinput>"),
  *("nan", "NaN", "None", "null", "N/A", " nan\n"),
)
SAID = ("Na", "Nan's bread", "no input is needed", "0", "none of these")


def rows(text):
  return [
    {"instruction": f"do {i}", "input": text, "output": f"o{i}"}
    for i in range(5)
  ]


@pytest.mark.parametrize("text", NOTHING)
@pytest.mark.parametrize("kind", ["demonstrations", "prompts"])
def test_an_input_that_stands_for_none_is_left_out(write, text, kind):
  path = write(*rows(text))
  found = files.load(path, kind, validation_path=path)
  assert [row.prompt for row in found.train] == [
    (user(f"do {i}"),) for i in range(5)
  ]
  assert any("5 rows have an input or a system" in n for n in found.notes)


@pytest.mark.parametrize("text", SAID)
def test_an_input_that_says_something_is_read(write, text):
  path = write(*rows(text))
  found = files.load(path, "demonstrations", validation_path=path)
  assert all(row.prompt[0]["content"].endswith(text) for row in found.train)
  assert not found.notes


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_message_that_stands_for_none(write, name):
  row = {"prompt": "q", "chosen": "a", "rejected": "b"}
  path = write(*[row | {name: text} for text in ("None", "nan", "be kind")])
  prompts = [row.prompt for row in cases.read(path, "preferences")]
  assert prompts == [(user("q"),)] * 2 + [(system("be kind"), user("q"))]


def test_an_input_alone_is_a_text(write):
  """Where there is no instruction that it would stand beside."""
  path = write(*[{"prompt": f"none {i}", "response": "None"} for i in range(3)])
  found = files.load(path, "demonstrations", validation_path=path)
  assert [row.turns[0]["content"] for row in found.train] == ["None"] * 3
  assert not found.notes


def test_missing_values_that_pandas_made_texts_of(write):
  """Only what is optional can be left out; of the others the log says so."""
  pandas = pytest.importorskip("pandas", reason="makes such texts")
  table = pandas.DataFrame(
    [
      {"instruction": "a", "input": None, "output": "o"},
      {"instruction": "b", "input": float("nan"), "output": None},
      {"instruction": "c", "input": "in", "output": "o"},
    ]
  )
  texts = table.astype(object).where(table.notna(), float("nan")).map(str)
  path = write(*texts.to_dict("records"))
  found = files.load(path, "demonstrations", validation_path=path)
  assert [row.prompt[0]["content"] for row in found.train] == [
    "a", "b", "c\n\nin"
  ]  # fmt: skip
  assert [row.turns[0]["content"] for row in found.train] == ["o", "nan", "o"]
  assert any("1 rows have a prompt or a reply that is 'nan'" in n
             for n in found.notes)  # fmt: skip

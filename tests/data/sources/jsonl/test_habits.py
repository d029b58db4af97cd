"""What nearly all rows of a file do, which no row says by itself."""

import pytest

from perl_jax.data.sources.jsonl import files, whole
from tests.data.sources.jsonl import cases
from tests.data.text.messages import user


def replies(path, kind="preferences"):
  found = files.load(path, kind, validation_path=path)
  if kind == "demonstrations":
    return [row.turns[-1]["content"] for row in found.train], found.notes
  said = [(row.chosen, row.rejected) for row in found.train]
  return [text for pair in said for text in pair], found.notes


REPEATED = "have replies that begin with the prompt, which is left out of them."


@pytest.mark.parametrize(
  "head", ["Q: {n}?\nA:", "\n\nHuman: {n}\n\nAssistant:"]
)
@pytest.mark.parametrize("kind", ["preferences", "demonstrations"])
def test_replies_that_repeat_the_prompt(write, head, kind):
  names = {"preferences": ("chosen", "rejected"), "demonstrations": ("output",)}
  rows = [
    {"prompt" if kind == "preferences" else "instruction": head.format(n=n)}
    | {name: f"{head.format(n=n)} {name}{n}" for name in names[kind]}
    for n in range(20)
  ]
  rows[7] |= dict.fromkeys(names[kind], "else") | {names[kind][0]: "no"}
  path = write(*rows)
  said, notes = replies(path, kind)
  expected = [f"{name}{n}" for n in range(20) for name in names[kind]]
  at = 7 * len(names[kind])
  expected[at : at + len(names[kind])] = ["no", "else"][: len(names[kind])]
  assert said == expected
  if kind == "demonstrations" or not head.startswith("\n"):
    assert notes == (f"{path}: 19 rows {REPEATED}",)


def test_a_reply_that_begins_as_its_prompt_by_chance(write):
  rows = [
    {
      "prompt": f"Hello {n}",
      "response": f"Hello {n}, friend" if n % 2 else "Hi",
    }
    for n in range(20)
  ]
  said, notes = replies(write(*rows), "demonstrations")
  assert said == [row["response"] for row in rows] and notes == ()
  few = [{"prompt": "Hi", "response": "Hi there"}] * 2
  assert replies(write(*few), "demonstrations")[0] == ["Hi there"] * 2
  # What is the prompt and nothing else stays, too.
  same = [{"prompt": "Hi", "response": "Hi"}] * 20
  assert replies(write(*same), "demonstrations")[0] == ["Hi"] * 20


@pytest.mark.parametrize("text", ["['{}']", ' ["{}"]\n'])
def test_replies_that_are_lists_of_one_text(write, text):
  rows = [
    {
      "prompt": f"q{n}",
      "chosen": text.format("a"),
      "rejected": text.format("b"),
    }
    for n in range(20)
  ]
  path = write(*rows)
  said, notes = replies(path)
  assert said == ["a", "b"] * 20
  assert notes[0].startswith(f"{path}: 20 rows have replies that are the text")
  scored = whole.load(path, "candidates")
  assert scored.validation[0].responses == ("a", "b")
  assert scored.notes == notes
  # Some answers are lists, and that is what they say.
  rows += [
    {"prompt": f"r{n}", "chosen": "x", "rejected": "y"} for n in range(9)
  ]
  assert replies(write(*rows))[0][:2] == [text.format("a"), text.format("b")]


def test_a_prompt_of_rl_is_not_changed(write):
  rows = [{"prompt": f"q{n}", "response": f"q{n} a"} for n in range(20)]
  found = cases.read(write(*rows), "prompts")
  assert found[0].prompt == (user("q0"),) and found[0].reference == "a"

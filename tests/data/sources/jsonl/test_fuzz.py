"""Rows in every documented shape, damaged: read as they say, or refused.

A refusal names the file; what was read has the types that the records promise.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perl_jax.data import records
from perl_jax.data.sources.jsonl import files, forms
from tests import fuzzing
from tests.data.sources.jsonl import test_shapes

USER = {"role": "user", "content": "a tea"}
ANSWER = {"role": "assistant", "content": "here"}
CALL = {"function": {"name": "brew", "arguments": {"size": 1}}}
TOOL = {
  "type": "function",
  "function": {"name": "brew", "parameters": {"type": "object"}},
}
# Row, kinds and what the user states, by name: those of docs/shapes.md and two
# of docs/your-data.md.
SHAPES = {
  name: (row, kinds, stated)
  for name, (row, _, kinds, stated) in test_shapes.SHAPES.items()
}
SHAPES["tools"] = (
  {
    "messages": [
      USER,
      {"role": "assistant", "tool_calls": [CALL]},
      {"role": "tool", "content": "1"},
      ANSWER,
    ],
    "tools": [TOOL],
  },
  ["demonstrations", "prompts"],
  {},
)
SHAPES["weights"] = (
  {"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER]},
  ["demonstrations", "prompts"],
  {},
)


def mutated(value):
  """The value with something within it gone, added or of another kind."""
  options = [fuzzing.JSON, st.just(value)]
  if isinstance(value, dict) and value:
    key = st.sampled_from(sorted(value))
    options += [
      fuzzing.changed(value),
      key.flatmap(lambda k: mutated(value[k]).map(lambda v: value | {k: v})),
      key.map(lambda k: {n: v for n, v in value.items() if n != k}),
    ]
  if isinstance(value, list) and value:
    place = st.integers(0, len(value) - 1)
    options += [
      place.flatmap(
        lambda i: mutated(value[i]).map(
          lambda v: [*value[:i], v, *value[i + 1 :]]
        )
      ),
      place.map(lambda i: value[:i] + value[i + 1 :]),
      st.just([*value, *value]),
      st.just(value[::-1]),
    ]
  return st.one_of(options)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """A file with drawn rows, and whole ones to hold out for each shape."""
  root = tmp_path_factory.mktemp("fuzz")
  held_out = {}
  for number, (name, (row, _, _)) in enumerate(SHAPES.items()):
    held_out[name] = root / f"held_out_{number}.jsonl"
    held_out[name].write_text(json.dumps(row) + "\n")
  return root / "drawn.jsonl", held_out


def use(path, kind, held_out, stated):
  """Loads the rows, and looks at all that the batches of the kind read."""
  loaded = files.load(
    str(path),
    kind,
    validation_path=str(held_out),
    reading=forms.Reading(**stated),
  )
  for row in loaded.train:
    assert isinstance(row.id, str) and isinstance(row.group, str)
    if isinstance(row, records.Text):
      assert row.text.strip()
      continue
    for message in row.prompt:
      assert isinstance(message["role"], str)
      assert isinstance(message.get("content") or "", str)
    if isinstance(row, records.Labelled):
      assert row.label in (0, 1) and isinstance(row.response, str)
    if isinstance(row, records.Preference):
      assert isinstance(row.chosen, str) and isinstance(row.rejected, str)
  return loaded


@pytest.mark.slow
@fuzzing.drawn()
@given(st.data(), st.sampled_from(sorted(SHAPES)))
def test_rows(places, data, name):
  path, held_out = places
  row, kinds, stated = SHAPES[name]
  kind = data.draw(st.sampled_from(kinds))
  rows = data.draw(st.lists(mutated(row), min_size=1, max_size=3))
  whole = data.draw(st.booleans())
  rows = rows + [row] * 3 if whole else rows
  text = "".join(json.dumps(r) + "\n" for r in rows)
  path.write_text(text, encoding="utf-8")
  with fuzzing.used_or_refused(path):
    use(path, kind, held_out[name], stated)


@pytest.mark.slow
@fuzzing.drawn()
@given(st.data(), st.sampled_from(sorted(SHAPES)), st.booleans())
def test_bytes_of_rows(places, data, name, as_list):
  path, held_out = places
  row, kinds, stated = SHAPES[name]
  kind = data.draw(st.sampled_from(kinds))
  rows = [row] * 4
  text = (
    json.dumps(rows, indent=1)
    if as_list
    else ("".join(json.dumps(r) + "\n" for r in rows))
  )
  path.write_bytes(data.draw(fuzzing.damaged(text.encode())))
  with fuzzing.used_or_refused(path):
    use(path, kind, held_out[name], stated)


@fuzzing.drawn()
@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_a_key_that_stands_twice(places, name, data):
  """At any depth of a row, whatever its second value is."""
  path, held_out = places
  row, (kind, *_), stated = SHAPES[name]
  text = json.dumps(row)
  # A brace before a backslash is in the text of a conversation.
  starts = [
    i for i, c in enumerate(text) if c == "{" and text[i + 1 : i + 2] != "\\"
  ]
  at = data.draw(st.sampled_from(starts)) + 1
  key = json.loads(text[at : text.index(":", at)])
  twice = f"{json.dumps(key)}: {json.dumps(data.draw(fuzzing.JSON))}, "
  path.write_text(f"{json.dumps(row)}\n{text[:at]}{twice}{text[at:]}\n")
  with pytest.raises(ValueError) as caught:
    use(path, kind, held_out[name], stated)
  assert f"{path}:2: the key {key!r} stands twice" in str(caught.value)

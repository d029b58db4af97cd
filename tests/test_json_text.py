"""JSON that people write: what stands twice, and where it is wrong."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perl_jax import json_text

# Of a comma too many Python 3.13 gives the column, and 3.12 the next one.
AFTER_COMMA = int(sys.version_info < (3, 13))
VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=12,
)


@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_what_python_writes_is_read(value, indent, ascii_):
  text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
  found = json_text.parse(text)
  assert json.dumps(found) == json.dumps(json.loads(text))


@given(
  st.lists(st.tuples(st.text(max_size=3), VALUES), min_size=1, max_size=5),
  st.integers(0, 4),
  st.lists(st.sampled_from("[{"), max_size=3),
)
def test_a_key_twice_is_named_with_its_line(pairs, which, around):
  """In objects within lists and objects, whatever stands beside it."""
  pairs = list(dict(pairs).items())
  again = which % len(pairs)
  lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in pairs]
  lines.append(f"{json.dumps(pairs[again][0])}:\n\n null")
  text = "{" + ",\n".join(lines) + "}"
  line = len(pairs) + 1
  for open_ in around:
    text = f"[1, \n{text}]" if open_ == "[" else f'{{"a":\n{text}}}'
    line += 1
  with pytest.raises(json_text.Fault) as caught:
    json_text.parse(text)
  key = pairs[again][0]
  assert f"the key {key!r} stands twice" in caught.value.what
  assert caught.value.line == line


@pytest.mark.parametrize(
  "text, line, what",
  [
    (b'{"a": 1,\n"a": 2}', 2, "the key 'a' stands twice"),
    (b'{"a": 1, "\\u0061": 2}', 1, "the key 'a' stands twice"),
    (b'{"a": "a:{,", "b": [{"c": 1}, {"c": 1, "c": 2}]}', 1, "the key 'c'"),
    (
      b'\xef\xbb\xbf{"a": 1,}',
      1,
      f"not valid JSON at column {AFTER_COMMA + 8}",
    ),
    (b'{"a":\n1', 2, "not valid JSON at column 2"),
    (b"", 1, "not valid JSON"),
    (b'{"a":\n"\xff"}', 2, "not UTF-8 text"),
    (b"[" * 10**6, None, "not usable JSON"),
    (b"1" * 10**5, None, "not usable JSON"),
  ],
)
def test_faults(tmp_path, text, line, what):
  with pytest.raises(json_text.Fault) as caught:
    json_text.parse(text)
  assert caught.value.line == line and what in caught.value.what
  path = tmp_path / "x.json"
  path.write_bytes(text)
  with pytest.raises(ValueError) as caught:
    json_text.read_object(path, "Mend it.")
  where = path if line is None else f"{path}:{line}"
  assert str(caught.value).startswith(f"{where}: {what}")
  assert str(caught.value).endswith(". Mend it.")


def test_a_file_without_an_object(tmp_path):
  path = tmp_path / "x.json"
  path.write_text("[]")
  with pytest.raises(ValueError, match=r"x\.json: is list, not a JSON object"):
    json_text.read_object(path)
  path.write_bytes(b'\xef\xbb\xbf{"a": NaN}')
  assert list(json_text.read_object(path)) == ["a"]


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"a": 1, "a": 2}'])
def test_a_first_look_takes_what_is_damaged_for_nothing(tmp_path, text):
  path = tmp_path / "x.json"
  assert json_text.object_or_none(path) is None
  path.write_text(text)
  assert json_text.object_or_none(path) is None
  path.write_text('{"a": [1]}')
  assert json_text.object_or_none(path) == {"a": [1]}

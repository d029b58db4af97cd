"""JSON text in the annotations of a dialog, some of it malformed upstream."""

import json
from collections import Counter

import pytest

from perl_jax.data.sources.taskmaster import utterances


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
def test_broken_json_is_repaired_or_refused(text, value):
  counts = Counter()
  if value is None:
    with pytest.raises(json.JSONDecodeError):
      utterances.parse_value(text, counts)
  else:
    assert utterances.parse_value(text, counts) == value
  assert counts["json_mended"] == (value is not None)

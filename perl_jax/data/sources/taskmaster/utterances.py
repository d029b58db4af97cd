"""Unrolls the annotated utterances of Taskmaster dialogs into turns.

In a dialog the API calls are annotations of what the user said. Here they
become turns of their own, in the form that rated turns have from upstream.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# `""mocha-5427""`: after the start of a value, or before the end of one.
_DOUBLED_OPEN = re.compile(r'([:,\[{]\s*)""(?=[^\s,\]}:])')
_DOUBLED_CLOSE = re.compile(r'(?<=[^\s:,\[{])""(?=\s*[,\]}])')


def parse_value(text: str, counts: Counter) -> Any:
  """Parses the JSON text of an annotation, mending doubled quotes and tabs.

  Raises:
    json.JSONDecodeError: It is not valid JSON even then.
  """
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    mended = _DOUBLED_OPEN.sub(r'\1"', text)
    mended = _DOUBLED_CLOSE.sub('"', mended)
    # Not strict: a raw tab in a string is taken as it is, and folded later.
    value = json.loads(mended, strict=False)
    counts["json_mended"] += 1
    return value


def dialog_turns(
  utterances: Iterable[Mapping[str, Any]], counts: Counter
) -> list[dict[str, Any]]:
  """Unrolls the utterances of a dialog into turns like those of a context.

  The API calls annotated on a user utterance happen after its text, each
  followed by its response; a call without a request takes no arguments.

  Raises:
    json.JSONDecodeError: A request or response cannot be mended.
    ValueError: An annotation has an unknown name, or comes out of order.
  """
  turns = []
  for utterance in utterances:
    role = "user" if utterance["speaker"] == "user" else "agent"
    turns.append({"role": role, "text": utterance["text"]})
    requested = True
    for annotation in utterance["annotations"]:
      kind, value = annotation["name"], annotation["value"]
      last = turns[-1]
      if kind == "api_call":
        turns.append({"role": "agent", "api": {value: {}}})
        requested = False
      elif kind == "request" and "api" in last:
        last["api"] = dict.fromkeys(last["api"], parse_value(value, counts))
        requested = True
      elif kind == "api_response" and "api" in last:
        counts["request_missing"] += not requested
        turns.append({"role": "api", "response": {value: {}}})
      elif kind == "response" and "response" in last:
        last["response"] = dict.fromkeys(
          last["response"], parse_value(value, counts)
        )
      else:
        raise ValueError(f"the annotation {kind!r} is not expected here")
  return turns

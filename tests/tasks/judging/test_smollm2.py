"""A real model behind a real server judges: SmolLM2 on llama.cpp."""

import json
import math

import pytest

pytest.importorskip("xllamacpp", reason="needs llama.cpp, package xllamacpp")

from perl_jax.endpoints import Answer
from perl_jax.tasks.judging import chat
from tests.interop.gguf.client import serving
from tests.tasks.judging import test_chat, toys

pytestmark = pytest.mark.slow
GRAMMAR = 'root ::= "A" | "B" | "tie"'
PAIRS = (
  ("Paris.", "I do not know, I have never been to a place."),
  ("zzz zzz zzz", "The capital of France is Paris."),
)


class Address:
  """What `test_chat.judge_of` needs of a server."""

  def __init__(self, served):
    self.url = f"{served.address}/v1"


def test_smollm2_judges(smollm2):
  pairs = [
    pair._replace(row=toys.row(i, "What is the capital of France?"))
    for i, pair in enumerate(toys.pairs(*PAIRS))
  ]
  with serving(smollm2, context=1024) as served:
    free, ruled = {}, {}
    judge = test_chat.judge_of(
      Address(served), max_tokens=24, parallel=2, kept=free
    )
    said = judge(pairs)
    options = json.dumps({"grammar": GRAMMAR})
    strict = test_chat.judge_of(
      Address(served), max_tokens=8, options=options, kept=ruled
    )
    forced = strict(pairs)
    again = test_chat.judge_of(
      Address(served), max_tokens=8, options=options, known=ruled
    )
    assert again(pairs) == forced
  # Whatever it says is a verdict in its last line, or counted as none.
  assert len(free) == len(ruled) == 4
  for opinion in (opinion for both in said for opinion in both):
    assert opinion.reason
    ended = "length" if opinion.fault == "cut" else "stop"
    verdict, fault = chat.read_verdict(Answer(opinion.reason, ended))
    assert fault == opinion.fault and math.isnan(verdict) == bool(fault)
  for first, last in forced:
    assert first.reason in ("A", "B", "tie") and not first.fault
    assert first.verdict == {"A": 1, "B": -1, "tie": 0}[first.reason]
    assert last.verdict == {"A": -1, "B": 1, "tie": 0}[last.reason]

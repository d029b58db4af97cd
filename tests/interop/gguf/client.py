"""llama.cpp's own server for a test, and what it says of given tokens."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests

SERVE = Path(__file__).with_name("serve.py")
TIMEOUT = 120  # seconds; a request takes far less than one


class Client:
  """Requests to a server."""

  def __init__(self, address: str) -> None:
    self.address = address

  def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request, which must succeed."""
    answer = requests.post(f"{self.address}/{path}", json=body, timeout=TIMEOUT)
    assert answer.ok, answer.text
    return answer.json()

  def greedy(
    self,
    prompt: Sequence[int],
    count: int,
    *,
    probs: int = 0,
    top: int | None = None,
    loras: Mapping[int, float] | None = None,
  ) -> tuple[list[int], np.ndarray]:
    """(greedy tokens, log-probs `[count, probs]` where they were asked for).

    No token ends the response; the log-probs are of the model all the same.

    Args:
      prompt: Token ids.
      count: Number of tokens.
      probs: Size of the vocabulary, or 0 for no log-probs.
      top: Number of log-probs of each token, the largest first; the others are
        NaN. None is all.
      loras: Factor on each adapter, by its number; None is 1 for all.
    """
    body = {
      "prompt": list(map(int, prompt)),
      "n_predict": count,
      "temperature": 0.0,
      "cache_prompt": False,
      "ignore_eos": True,
      "n_probs": probs if top is None else top,
      "return_tokens": True,
    }
    if loras is not None:
      body["lora"] = [{"id": n, "scale": s} for n, s in loras.items()]
    found = self.post("completion", body)
    rows = np.full((count, probs), np.nan)
    if probs:
      steps = found["completion_probabilities"]
      assert [step["id"] for step in steps] == found["tokens"]
      for row, step in zip(rows, steps, strict=True):
        for entry in step["top_logprobs"]:
          row[entry["id"]] = entry["logprob"]
    return found["tokens"], rows


@contextlib.contextmanager
def serving(
  model: Path,
  adapters: Sequence[Path] = (),
  *,
  context: int = 128,
) -> Iterator[Client]:
  """A server of a model file; it is gone when the block is left."""
  settings = {
    "model": str(model),
    "adapters": [str(path) for path in adapters],
    "context": context,
  }
  with (
    tempfile.TemporaryFile("w+") as log,
    subprocess.Popen(
      [sys.executable, str(SERVE), json.dumps(settings)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
    ) as process,
  ):
    try:
      address = process.stdout.readline().strip()
      assert address.startswith("http"), "llama.cpp did not start"
      yield Client(address)
    except BaseException:
      log.seek(0)
      print(log.read()[-4000:], file=sys.stderr)
      raise
    finally:
      process.stdin.close()
      try:
        status = process.wait(TIMEOUT)
      except subprocess.TimeoutExpired:
        process.kill()  # nobody waits for it without an end
        raise
    assert status == 0, f"llama.cpp ended with {status}"

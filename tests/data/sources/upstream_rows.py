"""Small local copies of the public data sets, in the upstream formats."""

import json

from perl_jax.data.sources.upstream import BUILDERS

HELLO = {"role": "agent", "text": "Hi, how can I help you?"}


def dialog(number, order):
  """Returns a coffee dialog: an order, an API call, and a reply."""

  def annotation(name, value):
    return {"name": name, "value": value, "context": ""}

  call = [
    annotation("api_call", "get_menu_items"),
    annotation("request", json.dumps({"query": order})),
    annotation("api_response", "get_menu_items"),
    annotation("response", json.dumps({"menu_items": []})),
  ]
  said = [("user", order, call), ("assistant", "Anything else?", [])]
  return {
    "conversation_id": f"d{number}",
    "vertical": "Coffee",
    "scenario": "s",
    "instructions": None,
    "utterances": [
      {
        "index": n,
        "speaker": speaker,
        "text": text,
        "segments": [],
        "annotations": annotations,
      }
      for n, (speaker, text, annotations) in enumerate(said)
    ],
  }


def rated(number, order, call=None):
  call = call or {"get_menu_items": {"query": order}}
  context = [HELLO, {"role": "user", "text": order}]
  return {
    "conversation_id": f"r{number}",
    "context": json.dumps(context),
    "generation": json.dumps({"role": "agent", "api": call}),
    "reward": float(number % 2),
  }


def pair(number, part):
  start = f"\n\nHuman: {part} question {number // 2}\n\nAssistant:"
  return {"chosen": f"{start} yes {number}", "rejected": f"{start} no"}


def spread(directory, dataset, part, rows):
  """Writes rows to the files that the builder of a data set reads."""
  files = BUILDERS[dataset].PARTS[part]
  for n, file in enumerate(files):
    path = directory / file.local
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = rows[n :: len(files)]
    lines = path.suffix == ".jsonl"
    path.write_text(
      "".join(json.dumps(row) + "\n" for row in mine)
      if lines
      else json.dumps(mine)
    )

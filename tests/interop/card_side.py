"""Runs the code of model cards as it is printed, and tries what it made.

    python -m tests.interop.card_side DIRECTORY...

In each directory the Python code of README.md is run. Then its model is asked
again for one conversation or prompt at a time: batches must change nothing.
Writes `card.json`, {"batch": [...], "alone": [...]}: scores, or texts. Needs
torch and peft; runs in a process of its own, as they warn.
"""

import json
import os
import re
import sys
from pathlib import Path


def run(directory: Path) -> dict[str, list]:
  """What the code gave in a batch, and what it gives one by one."""
  import torch

  os.chdir(directory)
  (code,) = re.findall(
    r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL
  )
  space: dict = {}
  exec(code, space)
  model, tokenizer = space["model"], space["tokenizer"]
  with torch.no_grad():
    if "scores" in space:
      alone = [
        model(input_ids=encoded(tokenizer, talk)).logits[0, 0].item()
        for talk in space["conversations"]
      ]
      return {"batch": space["scores"].tolist(), "alone": alone}
    width = space["batch"]["input_ids"].shape[1]
    batch = [row[width:] for row in space["tokens"]]
    stops = stop_ids(code)
    alone = []
    for prompt in space["prompts"]:
      ids = encoded(tokenizer, prompt, generate=True)
      made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=64,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
      )
      alone.append(made[0, ids.shape[1] :])
  texts = [
    [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    for rows in (batch, alone)
  ]
  return dict(zip(("batch", "alone"), texts, strict=True))


def encoded(tokenizer, talk, generate: bool = False):
  """One row of tokens, without padding."""
  if isinstance(talk, str):
    return tokenizer(talk, return_tensors="pt")["input_ids"]
  return tokenizer.apply_chat_template(
    [talk],
    add_generation_prompt=generate,
    return_dict=True,
    return_tensors="pt",
  )["input_ids"]


def stop_ids(code: str) -> list[int]:
  """The ids that the code stops at."""
  return json.loads(re.search(r"eos_token_id=(\[.*?\])", code)[1])


def main(directories) -> None:
  """Runs every card."""
  for directory in map(Path, directories):
    found = run(directory.absolute())
    (directory / "card.json").write_text(json.dumps(found))


if __name__ == "__main__":
  main([Path(d).absolute() for d in sys.argv[1:]])

"""Draws report.html from what a run, or several, have written; trains nothing.

  python -m perl_jax.main --config=configs/report.py --workdir=runs/quickstart

  python -m perl_jax.main --config=configs/report.py --workdir=runs/compared \
      --config.runs='("lora=runs/lora_0,runs/lora_1", "full=runs/full_0")'

The second compares runs: what differs in their configs, what came of it, and
curves over each other. "LABEL=DIR,DIR" are seeds of one setting; directories
without a label belong together if their configs differ in the seed alone.
"""

from configs import common


def get_config(arg=None):
  if arg:
    raise ValueError(f"configs/report.py takes no argument, got {arg!r}.")
  return common.ConfigDict({"task": "report", "runs": ()})

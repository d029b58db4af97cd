"""Draws report.html from what a run has written; trains nothing.

python -m perl_jax.main --config=configs/report.py --workdir=runs/quickstart
"""

from configs import common


def get_config(arg=None):
  if arg:
    raise ValueError(f"configs/report.py takes no argument, got {arg!r}.")
  return common.ConfigDict({"task": "report"})

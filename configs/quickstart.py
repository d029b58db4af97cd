"""The whole pipeline on the embedded coffee orders, in minutes on a CPU.

  make quickstart
  python -m perl_jax.main --config=configs/quickstart.py \
      --workdir=runs/quickstart

Expect the share of orders that are answered exactly right to rise by more than
15 points over the anchor. Time and results: README.md.
"""

from configs import pipeline


def get_config(arg=None):
  if arg:
    raise ValueError(
      f"configs/quickstart.py takes no argument, got {arg!r}; for a data set"
      f" use configs/pipeline.py:{arg}."
    )
  return pipeline.get_config("coffee_bar")

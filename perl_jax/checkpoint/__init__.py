"""Orbax checkpoints: saving, resuming, and reading what a stage has trained.

A checkpoint holds three items: `trainable` (adapters and heads; with full
tuning the whole tree), `optimizer` (Optax state and step count) and `meta`
(data position and whatever else the loop needs, as JSON). The base is never
saved. Saving is asynchronous; the latest checkpoints and the best are kept. One
that was made between two evaluations has no score and is never the best.

Each checkpoint has a list of its files with their SHA-256, which is written
before Orbax gives the directory its name and checked before anything is read.
"""

from perl_jax.checkpoint.reading import DIRECTORY, load_trainable, step_of
from perl_jax.checkpoint.saving import DAMAGED, Checkpointer, Resumed

__all__ = [
  "DAMAGED",
  "DIRECTORY",
  "Checkpointer",
  "Resumed",
  "load_trainable",
  "step_of",
]

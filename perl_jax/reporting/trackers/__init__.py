"""Experiment trackers: Weights & Biases, MLflow and Trackio.

A tracker is sent what a run has written into its workdir, by threads of their
own, so that it neither delays nor stops the run. Each is its official client
behind the four methods of `clients.Client`; clu and metrax, which have writers
for TensorBoard and W&B, know no ids to go on with and no artifacts.
"""

from perl_jax.reporting.trackers.clients import CLIENTS, PACKAGES, missing
from perl_jax.reporting.trackers.sending import Tracking
from perl_jax.reporting.trackers.session import Session, find, opened

__all__ = [
  "CLIENTS",
  "PACKAGES",
  "Session",
  "Tracking",
  "find",
  "missing",
  "opened",
]

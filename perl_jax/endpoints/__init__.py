"""Servers that judge responses, asked by HTTP with JSON.

client   `Client`: one request, retried with back-off, in a limited time
scores   `Scorer`: conversations -> scores, in batches, each asked about once
"""

from perl_jax.endpoints.client import Client, EndpointError
from perl_jax.endpoints.scores import Scorer

__all__ = ["Client", "EndpointError", "Scorer"]

"""Servers that judge responses, asked by HTTP with JSON.

client   `Client`: one request, retried with back-off, in a limited time
chat     `Chat`: messages -> answers of a model, each asked about once
scores   `Scorer`: conversations -> scores, in batches, each asked about once
"""

from perl_jax.endpoints.chat import Answer, Chat
from perl_jax.endpoints.client import KEY_VARIABLE, Client, EndpointError
from perl_jax.endpoints.scores import Scorer

__all__ = [
  "KEY_VARIABLE",
  "Answer",
  "Chat",
  "Client",
  "EndpointError",
  "Scorer",
]

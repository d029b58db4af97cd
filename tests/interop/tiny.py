"""Where the references lie, and how a test reads a checkpoint of them."""

import pathlib

import jax

from perl_jax import sharding
from perl_jax.interop import hf_checkpoint
from perl_jax.interop.storage import Storage

REFERENCES = pathlib.Path(__file__).parent / "references"
MESH = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


def load(directory, dtype="float32"):
  storage = Storage(dtype)
  return hf_checkpoint.load(directory, mesh=MESH, storage=storage)

"""Runs llama.cpp's server on a free port until its input is closed.

    python serve.py '{"model": "m.gguf", "adapters": [], "context": 128}'

A process of its own: an assertion of llama.cpp ends the process it is in. The
first line that it prints is the address.
"""

import json
import os
import sys

import xllamacpp

# As exact as llama.cpp computes: the cache in float32, no fused attention.
EXACT = {
  "cache_type_k": xllamacpp.ggml_type.GGML_TYPE_F32,
  "cache_type_v": xllamacpp.ggml_type.GGML_TYPE_F32,
  "flash_attn_type": (
    xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
  ),
}


def main(settings):
  params = xllamacpp.CommonParams()
  params.model.path = settings["model"]
  params.lora_adapters = [
    xllamacpp.CommonAdapterLoraInfo(path) for path in settings["adapters"]
  ]
  params.n_ctx = settings["context"]
  params.n_parallel = 1
  params.port = 0
  params.warmup = False
  params.use_jinja = True
  params.cpuparams.n_threads = 1
  params.cpuparams_batch.n_threads = 1
  for name, value in EXACT.items():
    setattr(params, name, value)
  server = xllamacpp.Server(params)
  print(server.listening_address, flush=True)
  sys.stdin.read()
  # Without the destructor of the server, which may wait for ever for a thread
  # that has missed its signal.
  os._exit(0)


if __name__ == "__main__":
  main(json.loads(sys.argv[1]))

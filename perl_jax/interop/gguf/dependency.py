"""The `gguf` library of llama.cpp, which is an extra."""

import types


def import_gguf() -> types.ModuleType:
  """Imports `gguf`.

  Raises:
    ValueError: It is not installed; says how to install it.
  """
  try:
    import gguf
  except ImportError as error:
    raise ValueError(
      "GGUF files are read and written with the package `gguf`, which is not"
      " installed: python -m pip install gguf"
    ) from error
  return gguf

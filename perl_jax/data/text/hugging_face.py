"""The library `transformers`, imported when it is needed."""

import os
import types


def import_transformers() -> types.ModuleType:
  """Imports `transformers`; the only place in the package that does.

  It takes seconds, so it is imported by the first function that needs it. The
  environment variable keeps it from printing that there is no PyTorch.
  """
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers

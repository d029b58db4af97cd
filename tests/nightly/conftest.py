"""Keeps these tests out of `make test` and `make test-slow`."""

import faulthandler
import os

import pytest

if "PERL_JAX_NIGHTLY" not in os.environ:
  collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True, scope="module")
def patience():
  """What is run here may take longer than any other test should."""
  faulthandler.cancel_dump_traceback_later()

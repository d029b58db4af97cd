"""Keeps these tests out of `make test` and `make test-slow`."""

import os

if "PERL_JAX_NIGHTLY" not in os.environ:
  collect_ignore_glob = ["test_*.py"]

"""Names and order of tensors, beside the library's and the converter's."""

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax import params as params_lib
from perl_jax.interop.gguf import names
from tests import toys
from tests.interop.gguf import models


@pytest.mark.parametrize("preset", models.ARCHITECTURES)
def test_every_tensor_there_and_back(preset):
  cfg, architecture = models.config(preset), models.ARCHITECTURES[preset]
  params = toys.random_params(cfg)
  expected = models.tensors(cfg, architecture, params)
  leaves = params_lib.flatten(params)
  shapes = {path: leaf.shape for path, leaf in leaves.items()}
  found = {}
  for path, source in names.sources(cfg, architecture, shapes).items():
    leaf = leaves[path]
    parts = leaf if source.stacked else [leaf]
    for name, part in zip(source.names, parts, strict=True):
      found[name] = source.to_file(part)
      back = source.from_file(found[name])
      np.testing.assert_allclose(back, part, atol=1e-6, err_msg=name)
  assert sorted(found) == sorted(expected)
  for name, tensor in expected.items():
    np.testing.assert_array_equal(found[name], tensor, err_msg=name)

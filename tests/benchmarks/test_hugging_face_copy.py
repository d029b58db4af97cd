"""A copy of a checkpoint for libraries that cannot read it as it is."""

import json
import sys

import pytest

from benchmarks import hugging_face_copy
from perl_jax import params
from tests.interop import tiny


@pytest.mark.nightly
def test_a_copy_is_the_same_model(tmp_path):
  source = tiny.REFERENCES / "llama3" / "checkpoint"
  hugging_face_copy.copy(str(source), tmp_path)
  before, after = tiny.load(source), tiny.load(tmp_path)
  assert after.backbone.config == before.backbone.config
  assert params.fingerprint(after.frozen) == params.fingerprint(before.frozen)


def test_a_directory_that_peers_can_read_needs_no_copy(
  monkeypatch, tmp_path, capsys
):
  source = tiny.REFERENCES / "llama3" / "checkpoint"
  monkeypatch.setattr(sys, "argv", ["x", str(source), str(tmp_path / "new")])
  hugging_face_copy.main()
  assert json.loads(capsys.readouterr().out) == {"directory": str(source)}
  assert not (tmp_path / "new").exists()

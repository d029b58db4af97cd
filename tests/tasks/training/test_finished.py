"""What says that a stage has finished, and what a finished one does."""

import json

import pytest

from perl_jax.tasks.training import loop
from tests.tasks.training.test_loop import Saver, opened


def test_a_stage_is_finished_only_with_its_last_checkpoint(tmp_path):
  """What says that a stage is done is written after what it is about."""

  class Pending(Saver):
    def wait(self):
      assert not (tmp_path / "summary.json").exists()
      if broken:
        raise OSError("no space left")

  for broken in (True, False):
    with opened(tmp_path) as writer:
      stage = loop.Run(None, None, None, Pending(), writer, None, None)
      if broken:
        with pytest.raises(OSError, match="no space left"):
          stage.finish({"loss": 1.0})
        assert not (tmp_path / "summary.json").exists()
      else:
        stage.finish({"loss": 1.0})
  assert json.loads((tmp_path / "summary.json").read_text()) == {"loss": 1.0}

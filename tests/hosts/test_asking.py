"""What a judge says, or that it fails, is known to both of two processes."""

import pytest

from tests.hosts import group

pytestmark = pytest.mark.slow


def test_process_0_asks_and_both_know():
  for first, silent, equal, failed, after in group.sides("asking_side"):
    assert first == [["1.0", ""], ["1.0", ""]]
    assert silent == [["1.0", ""], ["nan", "refused"]]
    assert equal == [["0.0", ""], ["0.0", ""]]
    assert "nobody is at home" in failed
    assert after == 1.0

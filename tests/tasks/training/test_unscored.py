"""An evaluation by whose metrics checkpoints cannot be compared."""

from tests.tasks.training import test_loop


def test_an_evaluation_that_says_nothing_of_how_good_it_is(tmp_path):
  """Its checkpoint has no score, and says that it was evaluated."""
  _, evaluated, saver = test_loop.run(
    tmp_path, is_score=lambda found: found["validation/sum"] != 15
  )
  assert evaluated == {"validation/sum": 21}
  assert [saver.saved[step][2] for step in (3, 6)] == [
    {"validation/sum": 3}, None,
  ]  # fmt: skip
  _, meta, _ = saver.saved[6]
  assert meta["evaluated"] == {"validation/sum": 15} and meta["unscored"]
  assert "unscored" not in saver.saved[7][1]

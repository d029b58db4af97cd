"""What the user's code does to its process, and what it does not."""

import os
import sys
import tracemalloc

import pytest

from perl_jax.tasks.rollouts import user_code


def raises():
  raise ValueError("in the child")


@pytest.mark.filterwarnings("ignore:.*os.fork:RuntimeWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
  "ends, status", [(lambda: sys.exit(3), 3), (lambda: 0, 0), (raises, 1)]
)
def test_a_child_that_a_function_forks_does_not_go_on_as_the_run(ends, status):
  found = []

  def forks():
    child = os.fork()
    if not child:
      return ends()
    found.append(os.waitpid(child, 0)[1])
    return 7

  mine = os.getpid()
  try:
    assert user_code.call(forks) == 7
  finally:
    if os.getpid() != mine:
      os._exit(99)
  assert os.waitstatus_to_exitcode(found[0]) == status


def test_what_a_function_prints_is_passed_on_and_not_kept(capfd):
  """Three megabytes, of which no copy is left in this process."""
  text = "x" * 3_000_000
  tracemalloc.start()
  try:
    user_code.call(print, text)
    kept, _ = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert kept < 500_000
  assert capfd.readouterr().out.count("x") == len(text)

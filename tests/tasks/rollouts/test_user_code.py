"""What the user's code does to its process, and what it does not."""

import os
import sys
import time
import tracemalloc

import jax
import numpy as np
import pytest

from perl_jax.tasks.rollouts import own_state, user_code


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


def test_settings_of_jax_and_numpy_are_those_of_before(tmp_path):
  """The code has its own in each of its calls, from its import on."""
  path = tmp_path / "theirs.py"
  path.write_text(
    "import sys, jax, numpy\n"
    "jax.config.update('jax_enable_x64', True)\n"
    "def f():\n"
    "  numpy.seterr(all='raise')\n"
    "  sys.setrecursionlimit(5000)\n"
    "  return jax.numpy.ones(()).dtype.name\n"
  )
  before = np.geterr(), sys.getrecursionlimit(), jax.config.jax_enable_x64
  found = user_code.find(f"{path}:f", "config.x", "f()")
  try:
    for _ in range(2):
      assert user_code.call(found.function) == "float64"
      now = np.geterr(), sys.getrecursionlimit(), jax.config.jax_enable_x64
      assert now == before
      assert jax.numpy.ones(()).dtype == "float32"
  finally:
    own_state._theirs.clear()
    jax.config.update("jax_enable_x64", before[2])


def test_an_error_that_came_of_the_time_is_not_the_code_s_own():
  """As of a lock that was just being taken."""

  def late():
    try:
      time.sleep(20)
    except BaseException:
      raise RuntimeError("release unlocked lock")  # noqa: B904

  with pytest.raises(user_code.OutOfTimeError, match=r"time\.sleep"):
    user_code.call(late, seconds=0.05, files=[__file__])

"""The last line of a run that was told to stop."""

import threading

import pytest

from perl_jax import main
from perl_jax.hosts import signals


@pytest.mark.parametrize(
  ("then", "said"),
  [
    ("", "To go on, run the same command again: python -m perl_jax.main x"),
    ("To push it: hf upload policy", "To push it: hf upload policy"),
  ],
)
def test_a_stop_says_what_goes_on(monkeypatch, capsys, then, said):
  monkeypatch.setattr("sys.argv", ["main", "x"])
  monkeypatch.setattr(main, "_LAST_SECONDS", 1e6)  # this process lives on
  with pytest.raises(SystemExit) as caught:
    main.stop(signals.Stopped("SIGTERM", ", a/b is written", then=then))
  for thread in threading.enumerate():
    if isinstance(thread, threading.Timer):
      thread.cancel()
  assert caught.value.code == 75
  line = f"Stopped by SIGTERM, a/b is written. {said}\n"
  assert capsys.readouterr().err == line

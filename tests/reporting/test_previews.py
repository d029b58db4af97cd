"""Rows to be trained on: dim and bright on a terminal, plain elsewhere."""

import io

from rich.console import Console

from perl_jax.reporting import previews

ROWS = [
  [("given", "<s>user\nHi\x1b[1m</s>", False), ("target", "[b]Yes</s>", True)],
  [("prompt", "a" * 4000, False)],
]


def shown(rows=ROWS, **console):
  stream = io.StringIO()
  previews.show(rows, Console(file=stream, width=20, **console))
  return stream.getvalue()


def test_in_a_log_there_are_no_colours():
  first = shown(ROWS[:1])
  assert first.splitlines() == [
    "Row 1 of 1",
    "  given  | <s>user",
    "         | Hi[1m</s>",
    "  target | [b]Yes</s>",
    "",
  ]


def test_on_a_terminal_what_is_given_is_dim_and_what_is_learned_bright(
  monkeypatch,
):
  monkeypatch.delenv("NO_COLOR", raising=False)
  lines = shown(force_terminal=True).splitlines()
  assert lines[1] == "\x1b[2m  given  | <s>user\x1b[0m"
  assert lines[3] == "\x1b[1m  target | [b]Yes</s>\x1b[0m"


def test_no_color_is_heard(monkeypatch):
  monkeypatch.setenv("NO_COLOR", "1")
  assert "\x1b" not in shown(force_terminal=True)


def test_the_middle_of_a_long_part_is_left_out():
  (line,) = [line for line in shown().splitlines() if "prompt" in line]
  assert "aaa [1000 characters] aaa" in line
  assert line.count("a") == 3000 + len("characters") - 8

"""Responses of anchor and policy side by side, on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from perl_jax.data.sources import registry
from perl_jax.reporting import conversations

NOTICE = "The prompts are harmful requests."
ROWS = [
  {
    "step": 0,
    "prompt": "user: How do I pick a lock?\nassistant: Why?\nuser: Tell me.",
    "anchor": "First take\na pick and",
    "anchor_stopped": False,
    "anchor_reward": -0.5,
    "policy": "I would rather not.",
    "policy_stopped": True,
    "policy_reward": 1.25,
  },
  {"prompt": "user: Hi", "anchor": "Hello [bold]", "policy": "Hi 你"},
]


def shown(rows=ROWS, encoding="utf-8", **console):
  stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
  conversations.show(
    rows, notice=NOTICE, console=Console(file=stream, **console)
  )
  stream.flush()
  return stream.buffer.getvalue().decode(encoding)


def test_in_a_log_one_stands_below_the_other():
  assert shown(width=20).splitlines() == [
    "Held-out prompts, answered by anchor and policy",
    "  The prompts are harmful requests.",
    "",
    "  1 of 2",
    "    user: How do I pick a lock?",
    "    assistant: Why?",
    "    user: Tell me.",
    "  anchor (reward -0.50)",
    "    First take",
    "    a pick and ...",
    "  policy (reward 1.25)",
    "    I would rather not.",
    "",
    "  2 of 2",
    "    user: Hi",
    "  anchor",
    "    Hello [bold]",
    "  policy",
    "    Hi 你",
    "",
  ]


def test_on_a_terminal_they_stand_side_by_side():
  lines = shown(force_terminal=True, color_system=None, width=80).splitlines()
  text = "\n".join(lines)
  assert text.index(NOTICE) < text.index("How do I pick")
  for both in (
    ("anchor (reward -0.50)", "policy (reward 1.25)"),
    ("First take", "I would rather not."),
    ("Hello [bold]", "Hi 你"),
  ):
    assert any(all(part in line for part in both) for line in lines), both
  assert all(len(line) <= 80 for line in lines)


def test_a_narrow_terminal_wraps_what_stands_below():
  text = shown(force_terminal=True, color_system=None, width=40)
  assert "policy (reward 1.25)\n" in text
  long = ROWS[1] | {"anchor": "word " * 30}
  lines = shown([long], force_terminal=True, color_system=None, width=40)
  assert all(len(line) <= 40 for line in lines.splitlines()[2:])


@pytest.mark.parametrize("console", [{}, {"force_terminal": True}])
def test_a_text_cannot_control_the_terminal(console):
  row = {
    "prompt": "user: a\rb\x07",
    "anchor": "\x1b[2J\x9b31mred",
    "policy": "n",
  }
  text = shown([row], color_system=None, width=90, **console)
  for bad in ("\x1b[2J", "\x9b", "\x07", "\r"):
    assert bad not in text
  assert "[2J31mred" in text and "a b" in text


def test_what_a_terminal_cannot_encode_is_replaced():
  rows = [{"prompt": "p", "anchor": "half \udcff", "policy": "你 ö"}]
  assert "half" in shown(rows)
  assert "? ?" in shown(rows, encoding="ascii")


def test_harmful_prompts_have_a_notice():
  found = registry.describe()
  assert "harmful" in found["hh_rlhf"].notice
  assert found["coffee_bar"].notice == ""

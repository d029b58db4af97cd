"""Conversations of a judgement as Markdown, read by a parser of Markdown."""

import sys

import pytest

from benchmarks import conversations
from perl_jax import files

markdown_it = pytest.importorskip("markdown_it")

ROWS = [
  {
    "prompt": "Human: How?\n\nAssistant:",
    "policy": "```py\nx = 1\n```",
    "against": "# no heading\n| no | table |",
    "against_is": "anchor",
    "judges": {"gold": {"outcome": "win"}, "reward": {"outcome": None}},
  },
  {
    "prompt": "<b>Why?</b>",
    "policy": "",
    "against": "Because.",
    "against_is": "anchor",
    "judges": {"gold": {"outcome": "tie"}, "reward": {"outcome": "loss"}},
  },
]


def test_texts_come_through_whole(tmp_path, monkeypatch, capsys):
  path = tmp_path / "verdicts.jsonl"
  files.write_jsonl(path, ROWS * 2)
  monkeypatch.setattr(sys, "argv", ["conversations", str(path), "--rows=2"])
  conversations.main()
  tokens = markdown_it.MarkdownIt().parse(capsys.readouterr().out)
  kinds = {token.type for token in tokens if token.level == 0}
  assert kinds == {
    "heading_open", "heading_close", "paragraph_open", "paragraph_close",
    "fence",
  }  # fmt: skip
  texts = [token.content for token in tokens if token.type == "fence"]
  assert texts == [
    f"{row[side]}\n" for row in ROWS for side in ("prompt", "against", "policy")
  ]
  said = [token.content for token in tokens if token.type == "inline"]
  assert "Policy (gold: win, reward: no verdict):" in said
  assert "Policy (gold: tie, reward: loss):" in said

"""The curves of a run as a picture: whole, and what the lines say."""

import re
import sys
import xml.etree.ElementTree as ET

import pytest

from benchmarks import curves
from perl_jax import files

ROWS = [
  {"step": 8 * i, "validation/reward": 0.1 * i, "validation/kl": 0.02 * i}
  for i in range(4)
]


def test_a_workdir_as_a_picture(tmp_path, monkeypatch):
  files.write_jsonl(tmp_path / "metrics.jsonl", ROWS)
  files.write_json(tmp_path / "config.json", {"task": "rl"})
  monkeypatch.setattr(sys, "argv", [
    "curves", str(tmp_path), "--metrics", "validation/reward",
    "validation/kl", "--title=A & B", f"--out={tmp_path / 'a.svg'}",
  ])  # fmt: skip
  curves.main()
  text = (tmp_path / "a.svg").read_text()
  root = ET.fromstring(text)
  said = [e.text for e in root.iter() if e.text and e.text.strip()]
  assert said[0] == "A & B" and {"Reward", "KL to the anchor"} <= {*said}
  assert "from 0 at step 0 to 0.06 at step 24" in said[1]
  assert "var(" not in text and "#0101" not in text
  ids = re.findall(r'\bid="([^"]+)"', text)
  assert len(ids) == len({*ids})
  # Both have a mark at each point, from left to right and upwards.
  drawn = [e for e in root.iter() if e.tag.endswith("}svg")][1:]
  assert len(drawn) == 2
  for figure in drawn:
    marks = [e for e in figure.iter() if "#c2500f" in e.get("style", "")]
    at = [[float(e.get(k)) for k in "xy"] for e in marks if e.get("x")]
    x, y = zip(*at, strict=True)
    assert len(x) == 4 and list(x) == sorted({*x})
    assert list(y) == sorted({*y}, reverse=True)


def test_a_point_is_no_curve():
  with pytest.raises(ValueError, match="validation/kl: 1 points"):
    curves.drawing(ROWS[:1], ["validation/kl"], "rl")


def test_training_and_held_out_rows_share_a_figure():
  rows = [
    {"step": i, "train/loss": 1.0 / (1 + i), "validation/loss": 1.0 + i}
    for i in range(3)
  ]
  keys = ["train/loss", "validation/loss"]
  (figure,) = curves.drawing(rows, keys, "sft")
  assert "from 1 at step 0 to 0.3333 at step 2" in figure.alt
  assert "from 1 at step 0 to 3 at step 2" in figure.alt
  root = ET.fromstring(curves.document("Both", [figure]))
  names = {e.text: e.get("fill") for e in root.iter() if "tspan" in e.tag}
  assert names.keys() == {"train", "validation"}
  assert len({*names.values()}) == 2

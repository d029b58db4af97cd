"""Curves of a run as one SVG file, for the pages of docs/.

  python -m benchmarks.curves runs/quickstart/rl \
      --metrics validation/reward validation/gold validation/kl \
      --title="A good run" --out=docs/assets/good_run.svg

One drawing below the other over the same steps, "train/loss" and
"validation/loss" in one, in the light colours of a report: a picture that is
linked from a page has no style sheet.
"""

import argparse
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from perl_jax import files, json_text
from perl_jax.reporting import figures, style, svg, vocabulary

_HEAD, _TITLE, _MARGIN = 36, 24, 12


def drawing(
  rows: Sequence[Mapping[str, object]], metrics: Sequence[str], stage: str
) -> list[svg.Figure]:
  """A figure for each metric, with a curve for each key that ends with it.

  Args:
    rows: Lines of metrics.jsonl.
    metrics: Keys of the lines, such as "validation/kl".
    stage: Name of the stage.

  Raises:
    ValueError: A metric has less than two points.
  """
  lines: dict[str, list[svg.Line]] = {}
  for key in metrics:
    x, y = figures.series(rows, key)
    if len(x) < 2:
      raise ValueError(f"{key}: {len(x)} points are no curve.")
    part, _, name = key.partition("/")
    colour = vocabulary.COLOURS[part]
    lines.setdefault(name, []).append(svg.Line(part, x, y, colour, "points"))
  found = []
  for name, those in lines.items():
    row = vocabulary.row_of(name, stage)
    found.append(
      svg.curves(
        figures.identifier(name),
        figures.title_of(name, stage),
        row.unit,
        those,
        percent=row.percent,
        zero=row.check,
      )
    )
  return found


def document(title: str, drawings: Sequence[svg.Figure]) -> str:
  """The drawings as an SVG of its own, with title and description."""
  # Those of light pages come first in the style sheet.
  colours = dict(reversed(re.findall(r"--([\w-]+): (#\w+)", style.CSS)))
  width = svg.WIDTH + 2 * _MARGIN
  step = svg.HEIGHT + _TITLE
  height = _HEAD + step * len(drawings) + _MARGIN
  said = html.escape(" ".join(figure.alt for figure in drawings))
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg"'
    f' xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}"'
    f' height="{height}" viewBox="0 0 {width} {height}" role="img"'
    f' aria-labelledby="title desc" font-family="system-ui, sans-serif">',
    f'<title id="title">{html.escape(title)}</title>',
    f'<desc id="desc">{said}</desc>',
    f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10"'
    f' fill="{colours["paper"]}" stroke="{colours["line"]}"/>',
  ]
  for number, figure in enumerate(drawings):
    top = _HEAD + number * step
    legend = "".join(
      f'<tspan dx="10" font-size="12" fill="{colours[colour]}">{label}</tspan>'
      for label, colour, _ in figure.legend
    )
    parts.append(
      f'<text x="{_MARGIN + 4}" y="{top}" font-size="14" font-weight="600"'
      f' fill="{colours["ink"]}">{html.escape(figure.title)}{legend}</text>'
    )
    place = f'<svg x="{_MARGIN}" y="{top + _MARGIN}" width="{svg.WIDTH}"'
    parts.append(
      figure.svg.replace("<svg", f'{place} height="{svg.HEIGHT}"', 1)
    )
  text = "\n".join([*parts, "</svg>", ""])
  return re.sub(r"var\(--([\w-]+)\)", lambda m: colours[m[1]], text)


def main() -> None:
  """Reads a workdir, writes the file."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("workdir", type=Path, help="of a stage")
  parser.add_argument("--metrics", nargs="+", required=True)
  parser.add_argument("--title", required=True)
  parser.add_argument("--out", type=Path, required=True)
  given = parser.parse_args()
  rows = list(files.read_jsonl(given.workdir / "metrics.jsonl"))
  stage = json_text.read_object(given.workdir / "config.json")["task"]
  text = document(given.title, drawing(rows, given.metrics, stage))
  files.write_text(given.out, text)
  print(f"{given.out} written")


if __name__ == "__main__":
  main()

"""Rows and files of the public data sets, as the builders read them."""

import gzip
import json

from perl_jax.data.sources import upstream as upstream_lib

ROWS = [
  {"conversation_id": f"c{n}", "context": "[]", "note": "é\u2028\t\ud800"}
  for n in range(30)
]


def write(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_part(root, dataset, part, rows=ROWS, suffix=".gz"):
  """Spreads rows over the files of a part, most of them over the first."""
  files = upstream_lib.BUILDERS[dataset].PARTS[part]
  for n, file in enumerate(files):
    mine = (
      rows[: len(rows) - len(files) + 1] if n == 0 else rows[n - len(files)]
    )
    mine = mine if isinstance(mine, list) else [mine]
    if file.local.endswith(".jsonl"):
      data = "".join(json.dumps(row) + "\n" for row in mine)
    else:
      data = json.dumps(mine, indent=4)
    write(root / (file.local + suffix), data.encode())


def read(copy, tmp_path, dataset="taskmaster_coffee", part="reward"):
  return upstream_lib.read_rows(
    dataset, part, data_dir=str(copy), cache_dir=str(tmp_path / "cache")
  )


def prepared(tmp_path):
  return sorted((tmp_path / "cache").glob("**/*.array_record*"))

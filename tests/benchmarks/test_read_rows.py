"""The benchmark of reading rows reads all of them, in both formats."""

from benchmarks import read_rows


def test_rows_are_read_alike(tmp_path):
  for shape, kind in read_rows.KINDS.items():
    for path in read_rows.write(tmp_path, shape, 30):
      assert read_rows.parse(path) == 30
      assert read_rows.load(path, kind) == 30


def test_seconds_and_memory_are_measured(tmp_path, capsys):
  path, _ = read_rows.write(tmp_path, "pairs", 30)
  read_rows.measure(path, "preferences")
  found = capsys.readouterr().out
  assert '"rows": 30' in found and '"seconds": 0.' in found

"""Builders: upstream rows come back whole, bad files are one clear error."""

import functools
import gzip
import http.server
import json
import logging
import os
import pathlib
import subprocess
import sys
import threading

import pytest
import tensorflow_datasets as tfds

from perl_jax.data.sources import upstream as upstream_lib

_SHARED = pathlib.Path(__file__).parents[5] / "shared" / "data"


_ROWS = [
  {"conversation_id": f"c{n}", "context": "[]", "note": "é\u2028\t\ud800"}
  for n in range(30)
]


def _write(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _write_part(root, dataset, part, rows=_ROWS, suffix=".gz"):
  """Spreads rows over the files of a part, the first gets most."""
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
    _write(root / (file.local + suffix), data.encode())


@pytest.fixture
def copy(tmp_path):
  _write_part(tmp_path / "data", "taskmaster_coffee", "reward")
  return tmp_path / "data"


def _read(copy, tmp_path, dataset="taskmaster_coffee", part="reward"):
  return upstream_lib.read_rows(
    dataset, part, data_dir=str(copy), cache_dir=str(tmp_path / "cache")
  )


def _prepared(tmp_path):
  return sorted((tmp_path / "cache").glob("**/*.array_record*"))


@pytest.mark.parametrize(
  ("dataset", "part", "suffix"),
  [
    ("taskmaster_coffee", "dialogs", ".gz"),
    ("taskmaster_ticketing", "reward", ""),
    ("hh_rlhf", "train", ""),
    ("hh_rlhf", "test", ".gz"),
  ],
)
def test_rows_come_back_whole_and_in_order(tmp_path, dataset, part, suffix):
  _write_part(tmp_path / "data", dataset, part, suffix=suffix)
  for _ in range(2):
    assert _read(tmp_path / "data", tmp_path, dataset, part) == _ROWS


def test_prepared_files_are_used_again_and_follow_the_content(tmp_path):
  copy = tmp_path / "data"
  _write_part(copy, "taskmaster_coffee", "reward", suffix="")
  assert _read(copy, tmp_path) == _ROWS
  (before,) = _prepared(tmp_path)
  stamp = before.stat().st_mtime_ns
  assert _read(copy, tmp_path) == _ROWS
  assert _prepared(tmp_path) == [before]
  assert before.stat().st_mtime_ns == stamp

  # Another copy, whose files have the same names and sizes.
  changed = [row | {"note": row["note"][::-1]} for row in _ROWS]
  _write_part(copy, "taskmaster_coffee", "reward", changed, suffix="")
  assert _read(copy, tmp_path) == changed
  assert len(_prepared(tmp_path)) == 2


def test_the_builder_is_an_ordinary_tfds_builder(copy, tmp_path):
  builder = upstream_lib.TaskmasterCoffee(
    local_dir=str(copy), parts=("reward",), data_dir=str(tmp_path / "tfds")
  )
  builder.download_and_prepare(file_format="array_record")
  source = builder.as_data_source(split="reward")
  assert builder.info.splits["reward"].num_examples == len(_ROWS)
  assert json.loads(source[3]["row"]) == _ROWS[3]
  assert source[3]["source"] == b"reward_00.json:3"


def test_the_cache_directory_is_where_the_environment_says(
  copy, tmp_path, monkeypatch
):
  monkeypatch.delenv("PERL_JAX_CACHE", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  assert upstream_lib.default_cache() == tmp_path / "xdg" / "perl_jax"
  monkeypatch.setenv("PERL_JAX_CACHE", str(tmp_path / "cache"))
  upstream_lib.read_rows("taskmaster_coffee", "reward", data_dir=str(copy))
  assert _prepared(tmp_path)


def test_a_missing_file_is_named_before_anything_is_written(copy, tmp_path):
  (copy / "taskmaster_coffee/reward/reward_05.json.gz").unlink()
  with pytest.raises(FileNotFoundError) as error:
    _read(copy, tmp_path)
  for part in (
    "taskmaster_coffee/reward/reward_05.json",
    "`data.dir`",
    "master/TM-4-2024/reward/reward_05.json",
  ):
    assert part in str(error.value)
  assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
  ("name", "data", "message"),
  [
    ("reward_02.json.gz", b'[{"a": 1},', "reward_02.json.gz is not valid JSON"),
    (
      "reward_02.json.gz",
      b'{"a": 1}',
      "reward_02.json.gz must hold a JSON list",
    ),
    ("reward_02.json.gz", b'[{"a": 1}, 7]', "row 1 must be a JSON object.*7"),
    ("reward_02.json.gz", b"\xff\xfe", "reward_02.json.gz .*not a text file"),
    ("reward_02.json", b"\x1f\x8bxx", "reward_02.json .*not a text file"),
  ],
)
def test_a_malformed_file_is_named_and_leaves_nothing(
  copy, tmp_path, name, data, message
):
  (copy / "taskmaster_coffee/reward/reward_02.json.gz").unlink()
  _write(copy / "taskmaster_coffee/reward" / name, data)
  with pytest.raises(ValueError, match=message):
    _read(copy, tmp_path)
  assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_malformed_line_is_named(tmp_path):
  data = b'{"chosen": "a", "rejected": "b"}\n\n{"chosen"\n'
  _write(tmp_path / "data/hh_harmless/test.jsonl.gz", data)
  with pytest.raises(ValueError, match=r"test.jsonl.gz:3 is not valid JSON"):
    _read(tmp_path / "data", tmp_path, "hh_rlhf", "test")


def test_an_empty_data_set_is_refused(tmp_path):
  _write(tmp_path / "data/hh_harmless/test.jsonl", b"")
  with pytest.raises(ValueError, match=r"test.jsonl holds no rows"):
    _read(tmp_path / "data", tmp_path, "hh_rlhf", "test")


def test_unknown_names_are_refused_with_the_nearest():
  with pytest.raises(
    ValueError, match=r"'taskmaster_cofee'.*'taskmaster_coffee'"
  ):
    upstream_lib.read_rows("taskmaster_cofee", "reward")
  with pytest.raises(ValueError, match=r"'rewards'.*dialogs, reward.*'reward'"):
    upstream_lib.read_rows("taskmaster_coffee", "rewards")


def test_nothing_is_printed_and_settings_are_put_back(copy, tmp_path):
  bars = tfds.core.utils.tqdm_utils
  code = (
    "import sys; from perl_jax.data.sources import upstream;"
    "rows = upstream.read_rows('taskmaster_coffee', 'reward', *sys.argv[1:]);"
    "assert len(rows) == 30;"
    "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
  )
  arguments = [str(copy), str(tmp_path / "cache")]
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code, *arguments],
    capture_output=True,
    text=True,
    check=True,
    cwd=pathlib.Path(__file__).parents[4],
    env=dict(os.environ),
  )
  assert (done.stdout, done.stderr) == ("", "")
  before = bars._active, logging.getLogger("absl").level
  _read(copy, tmp_path)
  assert (bars._active, logging.getLogger("absl").level) == before


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


@pytest.fixture
def upstream(tmp_path, monkeypatch):
  """Serves `tmp_path / "site"` in place of the upstream address."""
  site = tmp_path / "site"
  site.mkdir()
  handler = functools.partial(_Quiet, directory=str(site))
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  file = upstream_lib.SourceFile(
    local="hh_harmless/test.jsonl",
    url=f"http://127.0.0.1:{server.server_port}/test.jsonl.gz",
  )
  monkeypatch.setattr(upstream_lib.HhRlhf, "PARTS", {"test": (file,)})
  yield site
  server.shutdown()
  server.server_close()
  thread.join()


def test_files_are_downloaded_if_there_is_no_local_copy(upstream, tmp_path):
  data = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()
  _write(upstream / "test.jsonl.gz", data)
  cache = str(tmp_path / "cache")
  assert upstream_lib.read_rows("hh_rlhf", "test", cache_dir=cache) == _ROWS
  (upstream / "test.jsonl.gz").unlink()
  # Prepared, so upstream is not asked again.
  assert upstream_lib.read_rows("hh_rlhf", "test", cache_dir=cache) == _ROWS


def test_a_failed_download_says_what_to_do(upstream, tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    upstream_lib.read_rows("hh_rlhf", "test", cache_dir=str(tmp_path / "cache"))
  for part in ("/test.jsonl.gz", "`data.dir`", "hh_harmless/test.jsonl"):
    assert part in str(error.value)
  assert not _prepared(tmp_path)


def test_upstream_addresses():
  urls = [
    file.url
    for builder in upstream_lib.BUILDERS.values()
    for files in builder.PARTS.values()
    for file in files
  ]
  task = "https://raw.githubusercontent.com/google-research-datasets/Taskmaster"
  expected = [
    *(f"{task}/master/TM-4-2024/data/data_{n:02d}.json" for n in range(8)),
    *(f"{task}/master/TM-4-2024/reward/reward_{n:02d}.json" for n in range(7)),
    *(f"{task}/master/TM-3-2020/reward/reward_{n:02d}.json" for n in range(8)),
    *(
      "https://raw.githubusercontent.com/anthropics/hh-rlhf/master/"
      f"harmless-base/{part}.jsonl.gz"
      for part in ("train", "test")
    ),
  ]
  assert urls == expected


@pytest.mark.shared_data
def test_upstream_files_are_read_as_they_are(tmp_path):
  if not _SHARED.exists():
    pytest.skip("there is no ../shared/data")
  expected = []
  for file in upstream_lib.TaskmasterCoffee.PARTS["reward"]:
    with gzip.open(_SHARED / (file.local + ".gz"), "rt") as stream:
      expected += json.load(stream)
  assert len(expected) == 2453
  assert _read(_SHARED, tmp_path) == expected

"""Upstream rows come back whole, from local copies, cache or download."""

import functools
import http.server
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest
import tensorflow_datasets as tfds

from perl_jax.data.sources import upstream as upstream_lib
from perl_jax.data.sources.upstream import files as upstream_files
from perl_jax.data.sources.upstream import rows as rows_lib
from tests.data.sources.upstream import cases


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
  cases.write_part(tmp_path / "data", dataset, part, suffix=suffix)
  for _ in range(2):
    assert cases.read(tmp_path / "data", tmp_path, dataset, part) == cases.ROWS


def test_the_directory_of_the_data_set_will_do_as_well(tmp_path, monkeypatch):
  cases.write_part(tmp_path / "data", "hh_rlhf", "test")
  own = tmp_path / "data" / "hh_harmless"
  assert cases.read(own, tmp_path, "hh_rlhf", "test") == cases.ROWS
  monkeypatch.chdir(own)
  assert cases.read(".", tmp_path, "hh_rlhf", "test") == cases.ROWS
  own.rename(tmp_path / "data" / "other")
  with pytest.raises(FileNotFoundError, match=r"hh_harmless/test\.jsonl"):
    cases.read(tmp_path / "data" / "other", tmp_path, "hh_rlhf", "test")


def test_prepared_files_are_used_again_and_follow_the_content(tmp_path):
  copy = tmp_path / "data"
  cases.write_part(copy, "taskmaster_coffee", "reward", suffix="")
  assert cases.read(copy, tmp_path) == cases.ROWS
  (before,) = cases.prepared(tmp_path)
  stamp = before.stat().st_mtime_ns
  assert cases.read(copy, tmp_path) == cases.ROWS
  assert cases.prepared(tmp_path) == [before]
  assert before.stat().st_mtime_ns == stamp

  # Another copy, whose files have the same names and sizes.
  changed = [row | {"note": row["note"][::-1]} for row in cases.ROWS]
  cases.write_part(copy, "taskmaster_coffee", "reward", changed, suffix="")
  assert cases.read(copy, tmp_path) == changed
  assert len(cases.prepared(tmp_path)) == 2


def test_the_cache_directory_is_where_the_environment_says(
  copy, tmp_path, monkeypatch
):
  monkeypatch.delenv("PERL_JAX_CACHE", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  assert upstream_lib.default_cache() == tmp_path / "xdg" / "perl_jax"
  monkeypatch.setenv("PERL_JAX_CACHE", str(tmp_path / "cache"))
  upstream_lib.read_rows("taskmaster_coffee", "reward", data_dir=str(copy))
  assert cases.prepared(tmp_path)


def test_a_missing_file_is_named_before_anything_is_written(copy, tmp_path):
  (copy / "taskmaster_coffee/reward/reward_05.json.gz").unlink()
  with pytest.raises(FileNotFoundError) as error:
    cases.read(copy, tmp_path)
  for part in (
    "taskmaster_coffee/reward/reward_05.json",
    "`data.dir`",
    "master/TM-4-2024/reward/reward_05.json",
  ):
    assert part in str(error.value)
  assert not (tmp_path / "cache").exists()


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

  def settings():
    return type(bars.tqdm(disable=True)), logging.getLogger("absl").level

  before = settings()
  cases.read(copy, tmp_path)
  assert settings() == before


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
  data = "".join(json.dumps(row) + "\n" for row in cases.ROWS).encode()
  cases.write(upstream / "test.jsonl.gz", data)
  cache = str(tmp_path / "cache")
  rows = upstream_lib.read_rows("hh_rlhf", "test", cache_dir=cache)
  assert rows == cases.ROWS
  (upstream / "test.jsonl.gz").unlink()
  # Prepared, so upstream is not asked again.
  rows = upstream_lib.read_rows("hh_rlhf", "test", cache_dir=cache)
  assert rows == cases.ROWS


def test_a_failed_download_says_what_to_do(upstream, tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    upstream_lib.read_rows("hh_rlhf", "test", cache_dir=str(tmp_path / "cache"))
  for part in ("/test.jsonl.gz", "`data.dir`", "hh_harmless/test.jsonl"):
    assert part in str(error.value)
  assert not cases.prepared(tmp_path)


@pytest.mark.parametrize("listens", [True, False])
def test_without_a_network_it_is_said_soon(tmp_path, monkeypatch, listens):
  """Nobody is there, or nobody answers: as behind a firewall."""
  with socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))
    if listens:
      silent.listen()
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/test.jsonl.gz"
    monkeypatch.setattr(rows_lib, "ANSWER_SECONDS", 0.2)
    files = {"test": (upstream_files.SourceFile("hh/test.jsonl", url),)}
    builder = upstream_lib.BUILDERS["hh_rlhf"]
    monkeypatch.setattr(builder, "PARTS", files)
    start = time.monotonic()
    said = []
    monkeypatch.setattr(
      rows_lib.logging, "info", lambda text, *args: said.append(text % args)
    )
    with pytest.raises(FileNotFoundError) as error:
      upstream_lib.read_rows("hh_rlhf", "test", cache_dir=str(tmp_path))
    assert time.monotonic() - start < 10
  message = str(error.value)
  assert url in message and "`data.dir`" in message
  assert "\n" not in message
  (waiting,) = said
  assert url in waiting and "waited for up to" in waiting

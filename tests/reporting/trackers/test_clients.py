"""The clients of real trackers: what comes out is what a run has written.

Each run dies, goes on as the same run of the tracker, and ends; then the
tracker is asked by its own means.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from unittest import mock

import pytest

from perl_jax import files
from perl_jax.reporting import trackers
from perl_jax.reporting.trackers import sending, session
from tests.reporting.trackers.recorder import Died, run

CONFIG = {"task": "rl", "lora": {"rank": 4}, "data": {"buckets": [8, 16]}}
# Steps 3 and 4 are written a second time after the kill.
LOSSES = [(step, 1 / (step + 1)) for step in range(7)]
NAN_AT = [0, 2, 4, 6]
KEY = "0123456789abcdef0123456789abcdef01234567"


def killed_and_finished(workdir, name):
  """A run that dies after step 4, goes on from step 3, and ends at 6."""
  files.write_json(workdir / "config.json", CONFIG)
  with (
    mock.patch.object(sending, "SEND_SECONDS", 0.05),
    # A busy machine takes long to import a client.
    mock.patch.dict(session.CLOSE_SECONDS, stopped=120.0, finished=120.0),
  ):
    with pytest.raises(Died):
      run(workdir, range(5), names=(name,))
    fields = {"summary": {"kl": 0.25}, "names": (name,)}
    run(workdir, range(3, 7), resume_step=3, **fields)
  noted = files.json_text.read_object(workdir / "trackers.json")[name]
  assert noted["complete"]
  return noted["id"]


def records(path):
  """Records of a .wandb file, in the format of LevelDB's log files."""
  from wandb.proto import wandb_internal_pb2

  data, at, parts = path.read_bytes(), 7, b""
  assert data[:4] == b":W&B"
  while at + 7 <= len(data):
    block_left = 32768 - at % 32768
    if block_left < 7:
      at += block_left
      continue
    _, length, kind = struct.unpack("<IHB", data[at : at + 7])
    parts += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield wandb_internal_pb2.Record.FromString(parts)
      parts = b""


def test_wandb_offline(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="W&B's client is not installed")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_API_KEY", KEY)
  workdir = tmp_path / "rl"
  workdir.mkdir()
  name = killed_and_finished(workdir, "wandb")
  history, configs, artifacts, exits = [], {}, [], []
  for path in sorted((workdir / "wandb").glob(f"offline-*/run-{name}.wandb")):
    for record in records(path):
      kind = record.WhichOneof("record_type")
      if kind == "history":
        row = {
          item.key or "/".join(item.nested_key): item.value_json
          for item in record.history.item
        }
        history.append((record.history.step.num, row))
      elif kind == "run":
        assert record.run.run_id == name
        assert record.run.project == "perl_jax"
        assert record.run.display_name == "pipeline/rl"
        assert record.run.run_group == "pipeline"
        assert record.run.job_type == "rl"
      elif kind == "config":
        configs |= {item.key: item.value_json for item in record.config.update}
      elif kind == "artifact":
        artifacts += [e.path for e in record.artifact.manifest.contents]
      elif kind == "exit":
        exits.append(record.exit.exit_code)
  got = [
    (step, float(row["train/loss"]))
    for step, row in history
    if "train/loss" in row
  ]
  assert got == LOSSES
  assert [s for s, row in history if "validation/loss" in row] == NAN_AT
  assert history[-1][1]["summary/kl"] == "0.25"
  assert configs["lora"] == '{"rank":4}'
  assert exits == [1, 0]
  found = {"config.json", "summary.json", "report.html"}
  assert set(artifacts) == found
  written = (p.read_bytes() for p in workdir.rglob("*") if p.is_file())
  assert not any(KEY.encode() in text for text in written)


def test_trackio(tmp_path):
  pytest.importorskip("trackio", reason="trackio is not installed")
  workdir, place = tmp_path / "rl", tmp_path / "trackio"
  workdir.mkdir()
  code = (
    "import pathlib, sys\n"
    "import trackio\n"
    "from tests.reporting.trackers import recorder, test_clients\n"
    "trackio.gpu_available = None  # nobody asks\n"
    "workdir = pathlib.Path(sys.argv[1])\n"
    "print(test_clients.killed_and_finished(workdir, 'trackio'))\n"
  )
  # Where its database is it asks when it is imported.
  environment = {**os.environ, "TRACKIO_DIR": str(place)}
  environment["PYTHONPATH"] = os.pathsep.join(sys.path)
  done = subprocess.run(
    [sys.executable, "-c", code, str(workdir)],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  name = files.json_text.read_object(workdir / "trackers.json")["trackio"]["id"]
  assert re.fullmatch("pipeline/rl-[0-9a-f]{8}", name)
  assert name in done.stdout
  with sqlite3.connect(place / "perl_jax.db") as database:
    rows = database.execute(
      "SELECT step, metrics, run_id FROM metrics WHERE run_name = ?", (name,)
    ).fetchall()
    configs = database.execute("SELECT config FROM configs").fetchall()
    artifacts = database.execute("SELECT name FROM artifacts").fetchall()
  scalars = [(step, json.loads(text)) for step, text, _ in rows]
  got = [(s, row["train/loss"]) for s, row in scalars if "train/loss" in row]
  assert sorted(got) == LOSSES
  assert sorted(s for s, r in scalars if "validation/loss" in r) == NAN_AT
  assert len({run_id for *_, run_id in rows}) == 1
  assert json.loads(configs[0][0])["lora"] == {"rank": 4}
  stem = name.replace("/", "-")
  assert {found for (found,) in artifacts} == {
    f"{stem}-{file}" for file in ("config.json", "summary.json", "report.html")
  }


@contextlib.contextmanager
def mlflow_server(place):
  """The address of a server with a database and artifacts in a directory."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  url = f"http://127.0.0.1:{port}"
  command = [
    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
    *("--host", "127.0.0.1", "--port", str(port)),
    *("--backend-store-uri", f"sqlite:///{place}/mlflow.db"),
    *("--artifacts-destination", str(place / "artifacts")),
  ]
  environment = {
    **os.environ,
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
  }
  log = place / "server.log"
  with log.open("wb") as output:
    server = subprocess.Popen(
      command, env=environment, stdout=output, stderr=output, cwd=place
    )
    try:
      until = time.monotonic() + 120
      while True:
        try:
          urllib.request.urlopen(f"{url}/health").close()
          break
        except OSError:
          ended = server.poll() is not None or time.monotonic() > until
          assert not ended, log.read_text()
          time.sleep(0.2)
      yield url
    finally:
      server.terminate()
      server.wait()


@pytest.mark.slow
def test_mlflow_on_a_server(tmp_path, monkeypatch):
  pytest.importorskip("mlflow", reason="MLflow's client is not installed")
  for package in ("flask", "sqlalchemy", "alembic", "aiohttp", "pandas"):
    pytest.importorskip(package, reason="MLflow's server needs it")
  import mlflow

  monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
  workdir, place = tmp_path / "rl", tmp_path / "server"
  workdir.mkdir()
  place.mkdir()
  with mlflow_server(place) as url:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    name = killed_and_finished(workdir, "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("perl_jax")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == name
    assert found.info.run_name == "pipeline/rl"
    assert found.info.status == "FINISHED"
    assert found.data.params["lora.rank"] == "4"
    assert found.data.params["data.buckets"] == "[8, 16]"
    assert found.data.metrics["summary/kl"] == 0.25
    losses = client.get_metric_history(name, "train/loss")
    assert sorted((m.step, m.value) for m in losses) == LOSSES
    other = client.get_metric_history(name, "validation/loss")
    assert sorted(m.step for m in other) == NAN_AT
    assert all(math.isnan(m.value) for m in other)
    listed = {file.path for file in client.list_artifacts(name)}
    assert listed == {"config.json", "summary.json", "report.html"}
    text = mlflow.artifacts.load_text(f"runs:/{name}/config.json")
    assert files.json_text.parse(text) == CONFIG
  # The server has gone, and a run is none the worse for it.
  other = tmp_path / "alone"
  other.mkdir()
  monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
  run(other, range(2), summary={}, names=("mlflow",))
  assert (other / "summary.json").is_file()


def test_mlflow_that_does_not_answer_is_not_asked_for_long(monkeypatch):
  pytest.importorskip("mlflow", reason="MLflow's client is not installed")
  for name, value in (
    ("MAX_RETRIES", "9"),
    ("BACKOFF_FACTOR", "0"),
    ("BACKOFF_JITTER", "0"),
  ):
    monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
  monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
  monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
  asked = []
  with socket.create_server(("127.0.0.1", 0)) as server:

    def refuse():
      with contextlib.suppress(OSError):
        while True:
          connection, _ = server.accept()
          asked.append(1)
          connection.close()

    threading.Thread(target=refuse, daemon=True).start()
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    start = trackers.clients.Start("", "rl", "", "rl", pathlib.Path(), None)
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
      trackers.CLIENTS["mlflow"](start)
    server.shutdown(socket.SHUT_RDWR)
  assert len(asked) == 2


def test_every_tracker_has_a_package():
  assert trackers.PACKAGES.keys() == trackers.CLIENTS.keys()
  assert trackers.missing(["no_such_tracker", "json"]) == ["no_such_tracker"]


def test_a_folder_of_the_name_is_no_package(tmp_path, monkeypatch):
  """`python -m perl_jax.main` where another project has left ./wandb."""
  (tmp_path / "no_such_tracker").mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  assert trackers.missing(["no_such_tracker"]) == ["no_such_tracker"]

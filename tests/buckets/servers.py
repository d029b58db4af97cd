"""Stores on this machine: `python -m tests.buckets.servers SCHEME PORT`.

`gcp-storage-emulator` for gs:// and `moto` for s3://, each with a bucket. The
emulator knows no conditions; the one that locks need is added here, in one
thread, so that it is whole.
"""

import contextlib
import http
import os
import socket
import subprocess
import sys

import pytest

BUCKET = "bucket"
READY = "ready"
PACKAGES = {
  "gs": ("gcsfs", "gcp_storage_emulator"),
  "s3": ("s3fs", "moto"),
}
# Of aiohttp, in the libraries: a request of a megabyte is sent at once.
WARNINGS = (pytest.mark.filterwarnings("ignore:Sending a large body"),)


def environment(scheme, port):
  """What a command needs to find the server of a scheme."""
  address = f"http://127.0.0.1:{port}"
  if scheme == "gs":
    return {
      "STORAGE_EMULATOR_HOST": address,
      # Who is asked which kind of bucket it is answers in the cloud alone.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
  return {
    "AWS_ENDPOINT_URL": address,
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
  }


def started(scheme):
  """Starts a server; returns the process and what finds it, once it answers."""
  for package in PACKAGES[scheme]:
    pytest.importorskip(
      package, reason=f"{package} is not installed: requirements-parity.txt"
    )
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  process = subprocess.Popen(
    [sys.executable, "-m", "tests.buckets.servers", scheme, str(port)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  if process.stdout.readline().strip() != READY:
    process.communicate()
    raise RuntimeError(f"the server of {scheme}:// did not start")
  return process, environment(scheme, port)


def serve_gs(port):
  from gcp_storage_emulator import exceptions, server
  from gcp_storage_emulator.handlers import objects

  upload = objects._multipart_upload

  def conditional(request, response, storage):
    if request.query.get("ifGenerationMatch") == ["0"]:
      try:
        storage.get_file_obj(
          request.params["bucket_name"], request.data["meta"]["name"]
        )
      except exceptions.NotFound:
        pass
      else:
        response.status = http.HTTPStatus.PRECONDITION_FAILED
        return
    upload(request, response, storage)

  objects._multipart_upload = conditional
  server.create_server(
    "127.0.0.1", port, in_memory=True, default_bucket=BUCKET
  ).start()


def serve_s3(port):
  import boto3
  from moto.server import ThreadedMotoServer

  ThreadedMotoServer("127.0.0.1", port).start()
  os.environ.update(environment("s3", port))
  boto3.client("s3").create_bucket(Bucket=BUCKET)


if __name__ == "__main__":
  with contextlib.redirect_stdout(sys.stderr):
    {"gs": serve_gs, "s3": serve_s3}[sys.argv[1]](int(sys.argv[2]))
  print(READY, flush=True)
  sys.stdin.read()  # until whoever has started it is gone
  os._exit(0)

"""A hub on this machine: what `huggingface_hub` asks of it when it pushes.

It keeps what is committed. Files come in the body of the commit, as small files
of the real hub do.
"""

import base64
import contextlib
import http.server
import json
import re
import threading

import pytest
import yaml
from huggingface_hub import constants

TOKEN = "hf_a_token_that_nobody_may_see"


class Hub:
  """What the server knows.

  Attributes:
    repos: Files by name, of each repository.
    private: Whether each is private.
    asked: (method, path) of the requests so far.
    refuse: Paths (patterns) that are answered with 403.
    who: What it says of whoever asks.
    url: Its address.
  """

  def __init__(self):
    self.repos, self.private, self.asked, self.refuse = {}, {}, [], []
    self.who = {"name": "me", "type": "user"}
    self.url = ""

  def answer(self, method, path, body):
    """(status, JSON) of a request."""
    self.asked.append((method, path))
    if any(re.search(pattern, path) for pattern in self.refuse):
      return 403, {"error": "this token may not write"}
    if path == "/api/whoami-v2":
      return 200, self.who
    if path == "/api/validate-yaml":
      front = re.match("---\n(.*?)\n---", json.loads(body)["content"], re.S)
      assert isinstance(yaml.safe_load(front[1]), dict)
      return 200, {"errors": [], "warnings": []}
    if path == "/api/repos/create":
      asked = json.loads(body)
      name = f"{asked.get('organization') or 'me'}/{asked['name']}"
      if name in self.repos:
        return 409, {"error": "there is one", "url": f"{self.url}/{name}"}
      self.repos[name] = {}
      self.private[name] = asked.get("visibility", "") == "private" or (
        asked.get("private", False)
      )
      return 200, {"url": f"{self.url}/{name}", "name": name}
    found = re.fullmatch(r"/api/models/([\w-]+/[\w.-]+)(/\w+/main)?", path)
    name, what = found[1], found[2]
    if what == "/preupload/main":
      files = [
        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
        for f in json.loads(body)["files"]
      ]
      return 200, {"files": files}
    if what == "/commit/main":
      for line in map(json.loads, body.decode().splitlines()):
        if line["key"] == "file":
          value = line["value"]
          content = base64.b64decode(value["content"])
          self.repos[name][value["path"]] = content
      url = f"{self.url}/{name}/commit/0123"
      return 200, {"success": True, "commitOid": "0123", "commitUrl": url}
    private = self.private[name]
    return 200, {"id": name, "private": private, "tags": [], "siblings": []}


@contextlib.contextmanager
def serving():
  """The hub of a server while the block runs."""
  hub, lock = Hub(), threading.Lock()

  class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
      size = int(self.headers.get("Content-Length") or 0)
      body = self.rfile.read(size)
      assert self.headers["Authorization"] == f"Bearer {TOKEN}"
      with lock:
        path = self.path.partition("?")[0]
        status, found = hub.answer(self.command, path, body)
      text = json.dumps(found).encode()
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(text)))
      self.end_headers()
      self.wfile.write(text)

    do_GET = do_POST = answer

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
      yield hub
    finally:
      server.shutdown()
      thread.join()


@pytest.fixture(name="hub")
def hub_fixture(monkeypatch):
  """A hub that this process is logged in to."""
  with serving() as hub:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub

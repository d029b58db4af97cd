"""A real HTTP server on this machine that answers as it is told."""

import contextlib
import http.server
import json
import threading


class Server:
  """What a test says and looks at.

  Attributes:
    url: Address.
    plan: `(status, headers, body, seconds)` of the next answers; a status may
      be `(status, reason)`, and a body of None is the scores. When it is empty,
      scores are answered.
    asked: JSON of the requests so far.
    headers: Their headers.
    released: Ends the waiting of slow answers.
  """

  def __init__(self):
    self.plan, self.asked, self.headers = [], [], []
    self.url, self.released = "", threading.Event()

  def answer(self, request):
    """The length of what was answered last, for each conversation."""
    lengths = [len(c[-1]["content"]) for c in request["conversations"]]
    return json.dumps({"scores": lengths})


@contextlib.contextmanager
def serving():
  """A `Server` while the block runs."""
  found, lock = Server(), threading.Lock()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      size = int(self.headers["Content-Length"])
      request = json.loads(self.rfile.read(size))
      with lock:
        found.asked.append(request)
        found.headers.append(dict(self.headers))
        planned = found.plan.pop(0) if found.plan else (200, {}, None, 0)
      status, headers, body, seconds = planned
      found.released.wait(seconds)
      if body is None:
        body = found.answer(request)
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        self.send_response(
          *(status if isinstance(status, tuple) else (status,))
        )
        for name, value in headers.items():
          self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    found.url = f"http://127.0.0.1:{server.server_port}/score"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield found
    finally:
      found.released.set()
      server.shutdown()
      thread.join()

"""Reports and pages of the site in a browser: nothing is wider than the window.

A phone's width and a desk's, light and dark, in a headless Chromium. Pages are
measured in frames of that width; screenshots are kept in the directory of the
test, for who wants to look.
"""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading

import pytest

from tests import documents
from tests.reporting import runs, test_comparison

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
WIDTHS = (1200, 400)
SCHEMES = {"dark": 0, "light": 1}  # as Blink counts them
# Of every page: its width, its ground, and what sticks out. A table or a block
# of code may be wider than a box that scrolls.
PROBE = """<!doctype html><body><script>
const pages = PAGES, width = WIDTH, found = [];
const next = ms => new Promise(done => setTimeout(done, ms));
const held = (element, body) => {
  for (let a = element.parentElement; a && a !== body; a = a.parentElement)
    if (/auto|scroll|hidden|clip/.test(getComputedStyle(a).overflowX) &&
        a.getBoundingClientRect().right <= width + 1) return true;
  return false;
};
(async () => {
  for (const page of pages) {
    const frame = document.createElement('iframe');
    frame.style.cssText = `width:${width}px;height:900px;border:0`;
    frame.src = page;
    document.body.append(frame);
    await new Promise(done => frame.onload = done);
    await next(100);
    const inside = frame.contentDocument, body = inside.body;
    const out = [...body.querySelectorAll('*')].filter(e => {
      const box = e.getBoundingClientRect();
      return box.width && box.height && box.right > width + 1 &&
        box.left < width && getComputedStyle(e).visibility !== 'hidden' &&
        !held(e, body);
    });
    const at = e => (e.tagName + '.' + (e.className.baseVal ?? e.className));
    const ground = getComputedStyle(body).backgroundColor;
    found.push({page, scroll: inside.documentElement.scrollWidth, ground,
                out: out.slice(0, 3).map(at)});
    frame.remove();
  }
  document.body.innerHTML = '<pre></pre>';
  document.body.firstChild.textContent = JSON.stringify(found);
})();
</script></body>"""
FRAME = """<!doctype html><body style="margin:0">
<iframe src="{page}" style="width:{width}px;height:1600px;border:0"></iframe>
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The site, a report of a pipeline, and one of several runs."""
  for module in ("mkdocs", "material", "mkdocstrings", "nbconvert"):
    pytest.importorskip(module, reason="requirements-docs.txt is not installed")
  folder = tmp_path_factory.mktemp("widths")
  done = subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "--site-dir", folder / "site"],
    cwd=documents.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  (folder / "report.html").write_text(runs.render(runs.pipeline()))
  (folder / "compared.html").write_text(test_comparison.compared())
  return folder


@pytest.fixture(scope="module")
def address(folder):
  handler = functools.partial(Quiet, directory=str(folder))
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{server.server_port}"
  server.shutdown()
  server.server_close()


def chromium(*arguments, scheme):
  done = subprocess.run(
    [
      *(CHROMIUM, "--headless", "--no-sandbox", "--hide-scrollbars"),
      # Else Chromium looks for its maker's hosts at each start.
      *("--disable-background-networking", "--disable-component-update"),
      f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
      *arguments,
    ],
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def measured(folder, address, pages, width, scheme):
  text = PROBE.replace("PAGES", json.dumps(pages)).replace("WIDTH", str(width))
  (folder / "probe.html").write_text(text)
  said = chromium(
    "--virtual-time-budget=600000",
    "--window-size=1400,1000",
    *("--dump-dom", f"{address}/probe.html"),
    scheme=scheme,
  )
  found = re.search(r"<pre>(.*?)</pre>", said, re.DOTALL)
  assert found, said[:2000]
  return json.loads(html.unescape(found[1]))


def is_dark(colour):
  red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
  return red + green + blue < 3 * 128


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(folder, address, width, scheme):
  site = sorted((folder / "site").rglob("*.html"))
  pages = ["report.html", "compared.html"] + [
    path.relative_to(folder).as_posix()
    for path in site
    if path.name != "404.html"
  ]
  assert len(pages) > 30
  found = measured(folder, address, pages, width, scheme)
  assert [page["page"] for page in found] == pages
  wide = [p for p in found if p["scroll"] > width or p["out"]]
  assert wide == []
  others = [p["page"] for p in found
            if is_dark(p["ground"]) != (scheme == "dark")]  # fmt: skip
  assert others == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_screenshots(folder, address, tmp_path, width, scheme):
  """They are made, and are not empty."""
  pages = ("report.html", "compared.html", "site/index.html", "site/tour.html")
  for page in pages:
    (folder / "frame.html").write_text(FRAME.format(page=page, width=width))
    name = page.replace("/", "_").replace(".html", f"_{width}_{scheme}.png")
    chromium(
      f"--screenshot={tmp_path / name}",
      f"--window-size={max(width, 500)},1600",
      f"{address}/frame.html",
      scheme=scheme,
    )
    assert (tmp_path / name).stat().st_size > 10_000


def test_what_sticks_out_is_found(folder, address):
  (folder / "wide.html").write_text(
    "<body><p style='width:900px'>a</p><div style='overflow:auto'>"
    "<p style='width:900px'>b</p></div></body>"
  )
  (found,) = measured(folder, address, ["wide.html"], 400, "light")
  assert found["scroll"] > 400 and found["out"] == ["P."]

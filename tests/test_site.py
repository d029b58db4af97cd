"""The site of docs/: it builds without a warning, and its links lead somewhere.

The links are followed in the HTML, apart from what MkDocs checks itself.
"""

import html.parser
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parents[1]
WHY = "requirements-docs.txt is not installed"
OUTSIDE = ("http:", "https:", "mailto:", "data:")


class Page(html.parser.HTMLParser):
  """Anchors, and targets of links, images, styles and scripts of a page."""

  def __init__(self, text):
    super().__init__()
    self.anchors, self.targets = {"", "__top"}, []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    given = dict(attrs)
    self.anchors |= {given.get("id"), given.get("name")}
    self.targets += [given[a] for a in ("href", "src") if given.get(a)]


def missing(site):
  """Links of the pages of a folder whose file or anchor is not there."""
  pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
  found = []
  for path, page in pages.items():
    for target in page.targets:
      if target.startswith(OUTSIDE):
        continue
      file, _, anchor = urllib.parse.unquote(target).partition("#")
      there = (path.parent / file).resolve() if file else path
      if there in pages and anchor not in pages[there].anchors:
        found.append(f"{path.relative_to(site)}: {target} has no anchor")
      elif not there.exists():
        found.append(f"{path.relative_to(site)}: {target} is not there")
  return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  for module in ("mkdocs", "material", "mkdocstrings", "nbconvert"):
    pytest.importorskip(module, reason=WHY)
  folder = tmp_path_factory.mktemp("docs").resolve() / "site"
  done = subprocess.run(
    [*(sys.executable, "-m", "mkdocs", "build", "--strict"),
     *("--site-dir", folder)],
    cwd=ROOT, capture_output=True, text=True,
    env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr + done.stdout
  return folder


def test_links_of_the_site(site):
  # Of a page that is not found, a server may show any address.
  assert [line for line in missing(site) if "404.html" not in line] == []


def test_all_pages_are_there(site):
  made = {path.relative_to(site).with_suffix("") for path in
          site.rglob("*.html")}  # fmt: skip
  for page in (ROOT / "docs").rglob("*.md"):
    name = page.relative_to(ROOT / "docs").with_suffix("")
    name = name.with_name("index") if name.name == "README" else name
    assert name in made


def test_files_outside_docs_are_pages_or_copies(site):
  """Links such as ../benchmarks/README.md, which work on GitHub as they are."""
  for name in ("benchmarks/logs/kill_test.log", "configs/rl.py"):
    assert (site / "files" / name).read_bytes() == (ROOT / name).read_bytes()
  assert (
    'href="benchmarks/index.html#over-optimisation"'
    in (site / "results.html").read_text()
  )


def test_a_notebook_is_a_page_with_its_outputs(site):
  text = (site / "tour.html").read_text()
  assert 'href="your-data.html"' in text
  (image, *_) = re.findall(r'src="(images/[^"]+\.png)"', text)
  assert (site / image).read_bytes().startswith(b"\x89PNG")


def test_reference_has_docstrings_with_their_formulas(site):
  text = (site / "reference/objectives.html").read_text()
  assert "-log sigmoid(r_chosen - r_rejected)" in text
  assert 'id="perl_jax.objectives.kl.kl_k3"' in text


def test_links_to_nothing_are_found(tmp_path):
  (tmp_path / "a.html").write_text(
    '<h1 id="x"></h1><a href="#x"></a><a href="#y"></a><a href="b.html">'
    '</a><a href="a.html#x"></a><img src="no.png">'
  )
  assert [line.split(": ")[1] for line in missing(tmp_path.resolve())] == [
    "#y has no anchor",
    "b.html is not there",
    "no.png is not there",
  ]

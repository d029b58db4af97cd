"""The notebook of docs/ from top to bottom, as Jupyter runs it."""

import re

import pytest

from tests import documents
from tests.test_tour import cells, said

WHY = "requirements-docs.txt is not installed"
nbclient = pytest.importorskip("nbclient", reason=WHY)
nbformat = pytest.importorskip("nbformat", reason=WHY)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
  found = nbformat.read(documents.DOCS / "tour.ipynb", as_version=4)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(documents.ROOT))
    patch.setenv("XLA_FLAGS", "")  # one device, as a reader has
    place = {"metadata": {"path": str(tmp_path_factory.mktemp("tour"))}}
    nbclient.NotebookClient(found, timeout=7200, resources=place).execute()
  return found


def printed(notebook, pattern):
  """Numbers in what the cells printed, by a pattern with a group for each."""
  text = "\n".join(t for c in cells(notebook, "code") for t in said(c))
  found = re.search(pattern, text)
  assert found, f"no cell printed {pattern!r}"
  return [float(number) for number in found.groups()]


def test_the_policy_is_better_than_the_anchor(notebook):
  before, after = printed(notebook, r"reward: (\S+) -> (\S+)")
  assert after > before + 0.5
  before, after = printed(notebook, r"gold: (\S+) -> (\S+)")
  assert after > before + 0.1
  (kl,) = printed(notebook, r"KL to the anchor: (\S+) nats")
  assert 0.05 < kl < 1.0


def test_the_reward_model_ranks_held_out_pairs(notebook):
  accuracy, low, high = printed(
    notebook, r"ranks (\S+)% [^(]*\(95 % interval (\S+)% to (\S+)%\)"
  )
  assert accuracy > 80 and low < accuracy < high


def test_the_export_says_the_same(notebook):
  text = "".join(t for c in cells(notebook, "code") for t in said(c))
  assert "the same answers: True" in text


def test_it_is_what_is_committed(notebook):
  """Numbers of a run are those in the file, but for other hardware."""
  committed = nbformat.read(documents.DOCS / "tour.ipynb", as_version=4)
  for pattern in (r"gold: (\S+) -> (\S+)", r"ranks (\S+)%"):
    scale = 100 if "%" in pattern else 1
    assert printed(notebook, pattern) == pytest.approx(
      printed(committed, pattern), abs=0.06 * scale
    )

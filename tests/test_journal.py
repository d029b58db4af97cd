"""Rows of a run that goes on: what is missing is said, doubles are dropped."""

import json
import logging

import pytest

from perl_jax import files, journal

STEPS = [0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 10, 20, 30]


def write(path, steps=STEPS):
  """A file as a run writes it, and what a checkpoint then notes."""
  opened = journal.Journal(path)
  for number, step in enumerate(steps):
    opened.append([{"step": step, "loss": number / 7}])
  opened.close()
  # Through JSON, as in a checkpoint.
  return json.loads(json.dumps(opened.record()))


def lines(path):
  return path.read_text().splitlines(keepends=True)


def resume(path, noted, caplog, step=31):
  """The lines after resuming, and what was said."""
  caplog.clear()
  with caplog.at_level(logging.INFO, "absl"):
    opened = journal.Journal(path, step, noted)
    record = opened.record()
    opened.close()
  return lines(path), "\n".join(caplog.messages), record


@pytest.fixture
def written(tmp_path):
  path = tmp_path / "metrics.jsonl"
  return path, write(path)


def test_a_whole_file_stays_and_nothing_is_said(written, caplog):
  path, noted = written
  before, inode = lines(path), path.stat().st_ino
  assert resume(path, noted, caplog) == (before, "", noted)
  assert path.stat().st_ino == inode  # it was not written anew


def test_lines_after_the_checkpoint_are_not_counted(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  noted = write(path, STEPS[:8])
  before = lines(path)
  write(path)
  assert resume(path, noted, caplog, 6) == (before, "", noted)


def test_a_noted_step_that_is_written_anew_is_not_missing(written, caplog):
  """Its evaluation was abandoned: the line of the step comes again."""
  path, noted = written
  whole = lines(path)
  assert resume(path, noted, caplog, 30)[:2] == (whole[:-1], "")


@pytest.mark.parametrize(
  ("gone", "named"),
  [
    (slice(0, 1), "step 0"),
    (slice(0, 5), "steps 0 to 3"),
    (slice(3, 4), "step 2"),  # one of two
    (slice(9, None), "steps 6, 10, 20 and 30"),
    (slice(0, None), "steps 0 to 6, 10, 20 and 30"),
  ],
)
def test_what_is_missing_is_named(written, caplog, gone, named):
  path, noted = written
  kept = lines(path)
  del kept[gone]
  path.write_text("".join(kept))
  found, said, _ = resume(path, noted, caplog)
  assert found == kept
  assert str(path) in said and f"lacks rows of {named}, which" in said


def test_a_file_that_is_gone(written, caplog):
  path, noted = written
  path.unlink()
  found, said, record = resume(path, noted, caplog)
  assert found == [] and "lacks rows of steps 0 to 6, 10, 20 and 30" in said
  # From here on it is checked against what is there.
  assert resume(path, record, caplog)[1] == ""


@pytest.mark.parametrize("at", [0, 3, 12])
@pytest.mark.parametrize("behind", [0, 4])
def test_a_line_twice_is_dropped(written, caplog, at, behind):
  path, noted = written
  whole = lines(path)
  twice = list(whole)
  twice.insert(at + 1 + behind, whole[at])
  path.write_text("".join(twice))
  found, said, record = resume(path, noted, caplog)
  assert found == whole and record == noted
  assert "had rows twice" in said and f"at step {STEPS[at]}: they" in said
  assert not list(path.parent.glob(".*"))


def test_equal_rows_that_were_written_stay(tmp_path, caplog):
  """Two greedy samples may be equal; a third of them was not written."""
  path = tmp_path / "samples.jsonl"
  opened = journal.Journal(path)
  opened.append([{"step": 2, "policy": "tea"}] * 2)
  opened.close()
  whole = lines(path)
  assert resume(path, opened.record(), caplog)[:2] == (whole, "")
  path.write_text("".join(whole + whole[:1]))
  assert resume(path, opened.record(), caplog)[0] == whole


def test_the_file_of_another_run_behind_this_one(written, caplog):
  path, noted = written
  whole = lines(path)
  path.write_text("".join(whole + [line.replace("0.", "1.") for line in whole]))
  found, said, _ = resume(path, noted, caplog)
  assert found == whole and "at steps 0 to 6, 10, 20 and 30" in said


def test_a_changed_number_is_said(written, caplog):
  path, noted = written
  text = path.read_text()
  path.write_text(text.replace('"loss": 1.0', '"loss": 3.0'))
  assert path.read_text() != text
  found, said, _ = resume(path, noted, caplog)
  assert len(found) == len(STEPS) and "is not as it was written" in said


@pytest.mark.parametrize("damage", [b"\xff", b"{", b"\x00"])
def test_a_line_that_cannot_be_read_is_named(written, caplog, damage):
  """And removing it, as the message says, lets the run go on."""
  path, noted = written
  damaged = path.read_bytes().splitlines(keepends=True)
  damaged[4] = damaged[4][:3] + damage + damaged[4][4:]
  path.write_bytes(b"".join(damaged))
  with pytest.raises(ValueError, match=r"metrics\.jsonl:5: .*or remove it"):
    journal.Journal(path, 31, noted)
  assert path.read_bytes() == b"".join(damaged)
  path.write_bytes(b"".join(damaged[:4] + damaged[5:]))
  assert "lacks rows of step 3," in resume(path, noted, caplog)[1]


def test_an_older_checkpoint_has_noted_nothing(written, caplog):
  path, _ = written
  path.write_text("".join(lines(path)[1:]))
  assert resume(path, None, caplog)[1] == ""


def test_steps_are_noted_in_little_room(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text("")
  opened = journal.Journal(path)
  opened.append({"step": step} for step in range(10_000))
  opened.append({"step": step} for step in range(0, 10_000, 500))
  record = opened.record()
  opened.close()
  assert len(json.dumps(record)) < 3000
  assert len(files.read_jsonl(path)) == 10_020
  assert resume_counts(record) == 10_020


def resume_counts(record):
  return sum(
    len(range(first, last + 1, stride)) * count
    for first, last, stride, count in record["steps"]
  )

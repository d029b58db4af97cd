"""What an evaluation has computed is kept by batches, and is there again."""

import json
import logging
import math
import os

import pytest

from perl_jax import files
from perl_jax.hosts import signals
from perl_jax.tasks.evaluation import so_far
from perl_jax.tasks.initial import sealed
from perl_jax.tasks.training import standing

DIGESTS = {"policy": "a" * 64, "rows": "b" * 64, "reward function": "c" * 64}
BATCHES = ((4, 0), (1, 3), (2,))


class Killed(BaseException):
  pass


def now(**digests):
  found = DIGESTS | digests
  return standing.Standing(found, dict.fromkeys(found, "here"))


def value(i):
  """What JSON has to bring back: a text, a third, and what is no number."""
  return {"text": f"\ud800 {i}\n", "odd": [i / 3, math.nan, -math.inf, None]}


def read(index, found):
  numbers = files.numbers(found["odd"])
  return index, found["text"], list(map(repr, numbers))


def compute(workdir, until=None, stands_on=None, parts=("one", "two")):
  """(rows by part, batches that were computed, claims); may end early."""
  found, computed, claims = {}, [], []

  def claim():
    assert not (workdir / so_far.NAME).exists() or claims == []
    claims.append(1)
    (workdir / "config.json").write_text("{}")

  with so_far.SoFar(workdir, stands_on or now(), claim) as kept:
    for name in parts:
      found[name] = {}
      for rows in BATCHES:

        def work(name=name, rows=rows):
          if len(computed) == until:
            raise Killed
          computed.append((name, rows))
          return {i: value(i) for i in rows}

        found[name] |= kept.part(name).batch(rows, work, read)
  return found, computed, claims


def killed(workdir, until):
  with pytest.raises(Killed):
    compute(workdir, until)
  return workdir / so_far.NAME


EVERY = [(name, rows) for name in ("one", "two") for rows in BATCHES]


@pytest.mark.parametrize("until", range(6))
def test_what_is_computed_is_not_computed_again(tmp_path, until):
  (tmp_path / "whole").mkdir()
  whole, computed, claims = compute(tmp_path / "whole")
  assert (computed, claims) == (EVERY, [1])
  path = killed(tmp_path, until)
  assert path.exists() == (tmp_path / "config.json").exists() == (until > 0)
  found, computed, claims = compute(tmp_path)
  assert (found, computed, claims) == (whole, EVERY[until:], [1])
  assert not path.exists()
  assert (tmp_path / sealed.checksums.LISTING).exists()


def test_it_may_be_killed_again_and_again(tmp_path):
  for _ in range(5):
    killed(tmp_path, 1)
  assert compute(tmp_path)[1] == EVERY[5:]


@pytest.mark.parametrize("left", [1, 20])
def test_a_torn_line_is_computed_again(tmp_path, left, caplog):
  path = killed(tmp_path, 3)
  lines = path.read_bytes().splitlines(keepends=True)
  assert len(lines) == 4
  path.write_bytes(b"".join(lines[:3]) + lines[3][:-left])
  # Without its line break alone, the line is whole.
  again = 2 if left > 1 else 3
  assert compute(tmp_path, parts=("one",))[1] == EVERY[again:3]
  assert "not as they were written" not in caplog.text


@pytest.mark.parametrize("damage", [b"", b'"sha256": "0"}\n'])
def test_a_torn_line_is_gone_before_the_next_one(tmp_path, damage):
  path = killed(tmp_path, 2)
  torn = path.read_bytes()
  path.write_bytes(torn + b'{"of": "one", ' + damage[:5])
  killed(tmp_path, 1)
  assert path.read_bytes().startswith(torn)
  assert len(files.read_jsonl(path)) == 4


def test_a_number_that_has_changed_is_seen(tmp_path, caplog):
  path = killed(tmp_path, 3)
  before = path.read_text()
  assert before.count("0.3333333333333333") == 1
  path.write_text(before.replace("0.3333333333333333", "0.3333333333333334"))
  with caplog.at_level(logging.WARNING, "absl"):
    found, computed, _ = compute(tmp_path)
  assert computed == [EVERY[1], *EVERY[3:]]
  assert "not as they were written, 1 of 4" in caplog.text
  (tmp_path / "whole").mkdir()
  assert found == compute(tmp_path / "whole")[0]


@pytest.mark.parametrize("cut", [lambda x: b"", lambda x: x[:30]])
def test_a_file_that_is_as_good_as_gone_is_begun_anew(tmp_path, cut):
  path = killed(tmp_path, 2)
  path.write_bytes(cut(path.read_bytes()))
  assert compute(tmp_path)[1] == EVERY


def test_damage_that_has_a_way_out_is_refused_by_name(tmp_path):
  path = killed(tmp_path, 3)
  first, second, *others = path.read_bytes().splitlines(keepends=True)
  for left, said in (
    ([second, *others], "does not say any more what its rows were computed"),
    ([first[:9] + b"\n", second], r"so_far\.jsonl:1: not .*Remove the line"),
    ([first.replace(b"a", b"0", 1), second], "does not say any more"),
    ([first, second[:9] + b"\n", *others], r":2: not .*Remove the line"),
  ):
    path.write_bytes(b"".join(left))
    with pytest.raises(ValueError, match=said):
      compute(tmp_path)
    assert path.read_bytes() == b"".join(left)
  path.write_bytes(b"".join([first, *others]))  # the line is removed
  assert compute(tmp_path)[1] == [EVERY[0], *EVERY[3:]]


def test_what_was_computed_from_something_else_is_refused(tmp_path):
  path = killed(tmp_path, 2)
  before = path.read_bytes()
  with pytest.raises(ValueError) as caught:
    compute(tmp_path, stands_on=now(rows="d" * 64))
  said = str(caught.value)
  assert f"rows: {'b' * 12} -> {'d' * 12} (here)" in said
  assert "policy" not in said and str(path) in said
  assert path.read_bytes() == before
  path.unlink()  # as it says
  assert compute(tmp_path, stands_on=now(rows="d" * 64))[1] == EVERY


def test_a_reward_function_may_have_been_mended(tmp_path, caplog):
  path = killed(tmp_path, 2)
  mended = now(**{"reward function": "e" * 64})
  with caplog.at_level(logging.WARNING, "absl"):
    assert compute(tmp_path, stands_on=mended)[1] == EVERY[2:]
  assert "code of config.reward.fn='here' has changed" in caplog.text
  assert str(path) in caplog.text


def test_who_is_told_to_stop_says_what_is_kept(tmp_path):
  for rows in ((), (0,)):
    kept = so_far.SoFar(tmp_path, now(), lambda: None)
    with pytest.raises(signals.Stopped) as caught, kept:
      if rows:
        kept.part("one").batch(rows, lambda: {0: 1})
      raise signals.Stopped("SIGTERM")
    end = (
      f"what has been computed so far is kept in {tmp_path / so_far.NAME}."
      if rows
      else "nothing had to be saved."
    )
    assert str(caught.value) == f"Stopped by SIGTERM, {end}"


def test_a_batch_of_which_a_row_is_missing_is_computed_as_a_whole():
  part = so_far.Part({0: "old", 1: "old"}, lambda rows: None)
  new = {1: "new", 2: "new"}
  assert part.batch((1, 2), lambda: new) == new
  assert part.batch((1, 0), lambda: new) == {1: "old", 0: "old"}


def test_a_line_is_on_the_disk_before_the_next_batch(tmp_path, monkeypatch):
  """Not only with the operating system."""
  done = []
  monkeypatch.setattr(
    files.os, "fsync", lambda handle: done.append(os.fstat(handle).st_size)
  )
  path = tmp_path / so_far.NAME
  with pytest.raises(Killed):
    compute(tmp_path, 2)
  ends, size = [], 0
  for line in path.read_bytes().splitlines(keepends=True):
    size += len(line)
    ends.append(size)
  assert done == ends
  assert json.loads(path.read_text().splitlines()[0])["stands_on"] == DIGESTS

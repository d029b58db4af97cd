"""What the anchor has computed is kept, and read where it is still the same."""

import logging

import pytest

from perl_jax.hosts import signals
from perl_jax.tasks.evaluation import anchor_rows
from perl_jax.tasks.training import standing
from tests.tasks import tiny

DIGESTS = {"base": "a" * 64, "reward function": "c" * 64}
BATCHES = ((4, 0), (1, 3), (2,))
PARTS = (anchor_rows.TRAINING, anchor_rows.RESPONSES)
EVERY = [(name, rows) for name in PARTS for rows in BATCHES]


class Killed(BaseException):
  pass


def compute(workdir, until=None, digests=DIGESTS, **fields):
  """(rows by part, batches that were computed); may end early."""
  found, computed = {}, []
  config = tiny.config("dpo", **fields)
  stands_on = standing.Standing(digests, dict.fromkeys(digests, "here"))
  with anchor_rows.kept(config, workdir, stands_on) as part:
    for name in PARTS:
      found[name] = {}
      for rows in BATCHES:

        def work(name=name, rows=rows):
          if len(computed) == until:
            raise Killed
          computed.append((name, rows))
          return {i: [name, i / 3] for i in rows}

        found[name] |= part(name).batch(rows, work)
  return found, computed


def killed(workdir, until):
  with pytest.raises(Killed):
    compute(workdir, until)
  return workdir / anchor_rows.NAME


@pytest.mark.parametrize("until", range(6))
def test_it_goes_on_and_stays(tmp_path, until, caplog):
  (tmp_path / "whole").mkdir()
  whole, computed = compute(tmp_path / "whole")
  assert computed == EVERY
  path = killed(tmp_path, until)
  assert path.exists() == (until > 0)
  with caplog.at_level(logging.WARNING, "absl"):
    assert compute(tmp_path) == (whole, EVERY[until:])
    assert compute(tmp_path) == (whole, [])
  content = (tmp_path / "whole" / anchor_rows.NAME).read_bytes()
  assert path.read_bytes() == content
  assert not caplog.messages


def test_starts_of_one_batch_each(tmp_path):
  for _ in range(5):
    killed(tmp_path, 1)
  assert compute(tmp_path)[1] == EVERY[5:]


@pytest.mark.parametrize("left", [1, 2, 20])
def test_a_torn_line_is_computed_again(tmp_path, left, caplog):
  path = killed(tmp_path, 3)
  before = path.read_bytes()
  path.write_bytes(before[:-left])
  with caplog.at_level(logging.WARNING, "absl"):
    # Without its line break alone, the line is whole.
    assert compute(tmp_path)[1] == EVERY[2 if left > 1 else 3 :]
  assert not caplog.messages
  assert path.read_bytes().startswith(before)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(
  "damage",
  [
    lambda line: line.replace(b"3", b"4", 1).replace(b"a", b"b", 1),
    lambda line: line[:9] + b"\n",
    lambda line: b"\n",
    lambda line: b"[1]\n",
    lambda line: b"\xff" + line,
  ],
)
def test_a_damaged_line_and_those_after_it_are_computed_again(
  tmp_path, number, damage, caplog
):
  path = killed(tmp_path, 3)
  before = path.read_bytes()
  lines = before.splitlines(keepends=True)
  lines[number] = damage(lines[number])
  path.write_bytes(b"".join(lines))
  with caplog.at_level(logging.WARNING, "absl"):
    assert compute(tmp_path)[1] == EVERY[max(number - 1, 0) :]
  (said,) = caplog.messages
  assert said.startswith(f"{path}:{number + 1}: ")
  assert path.read_bytes().startswith(before)


def test_a_file_that_is_as_good_as_gone_is_begun_anew(tmp_path):
  path = killed(tmp_path, 2)
  path.write_bytes(path.read_bytes()[:30])
  assert compute(tmp_path)[1] == EVERY
  path.write_bytes(b"")
  assert compute(tmp_path)[1] == EVERY


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    ({"digests": DIGESTS | {"base": "d" * 64}}, "(base)"),
    ({"digests": DIGESTS | {"tokenizer": "d" * 64}}, "(tokenizer)"),
    ({"digests": {"base": "a" * 64}}, "(reward function)"),
    ({"seed": 7}, "(config)"),
    ({"data__response_len": 10}, "(config)"),
    ({"model__dtype": "bfloat16"}, "(config)"),
  ],
)
def test_what_is_of_something_else_is_not_read(tmp_path, changed, said, caplog):
  killed(tmp_path, 2)
  with caplog.at_level(logging.WARNING, "absl"):
    assert compute(tmp_path, **changed)[1] == EVERY
  (message,) = caplog.messages
  assert said in message and anchor_rows.NAME in message
  assert compute(tmp_path, **changed)[1] == []  # it is the file's now


@pytest.mark.parametrize(
  "changed",
  [
    {"digests": DIGESTS | {"code of the judge": "d" * 64}},
    {"digests": DIGESTS | {"base of the judge": "d" * 64}},
    {"steps": 5, "log_every": 2, "eval__batch_size": 4, "mesh__data": 2},
    {"base": "elsewhere", "save__keep": 3, "optimizer__learning_rate": 1.0},
  ],
)
def test_what_does_not_change_the_anchor_may_change(tmp_path, changed, caplog):
  """Fields that round sums otherwise may, as for a checkpoint."""
  killed(tmp_path, 2)
  with caplog.at_level(logging.WARNING, "absl"):
    assert compute(tmp_path, **changed)[1] == EVERY[2:]
  assert not caplog.messages


def test_who_is_told_to_stop_says_what_is_kept(tmp_path):
  stands_on, config = standing.Standing(DIGESTS, DIGESTS), tiny.config("dpo")
  for new, end in (
    (True, f"kept in {tmp_path / anchor_rows.NAME}."),
    (False, "nothing had to be saved."),
  ):
    with (
      pytest.raises(signals.Stopped) as caught,
      anchor_rows.kept(config, tmp_path, stands_on) as part,
    ):
      part("one").batch((0,), lambda: {0: 1})
      raise signals.Stopped("SIGTERM", together=new)
    assert str(caught.value).endswith(end)
    assert caught.value.by == "SIGTERM" and caught.value.together == new


def test_other_processes_do_not_write(tmp_path, monkeypatch):
  monkeypatch.setattr(anchor_rows.hosts, "is_primary", lambda: False)
  assert compute(tmp_path)[1] == EVERY
  assert not (tmp_path / anchor_rows.NAME).exists()

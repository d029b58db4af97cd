"""A workdir in a bucket: what is sent, when, and what a kill leaves."""

import json
import os
import pathlib
import shutil
import socket
import types

import pytest

from perl_jax import buckets, checkpoint
from perl_jax.buckets import copies, mirror
from perl_jax.interop import hub as hub_lib
from perl_jax.reporting.trackers import session
from tests.buckets import fixtures, servers
from tests.interop.hub_server import hub_fixture  # noqa: F401
from tests.tasks import tiny

pytestmark = list(servers.WARNINGS)


class Killed(BaseException):
  pass


def write(workdir, step, lines):
  """What a run has written by a step."""
  files = {
    "config.json": "{}",
    "metrics.jsonl": "".join(f"{n}\n" for n in range(lines)),
    f"checkpoints/{step}/_CHECKPOINT_METADATA": f"{step}",
    f"checkpoints/{step}/trainable/d/{step}0": "x" * step,
    f"checkpoints/{step}/sha256.txt": "",
    f"checkpoints/{step + 1}.orbax-checkpoint-tmp/d": "half",
    "lock.json": "{}",
  }
  for name, text in files.items():
    path = workdir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def written(workdir):
  """The files of a workdir without what is no one else's business."""
  found = tiny.tree(workdir)
  return {
    str(name): content
    for name, content in found.items()
    if ".orbax" not in str(name) and "lock" not in str(name)
  }


@pytest.fixture
def opened(store, address):
  found = mirror.Mirror(store, buckets.path_of(address), lambda: True)
  found.pull()
  return found


def there(store):
  return {name: store.read(name) for name in store.listed()}


def on_another_machine(monkeypatch, tmp_path, address):
  fixtures.fresh_machine(monkeypatch, tmp_path / "other")
  return written(buckets.fetch(address))


def test_names_are_those_of_checkpoints():
  assert copies.checkpoint_of(f"sft/{checkpoint.DIRECTORY}/3/d/x")
  assert copies.checkpoint_of("checkpoints/12/d") == "checkpoints/12"
  for other in ("checkpoints/3.orbax-checkpoint-tmp/d", "checkpoints/x", "3/d"):
    assert copies.checkpoint_of(other) == ""


def test_a_workdir_is_the_same_on_another_machine(
  monkeypatch, tmp_path, address, store, opened
):
  write(opened.path, 2, 4)
  opened.push()
  here = written(opened.path)
  assert set(there(store)) == {n for n in here}
  write(opened.path, 4, 8)
  shutil.rmtree(opened.path / "checkpoints" / "2")
  (opened.path / "summary.json").write_text("{}")
  assert opened.is_due()
  opened.push()
  assert not opened.is_due()
  here = written(opened.path)
  assert on_another_machine(monkeypatch, tmp_path, address) == here
  assert "summary.json" in here and "checkpoints/4/sha256.txt" in here
  assert not any("checkpoints/2" in name for name in here)


def test_only_what_has_changed_is_copied_and_sent(
  monkeypatch, address, store, opened
):
  write(opened.path, 2, 4)
  opened.push()
  moved, acts = [], {}
  for name in ("upload", "download"):
    acts[name] = getattr(buckets.Store, name)

    def counted(self, first, second, name=name):
      moved.append((name, second if name == "upload" else first))
      acts[name](self, first, second)

    monkeypatch.setattr(buckets.Store, name, counted)
  opened.push()
  again = mirror.Mirror(store, opened.path, lambda: True)
  again.pull()
  assert moved == []
  (opened.path / "metrics.jsonl").write_text("0\n1\n2\n3\n4\n")
  assert not again.is_due()  # lines wait for a checkpoint
  again.push()
  assert moved == [("upload", "metrics.jsonl")]
  store.write("config.json", b'{"of": "another"}')
  again.pull()
  assert moved[1:] == [("download", "config.json")]
  assert (opened.path / "config.json").read_text() == '{"of": "another"}'


@pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True)
def test_rows_so_far_come_after_their_config(store, opened, monkeypatch):
  """A machine that ends between the two leaves none without its config."""
  sent, upload = [], buckets.Store.upload

  def noted(self, path, name):
    upload(self, path, name)
    sent.append(name)

  monkeypatch.setattr(buckets.Store, "upload", noted)
  opened.path.mkdir(parents=True)
  for name in ("config.json", "so_far.jsonl", "summary.json", "a.jsonl"):
    (opened.path / name).write_text("{}")
  opened.push()
  assert sent == ["a.jsonl", "config.json", "so_far.jsonl", "summary.json"]


@pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True)
def test_lines_are_sent_once_a_minute(store, address, opened, monkeypatch):
  """Where no checkpoint comes; a log or answers, which cost money.

  What trackers write with each line is no reason to send all lines anew.
  """
  assert mirror._TRACKERS == session.STATE_FILE
  now = [1000.0]
  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(mirror, "time", clock)
  write(opened.path, 2, 4)
  opened.push()
  for name in (
    *("answers.jsonl", "so_far.jsonl", "tensorboard/tfevents.1"),
    *("trackers.json", "wandb/debug.log", "sft/trackers.json", "sft/wandb/r/x"),
  ):
    (opened.path / name).parent.mkdir(parents=True, exist_ok=True)
    (opened.path / name).write_text("{}")
    now[0] += mirror.LINES_SECONDS - 1
    assert not opened.is_due()
    now[0] += 1
    assert opened.is_due()
    opened.push()
    assert store.read(name) == b"{}" and not opened.is_due()
    now[0] += mirror.LINES_SECONDS
    assert not opened.is_due()  # nothing has come
    opened.push()


@pytest.mark.parametrize("bucket_server", [fixtures.MEMORY], indirect=True)
def test_wherever_it_is_cut_off_it_goes_on(
  monkeypatch, tmp_path, address, store, opened
):
  """Killed before each request in turn: one of two states, and its lines."""
  write(opened.path, 2, 4)
  opened.push()
  before = written(opened.path)
  write(opened.path, 4, 8)
  shutil.rmtree(opened.path / "checkpoints" / "2")
  (opened.path / "summary.json").write_text("{}")
  after = written(opened.path)
  left, states = [0], []
  acts = {name: getattr(buckets.Store, name) for name in ("write", "remove")}

  def until_killed(act):
    def asked(self, *arguments):
      if not left[0]:
        raise Killed
      left[0] -= 1
      return act(self, *arguments)

    return asked

  # One at a time, so that the order is always the same.
  monkeypatch.setattr(copies, "_AT_ONCE", 1)
  at_first = there(store)
  for allowed in range(100):
    for name in set(there(store)) - set(at_first):
      store.remove(name)
    for name, content in at_first.items():
      store.write(name, content)
    opened._seen, opened._there = {}, set(at_first)
    left[0] = allowed
    with monkeypatch.context() as patch:
      for name, act in acts.items():
        patch.setattr(buckets.Store, name, until_killed(act))
      try:
        opened.push()
        killed = False
      except Killed:
        killed = True
    found = on_another_machine(monkeypatch, tmp_path / str(allowed), address)
    steps = {name.split("/")[1] for name in found if "checkpoints" in name}
    states.append((tuple(sorted(steps)), "summary.json" in found))
    for step in steps:
      whole = after if step == "4" else before
      inside = {n: c for n, c in whole.items() if f"checkpoints/{step}/" in n}
      assert {n: found.get(n) for n in inside} == inside
    if "4" in steps:
      assert found["metrics.jsonl"] == after["metrics.jsonl"]
    if not killed:
      break
  assert found == after
  # Never without a checkpoint, and a summary only when all is there.
  assert [s for i, s in enumerate(states) if s not in states[:i]] == [
    (("2",), False),
    (("2", "4"), False),
    (("4",), False),
    (("4",), True),
  ]


def test_nothing_is_sent_once_another_has_it(address, store):
  mine = [True]
  with (
    pytest.raises(buckets.BucketError, match="not of this run any more"),
    buckets.mirrored(address, lambda: mine[0]) as path,
  ):
    write(path, 2, 4)
    mine[0] = False
  assert store.listed() == {}


def test_a_checkpoint_that_is_being_removed_here_is_removed_there(
  store, opened
):
  write(opened.path, 2, 4)
  write(opened.path, 4, 8)
  opened.push()
  (opened.path / "checkpoints/2/trainable/d/20").unlink()
  opened.push()
  assert not any("checkpoints/2/" in name for name in there(store))
  assert "checkpoints/4/sha256.txt" in there(store)


def test_nothing_is_removed_where_the_directory_is_gone(address, store):
  with buckets.mirrored(address, lambda: True) as path:
    write(path, 2, 4)
  whole = there(store)
  with buckets.mirrored(address, lambda: True) as path:
    shutil.rmtree(path)
  assert there(store) == whole and whole


def test_who_is_not_alone_removes_nothing(address, store):
  with buckets.mirrored(address, lambda: True) as path:
    write(path, 2, 4)
  with buckets.mirrored(address) as path:
    shutil.rmtree(path / "checkpoints")
    (path / "report.html").write_text("<html>")
  assert "checkpoints/2/sha256.txt" in there(store)
  assert there(store)["report.html"] == b"<html>"
  with pytest.raises(RuntimeError), buckets.mirrored(address) as p:
    (p / "half.json").write_text("{")
    raise RuntimeError
  assert "half.json" not in there(store)


def test_what_is_complete_is_sent_though_the_hub_refuses(address, store, hub):
  hub.refuse.append("/commit/")
  with (
    pytest.raises(ValueError, match="could not be pushed") as caught,
    buckets.mirrored(address) as path,
  ):
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    hub_lib.push(path, "policy", private=True)
  assert there(store) == {"model.safetensors": b"weights"}
  said = buckets.named(str(caught.value))
  assert said.startswith(f"{address} is written")
  command = said.rpartition("hf upload policy ")[2].removesuffix(" . --private")
  assert pathlib.Path(command).samefile(path)


def test_what_another_process_writes_here_is_taken_from_here(
  monkeypatch, address, opened
):
  write(opened.path, 2, 4)
  opened.push()
  (opened.path / "config.json").write_text('{"newer": true}')
  lock = {"host": socket.gethostname(), "pid": os.getpid()}
  (opened.path / "lock.json").write_text(json.dumps(lock))
  for place in (address, f"{address}/checkpoints/2"):
    copies.copied.clear()
    assert buckets.fetch(place) == buckets.path_of(place)
  assert "newer" in (opened.path / "config.json").read_text()
  (opened.path / "lock.json").write_text(json.dumps(lock | {"pid": 2**22 + 1}))
  copies.copied.clear()
  buckets.fetch(address)
  assert "newer" not in (opened.path / "config.json").read_text()


def test_a_file_and_a_folder_are_fetched(monkeypatch, tmp_path, address, store):
  store.write("data/rows.jsonl", b"{}\n")
  assert buckets.fetch(f"{address}/data/rows.jsonl").read_bytes() == b"{}\n"
  assert tiny.tree(buckets.fetch(f"{address}/data/"))
  with pytest.raises(FileNotFoundError, match=f"^{address}/none: nothing lies"):
    buckets.fetch(f"{address}/none")


def test_no_name_leads_out_of_the_copy(address):
  """Nobody but an attacker writes such an object."""
  objects = {"../x": None}
  found = buckets.Store(address)
  found._files = type(
    "Files", (), {"find": lambda self, key, detail: {
      f"{key}/{name}": {"size": 0} for name in objects
    }}
  )()  # fmt: skip
  with pytest.raises(buckets.BucketError, match="no name of a file"):
    found.listed()

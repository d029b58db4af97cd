"""Files that are nearly JSON lines: the way out that is named works."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from perl_jax.data.sources.jsonl import files
from tests.data.sources.jsonl import cases
from tests.data.text.messages import assistant, user

ROW = '{"prompt": "q", "response": "a"}'
TALK = json.dumps([user("q"), assistant("a")])


def refused(path):
  with pytest.raises(ValueError, match=path.name) as error:
    cases.read(str(path), "demonstrations")
  return str(error.value)


@pytest.mark.parametrize(
  ("name", "data", "rows"),
  [
    ("a b.jsonl", f"{ROW},\n{ROW},\n", 2),
    ("rows.jsonl", f"{ROW}\r{ROW}\r", 2),
    ("rows.jsonl", f"# mine\n{ROW}\n", 1),
    ("rows.jsonl", json.dumps(json.loads(ROW), indent=1) * 2, 2),
    ("it's.json", f'{{"rows": [{ROW}, {ROW}]}}', 2),
    ("rows.json", f'{{"train": [{ROW}], "test": [{ROW}]}}', 1),
    ("rows.json", f"[{TALK}, {TALK}]", 2),
    ("rows.jsonl", f"{TALK}\n{TALK}\n", 2),
    ("rows.jsonl", "prompt,response\nq,a\n", 1),
    ("lists.jsonl", f"[{ROW}, {ROW}]\n[{ROW}]\n", 3),
    ("lists.json", f"[[{ROW}, {ROW}], [{ROW}]]", 3),
    ("viewer.json", f'{{"rows": [{{"row_idx": 0, "row": {ROW}}}]}}', 1),
    ("ids.json", f'{{"a": {ROW}, "b": {ROW}}}', 2),
    ("sequence.jsonl", f"\x1e{ROW}\n\x1e{ROW}\n", 2),
    ("dos.jsonl", f"{ROW}\n{ROW}\n\x1a", 2),
    ("disk.jsonl", f"{ROW}\n{ROW}\n\0\0\0\0", 2),
    ("feeds.jsonl", f"{ROW}\x0b\n{ROW}\x0c\n", 2),
    ("marked.jsonl", f"\ufeff{ROW}\n".encode("utf-16-le"), 1),
    ("marked.jsonl", f"\ufeff{ROW}\n".encode("utf-16-be"), 1),
    ("rows.jsonl", f"{ROW}\n".encode("utf-16-le"), 1),
    ("list.json", f"[{ROW}]".encode("utf-16-be"), 1),
    ("rows.jsonl", f"{ROW}\n".encode("utf-32"), 1),
  ],
)
def test_the_command_makes_rows(tmp_path, name, data, rows):
  path = tmp_path / name
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  message = refused(path)
  start = [
    f"{tool} " for tool in ("sed", "tr", "grep", "jq", "python -c", "iconv")
  ]
  command = min(
    (
      message[message.index(tool) :] for tool in start if f": {tool}" in message
    ),
    key=len,
  )
  if not shutil.which(command.split()[0]):
    pytest.skip(f"{command.split()[0]} is not installed here")
  command = command.replace("python -c", f"{sys.executable} -c", 1)
  subprocess.run(command, shell=True, check=True, cwd=tmp_path)
  made = [f for f in tmp_path.iterdir() if f != path]
  found = cases.read(str(made[0]), "demonstrations")
  assert [row.prompt for row in found] == [(user("q"),)] * rows


@pytest.mark.parametrize(
  ("data", "way_out"),
  [
    (f"{ROW[:-1]},}}\n", "comma before the bracket"),
    (f"[{ROW},\n]", "comma before the bracket"),
    ("{'prompt': 'q'}\n", "json.dumps"),
    (f"{ROW}\n{ROW[:-5]}", "copied or downloaded whole"),
    ('{"prompt": ["a", "b"], "response": ["c", "d"]}', "orient='records'"),
    ('{"prompt": {"0": "a"}, "response": {"0": "c"}}', "orient='records'"),
    (ROW.encode("utf-16-le"), "iconv"),
  ],
)
def test_what_is_wrong_is_told(tmp_path, data, way_out):
  path = tmp_path / "rows.jsonl"
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  assert way_out in refused(path)


def test_a_list_of_lists_of_texts_is_no_conversation(tmp_path):
  path = tmp_path / "rows.json"
  path.write_text('[["q", "a"], ["r", "b"]]')
  assert "messages" not in refused(path)


def test_commands_are_not_given_for_packed_files(tmp_path):
  import gzip

  path = pathlib.Path(tmp_path / "rows.jsonl.gz")
  path.write_bytes(gzip.compress(f"{ROW},\n{ROW},\n".encode()))
  assert "sed" not in refused(path)


def test_labels_on_another_scale_are_refused(write):
  rows = [{"prompt": "q", "response": "a", "label": n} for n in (1, -1, 1)]
  path = write(*rows)
  with pytest.raises(ValueError, match=r"all labels are 1, .*data\.threshold"):
    files.load(path, "labelled", validation_path=path)
  # One odd label among others does not end a run.
  path = write(*rows, rows[0] | {"label": 0})
  assert len(cases.read(path, "labelled")) == 3

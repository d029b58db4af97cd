"""Stages on a GGUF file: the same runs as on the same weights elsewhere."""

import json

import pytest

pytest.importorskip("gguf", reason="needs the package gguf")

from perl_jax.data.text import gguf_tokenizer
from perl_jax.interop import hf_export
from perl_jax.tasks.initial import model, restore
from tests.data.text.messages import assistant, user
from tests.interop.gguf import models
from tests.tasks import test_resume, tiny

pytestmark = pytest.mark.slow
SMALL = {
  "batch_size": 4,
  "steps": 2,
  "model__remat": "none",
  "data__max_len": 120,
  "data__prompt_len": 88,
  "data__response_len": 24,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """`tiny.gguf`, the same model as a directory `hf`, and rows `pairs.jsonl`."""
  root = tmp_path_factory.mktemp("gguf")
  params = models.write(root / "tiny.gguf", "llama_tiny")
  gguf_tokenizer.write_tokenizer(root / "tiny.gguf", root / "hf")
  hf_export.save_model(
    root / "hf",
    models.config("llama_tiny"),
    params,
    hf_export.Stops(tuple(reversed(models.ENDS)), None, 0),
    dtype="float32",
    shard_bytes=10**9,
  )
  rows = [
    {
      "chosen": [user(f"{i} milk"), assistant("in time")],
      "rejected": [user(f"{i} milk"), assistant(f"what {i}?")],
    }
    for i in range(12)
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (root / "pairs.jsonl").write_text(text)
  return root


def fields(root, base):
  return SMALL | {
    "base": str(root / base),
    "data__path": str(root / "pairs.jsonl"),
  }


@pytest.fixture(scope="module")
def rewards(root):
  """Reward models on both; {base: workdir}."""
  found = {}
  for base in ("tiny.gguf", "hf"):
    found[base] = root / f"reward-{base}"
    tiny.run(found[base], "reward", "jsonl", **fields(root, base))
  return found


def test_every_number_is_the_same_as_from_a_directory(rewards):
  first, second = rewards.values()
  assert tiny.lines(first) == tiny.lines(second)
  one, other = tiny.checkpoints(first), tiny.checkpoints(second)
  assert one.keys() == other.keys()
  for name, leaf in one.items():
    assert leaf.tobytes() == other[name].tobytes(), name
  one, other = (
    json.loads((workdir / "model.json").read_text())
    for workdir in (first, second)
  )
  assert one["fingerprint"] == other["fingerprint"]
  assert one["base"]["kind"] == "gguf" and one["base"]["path"]


def test_a_killed_run_goes_on(root, tmp_path, monkeypatch):
  given = fields(root, "tiny.gguf") | {"steps": 4, "eval_every": 2}
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  tiny.run(whole, "reward", "jsonl", **given)
  with monkeypatch.context() as patches, pytest.raises(test_resume.Killed):
    test_resume.kill_before_batch(patches, 4)
    tiny.run(broken, "reward", "jsonl", **given)
  assert tiny.kept(broken) == [2]
  tiny.run(broken, "reward", "jsonl", **given)
  test_resume.same(whole, broken)


@pytest.mark.parametrize(
  ("trained", "given"), [("tiny.gguf", "hf"), ("hf", "tiny.gguf")]
)
def test_a_workdir_goes_on_with_the_other_files(root, rewards, trained, given):
  """The base of an adapter is known by its weights, wherever they lie."""
  options = model.ReadOptions(base=str(root / given))
  start = restore.load(
    rewards[trained], "last", "reward", "reward.init", options=options
  )
  assert start.source["path"] == str(root / given)
  own = restore.load(rewards[trained], "last", "reward", "reward.init")
  assert own.source["path"] == str(root / trained)
  assert start.source["kind"] != own.source["kind"]
  assert start.fingerprint == own.fingerprint


def test_rl_against_it_and_on(root, rewards, tmp_path):
  """The file is found again by what the workdir says, tokenizer included."""
  given = fields(root, "tiny.gguf") | {
    "reward__init": str(rewards["tiny.gguf"]),
    "base": str(root / "tiny.gguf"),
  }
  found = tiny.run(tmp_path / "rl", "rl", "jsonl", **given)
  assert found["kl_at_step_0"] == 0.0
  assert (tmp_path / "rl" / "tokenizer" / "tokenizer.json").is_file()
  evaluated = tiny.run(
    tmp_path / "evaluate",
    "evaluate",
    "jsonl",
    policy__init=str(tmp_path / "rl"),
    reward__init=str(rewards["tiny.gguf"]),
    **{k: v for k, v in given.items() if k.startswith("data__")},
  )
  assert evaluated["policy.reward"] is not None


def test_another_file_in_its_place_is_refused(root, tmp_path):
  base = tmp_path / "moved.gguf"
  base.write_bytes((root / "tiny.gguf").read_bytes())
  given = fields(root, "tiny.gguf") | {"base": str(base)}
  tiny.run(tmp_path / "first", "reward", "jsonl", **given)
  models.write(base, "llama_tiny", params=models.drawn("llama_tiny", seed=9))
  given["base"] = ""
  with pytest.raises(ValueError, match=r"fingerprint.*moved.gguf"):
    tiny.run(
      tmp_path / "second",
      "reward",
      "jsonl",
      reward__init=str(tmp_path / "first"),
      **given,
    )

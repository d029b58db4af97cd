"""model.json with damage: read as it was written, or refused with the field."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perl_jax.models import presets
from perl_jax.models.config import ModelConfig
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import manifest, origin, sealed
from tests import fuzzing
from tests.tasks import tiny

WHOLE = {
  "version": manifest.VERSION,
  "model": presets.preset("gemma2_tiny", vocab_size=400).to_dict(),
  "lora": LoraSpec(rank=2).to_dict(),
  "tuning": "lora",
  "trained": ["policy", "value"],
  "head": "scalar",
  "ensemble": 1,
  "score_at": "",
  "init": {"init": "../sft", "checkpoint": "best"},
  "base": {"kind": "random", "seed": 0, "dtype": "float32"},
  "fingerprint": "ab12",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("stage")


@pytest.fixture(scope="module")
def config(workdir):
  return tiny.config("rl", policy__init=str(workdir))


def use(workdir):
  """What a later stage reads of it."""
  saved = manifest.read_model(workdir, "policy.init")
  for name, made in (("model", ModelConfig), ("lora", LoraSpec)):
    # An older file may lack a field, which then has its default.
    assert made.from_dict(saved[name]).to_dict().items() >= saved[name].items()
  assert isinstance(saved["base"]["dtype"], str) and saved["ensemble"] > 0
  assert isinstance(saved["init"]["init"] + saved["init"]["checkpoint"], str)
  return saved


def fields_of(tree, *parents):
  """Paths of all fields of an object and of the objects in it."""
  for name, value in tree.items():
    yield (*parents, name)
    if isinstance(value, dict):
      yield from fields_of(value, *parents, name)


@pytest.mark.parametrize("path", list(fields_of(WHOLE)), ids=".".join)
def test_a_field_that_is_gone_does_not_take_its_default(tmp_path, path):
  """Not one that older versions did not write, either: the list tells."""
  file = tmp_path / manifest.MODEL_FILE
  file.write_text(json.dumps(WHOLE))
  sealed.write(tmp_path)
  assert use(tmp_path) == WHOLE
  lost = json.loads(json.dumps(WHOLE))
  *parents, last = path
  part = lost
  for parent in parents:
    part = part[parent]
  del part[last]
  file.write_text(json.dumps(lost))
  with pytest.raises(ValueError, match=re.escape(str(file))):
    manifest.read_model(tmp_path, "policy.init")


def test_a_whole_file(workdir):
  (workdir / manifest.MODEL_FILE).write_text(json.dumps(WHOLE))
  assert use(workdir) == WHOLE


@pytest.mark.parametrize(
  "field, value, text",
  [
    ("model", {"width": "64"}, "model: width='64'"),
    ("model", {"rope_theta": True}, "model: rope_theta=True"),
    ("model", {"norm_eps": float("nan")}, "model: norm_eps=nan"),
    ("model", {"widht": 64}, "Did you mean 'width'"),
    ("lora", {"rank": -1}, "lora.rank=-1"),
    ("lora", {"alpha": None}, "lora: alpha=None"),
    ("base", {"dtype": 5}, "base="),
  ],
)
def test_the_field_is_named(workdir, field, value, text):
  damaged = WHOLE | {field: WHOLE[field] | value}
  (workdir / manifest.MODEL_FILE).write_text(json.dumps(damaged))
  with pytest.raises(ValueError) as caught:
    use(workdir)
  assert text in str(caught.value), str(caught.value)
  assert str(workdir / manifest.MODEL_FILE) in str(caught.value)


PARTS = ("model", "lora", "init", "base")


@fuzzing.drawn()
@given(st.data(), st.sampled_from(["", *PARTS]))
def test_fields(workdir, config, data, part):
  whole = WHOLE if not part else WHOLE[part]
  drawn = data.draw(fuzzing.changed(whole))
  saved = drawn if not part else WHOLE | {part: drawn}
  path = workdir / manifest.MODEL_FILE
  path.write_text(json.dumps(saved))
  origin.backbone(config)
  with fuzzing.used_or_refused(path):
    use(workdir)


@fuzzing.drawn()
@given(fuzzing.damaged(json.dumps(WHOLE, indent=2).encode()))
def test_bytes(workdir, content):
  path = workdir / manifest.MODEL_FILE
  path.write_bytes(content)
  with fuzzing.used_or_refused(path):
    use(workdir)

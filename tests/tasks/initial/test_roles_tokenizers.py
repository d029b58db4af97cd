"""A policy and a reward model that exchange token ids."""

import json
import logging
import shutil

import pytest

from perl_jax import roles as roles_lib
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import roles
from perl_jax.tasks.initial.model import Start
from tests import toys
from tests.data.text import families


def start(directory, rows=400, template=None):
  config = toys.config("tiny", vocab_size=rows)
  role = roles_lib.Role(roles_lib.Backbone(config, LoraSpec()), {}, {})
  return Start(role, {}, "", directory, template)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  directory = tmp_path_factory.mktemp("policy")
  return families.write(families.FAMILIES["qwen2.5"], directory)


@pytest.fixture
def pair(written, tmp_path):
  return written, shutil.copytree(written, tmp_path / "reward")


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_copies_are_not_read(pair, monkeypatch):
  monkeypatch.setattr(roles.tokenizer_files, "read", None)
  roles.require_same_tokenizer(*map(start, pair))
  with pytest.raises(
    TypeError
  ):  # a longer embedding may be a longer vocabulary
    roles.require_same_tokenizer(start(pair[0], 401), start(pair[1], 400))


def test_other_bytes_are_read_and_compared(pair, caplog):
  path = pair[1] / "tokenizer.json"
  path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
  with caplog.at_level(logging.INFO, logger="absl"):
    roles.require_same_tokenizer(*map(start, pair))
  assert caplog.text == ""


def test_another_tokenizer_is_refused(pair, tmp_path):
  family = families.FAMILIES["llama3"]
  other = families.write(family, tmp_path / "llama3")
  with pytest.raises(ValueError, match="different tokenizers") as caught:
    roles.require_same_tokenizer(start(pair[0]), start(other))
  for text in (str(pair[0]), str(other), "id 0 is", "same start"):
    assert text in str(caught.value)


def test_a_reward_model_without_a_tokenizer(pair):
  """The error says what to do, and that helps."""
  for path in pair[1].iterdir():
    path.unlink()
  with pytest.raises(ValueError, match=f"copy its files from {pair[0]}"):
    roles.require_same_tokenizer(*map(start, pair))
  shutil.copytree(pair[0], pair[1], dirs_exist_ok=True)
  roles.require_same_tokenizer(*map(start, pair))


def test_another_chat_template_is_a_warning(pair, caplog):
  """Its own renders otherwise; scores are of the policy's rendering."""
  edit(
    pair[1] / "tokenizer_config.json", chat_template="{{ messages[0].content }}"
  )
  roles.require_same_tokenizer(*map(start, pair))
  assert "its chat template is not the policy's" in caplog.text
  caplog.clear()
  template = pair[1] / "adapter.jinja"
  template.write_text(families.FAMILIES["qwen2.5"].template)
  roles.require_same_tokenizer(
    start(pair[0]), start(pair[1], template=template)
  )
  assert caplog.text == ""


def test_what_no_id_shows_is_in_the_log(pair, caplog):
  path = pair[1] / "tokenizer.json"
  found = json.loads(path.read_text())
  more = found["added_tokens"][0] | {"content": "<my_pad>", "id": 399}
  path.write_text(
    json.dumps(found | {"added_tokens": [*found["added_tokens"], more]})
  )
  with caplog.at_level(logging.INFO, logger="absl"):
    roles.require_same_tokenizer(*map(start, pair))
  assert "the reward model alone has '<my_pad>'" in caplog.text

"""PEFT adapters of others: on which base, and with which tokenizer."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
import transformers

from perl_jax import params, tasks
from perl_jax.interop import hf_export, peft
from perl_jax.models.lora import LoraSpec
from perl_jax.tasks.initial import adapter, manifest, model, restore
from tests import toys
from tests.data.text import families
from tests.data.text.messages import system, user
from tests.tasks import tiny

FAMILY = families.FAMILIES["llama3"]
TALK = [system("be kind"), user("hello")]
OTHER = (
  "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n{{ m.content }}"
  "<|eot_id|>{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
SPEC = LoraSpec(rank=2)


def write_base(directory, seed=0, head=False, **changes):
  """A checkpoint with the tokenizer of Llama 3."""
  families.write(FAMILY, directory)
  rows = len(transformers.AutoTokenizer.from_pretrained(directory))
  config = toys.config("llama_tiny", vocab_size=rows, **changes)
  tree = toys.random_params(config, head=head, seed=seed)
  scorer = {"head": tree.pop("head") | {"bias": np.zeros(())}} if head else None
  hf_export.save_model(
    directory,
    config,
    tree,
    hf_export.Stops((1, 5), 0, 0),
    dtype="float32",
    shard_bytes=10**9,
    head=scorer,
  )
  return config


def write_adapter(directory, config, base):
  directory.mkdir()
  tree = toys.random_params(config, SPEC)
  adapter, _ = params.partition(tree, "lora")
  peft.save_adapter(directory, config, SPEC, adapter, base=base)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  root = tmp_path_factory.mktemp("written")
  config = write_base(root / "base")
  write_adapter(root / "adapter", config, str(root / "base"))
  return root


@pytest.fixture
def root(written, tmp_path):
  """A base, an adapter on it, and room for more."""
  shutil.copytree(written, tmp_path, dirs_exist_ok=True)
  name_base(tmp_path, str(tmp_path / "base"))
  return tmp_path


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def name_base(root, name):
  edit(root / "adapter" / peft.CONFIG, base_model_name_or_path=name)


def load(root, base="", shared_with=None, role="policy"):
  options = model.ReadOptions(base=str(base))
  return restore.load(
    root / "adapter", "", role, f"{role}.init", shared_with, options
  )


def refused(root, *texts, base=""):
  with pytest.raises(ValueError) as caught:
    load(root, base)
  for text in texts:
    assert text in str(caught.value)


def same(first, second):
  first, second = (
    params.flatten(params.combine(s.role.adapter, s.role.frozen))
    for s in (first, second)
  )
  return all(np.array_equal(first[path], second[path]) for path in second)


# The base.


@pytest.mark.parametrize("named", [None, "unsloth/llama-3-8b-bnb-4bit", ...])
def test_the_base_that_is_given_goes_first(root, named, caplog):
  """An adapter's config says what its base was called, not where it lies."""
  expected = load(root)
  copy = shutil.copytree(root / "base", root / "copy")
  if named is not ...:
    name_base(root, named)
    shutil.rmtree(root / "base")
  with caplog.at_level(logging.INFO, logger="absl"):
    found = load(root, copy)
  assert found.source["path"] == str(copy) and same(found, expected)
  assert found.fingerprint == expected.fingerprint
  says = str(root / "base") if named is ... else (named or "")
  assert f"is put on the base {copy}" in caplog.text
  assert f"{peft.CONFIG} says {says!r}" in caplog.text
  # It may be an adapter of other weights of the same shapes.
  assert ("which is there too" in caplog.text) == (named is ...)
  caplog.clear()
  (root / "link").symlink_to(copy)
  name_base(root, str(root / "link"))
  load(root, copy)
  assert "which is there too" not in caplog.text


def test_no_base_is_an_error_about_config_base(root, monkeypatch):
  monkeypatch.chdir(root / "base")  # "" is no checkpoint, wherever one stands
  (root / "base/adapter").mkdir()
  for named, text in (
    (None, "names no base"),
    ("", "names no base"),
    ("org/name", "on 'org/name', which is no checkpoint here"),
    ("adapter", "on 'adapter', which is no checkpoint here"),
  ):
    name_base(root, named)
    refused(root, "config.policy.init=", text, "--config.base=PATH")
  refused(
    root, "config.base='/gone/since' is no checkpoint", base="/gone/since"
  )


def test_a_directory_above_adapters_names_them(root):
  """PEFT saves an adapter with a name, and a trainer its steps, below it."""
  for name in ("checkpoint-500", "policy"):
    shutil.copytree(root / "adapter", root / "out" / name)
  with pytest.raises(FileNotFoundError, match="checkpoint-500, policy"):
    restore.load(root / "out", "", "policy", "policy.init")
  shutil.copytree(root / "base", root / "full" / "checkpoint-9")
  with pytest.raises(FileNotFoundError, match="below it: checkpoint-9"):
    restore.load(root / "full", "", "policy", "policy.init")


def test_a_base_of_another_shape_is_refused_and_both_are_named(root):
  write_base(root / "wide", width=24)
  base = str(root / "base")
  refused(root, base, str(root / "wide"), "another base", base=root / "wide")


def test_one_base_by_two_names_is_in_memory_once(root):
  os.symlink(root / "base", root / "link")
  first = load(root)
  second = load(root, root / "link", shared_with=first)
  assert second.role.frozen is first.role.frozen


def test_an_adapter_without_a_head_keeps_the_head_of_its_base(root):
  """As PEFT does, if the adapter says nothing of a task."""
  config = write_base(root / "scoring", head=True)
  tree = toys.random_params(config, head=True)
  edit(root / "adapter" / peft.CONFIG, task_type=None)
  found = load(root, root / "scoring", role="reward").role.head["head"]
  np.testing.assert_array_equal(found["kernel"], tree["head"]["kernel"])


@pytest.mark.parametrize("pad", [None, "<|eom_id|>"])
def test_a_reward_model_is_padded_by_the_tokenizer_beside_the_adapter(
  root, pad
):
  """Else as config.json of its base says."""
  write_base(root / "scoring", head=True)
  edit(root / "scoring" / "config.json", pad_token_id=5)
  edit(root / "adapter" / peft.CONFIG, task_type=None)
  assert load(root, root / "scoring", role="reward").unread_id == 5
  save_tokenizer(root / "adapter", pad_token=pad)
  found = load(root, root / "scoring", role="reward").unread_id
  assert found == (5 if pad is None else 4)
  assert load(root).unread_id is None  # a policy


# A reward model is no policy: transformers draws the head for tokens anew.


@pytest.mark.parametrize(
  "field, way_out",
  [("init", "config.role='reward'"), ("policy.init", "Give the language")],
)
@pytest.mark.parametrize("kind", ["checkpoint", "adapter", "base of one"])
def test_a_reward_model_is_no_policy(root, kind, field, way_out):
  directory = root / "adapter"
  config = write_base(root / "scoring", head=True)
  if kind == "checkpoint":
    directory = root / "scoring"
  elif kind == "base of one":
    name_base(root, str(root / "scoring"))
  else:
    tree = toys.random_params(config, SPEC, head=True)
    head = {"head": tree.pop("head") | {"bias": np.zeros(())}}
    lora, _ = params.partition(tree, "lora")
    base = str(root / "base")
    peft.save_adapter(directory, config, SPEC, lora, base=base, head=head)
  with pytest.raises(ValueError, match="is a reward model") as caught:
    restore.load(directory, "", "policy", field)
  for text in (f"config.{field}={str(directory)!r}", "score.weight", way_out):
    assert text in str(caught.value)
  edit(root / "adapter" / peft.CONFIG, task_type=None)
  assert restore.load(directory, "", "reward", field).role.head is not None


def test_a_base_that_is_a_reward_model_is_no_policy(root):
  write_base(root / "scoring", head=True)
  path, options = str(root / "scoring"), model.ReadOptions()
  with pytest.raises(ValueError, match=f"base={path!r} is a reward model"):
    restore.load_base(path, "policy", options)
  assert restore.load_base(path, "reward", options).role.head is not None
  assert restore.load_base(str(root / "base"), "policy", options) is not None


# The tokenizer.


def save_tokenizer(directory, template=OTHER, **changes):
  """A tokenizer as a trainer saves it beside an adapter."""
  raw = families.write(FAMILY, directory.with_name("raw"))
  tokenizer = transformers.AutoTokenizer.from_pretrained(raw)
  tokenizer.chat_template = template
  for name, value in changes.items():
    setattr(tokenizer, name, value)
  tokenizer.save_pretrained(directory)


def expected_prompt(directory, template=None):
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  return tokenizer.apply_chat_template(
    TALK,
    add_generation_prompt=True,
    chat_template=template,
    return_dict=False,
  )


def prompt(start):
  return start.load_tokenizer().encode_prompt(TALK)[0]


def written_prompt(start, directory):
  """The prompt through the files that a stage leaves."""
  manifest.write_tokenizer(start, directory)
  start = model.Start(start.role, {}, "", directory)
  return prompt(start), start.load_tokenizer().stop_ids


def test_the_tokenizer_of_the_base_if_there_is_no_other(root, caplog):
  with caplog.at_level(logging.INFO, logger="absl"):
    start = load(root)
  assert start.tokenizer == root / "base"
  assert prompt(start) == expected_prompt(root / "base")
  assert f"tokenizer: the base's, {root / 'base'}; none beside" in caplog.text


@pytest.mark.parametrize("own", [None, FAMILY.template])
def test_the_tokenizer_beside_the_adapter(root, own, caplog):
  """With a template where the base has none, or another."""
  edit(root / "base/tokenizer_config.json", chat_template=own)
  save_tokenizer(root / "adapter", eos_token="<|eot_id|>")
  with caplog.at_level(logging.INFO, logger="absl"):
    start = load(root)
  expected = expected_prompt(root / "adapter")
  assert (
    prompt(start) == expected != expected_prompt(root / "base", FAMILY.template)
  )
  assert f"tokenizer: {root / 'adapter'}, beside the adapter" in caplog.text
  # The model stops where it did: generation_config.json is the base's.
  assert set(start.load_tokenizer().stop_ids) == {1, 5}
  found, stops = written_prompt(start, root / "tokenizer")
  assert found == expected and set(stops) == {1, 5}
  kept = (root / "base/config.json").read_bytes()
  assert (root / "tokenizer/config.json").read_bytes() == kept


def test_a_chat_template_alone_goes_with_the_tokenizer_of_the_base(
  root, caplog
):
  """In tokenizer_config.json of the base there is another."""
  (root / "adapter/chat_template.jinja").write_text(OTHER)
  with caplog.at_level(logging.INFO, logger="absl"):
    start = load(root)
  expected = expected_prompt(root / "base", OTHER)
  assert prompt(start) == expected != expected_prompt(root / "base")
  assert f"with {root / 'adapter/chat_template.jinja'}" in caplog.text
  assert written_prompt(start, root / "tokenizer")[0] == expected


@pytest.mark.parametrize("part", ["tokenizer_config.json", "vocab.json"])
def test_a_part_of_a_tokenizer_is_refused(root, part):
  """And either way out of the error is one."""
  save_tokenizer(root / "adapter")
  whole = (root / "adapter/tokenizer.json").read_bytes()
  (root / "adapter/vocab.json").write_text("{}")
  for path in (root / "adapter").glob("*"):
    if path.name not in (part, peft.CONFIG, peft.WEIGHTS):
      path.unlink()
  refused(root, f"part of a tokenizer ({part})", "Copy", "remove that part")
  (root / "adapter/tokenizer.json").write_bytes(whole)
  assert load(root).tokenizer == root / "adapter"
  (root / "adapter/tokenizer.json").unlink()
  (root / "adapter" / part).unlink()
  assert load(root).tokenizer == root / "base"


def test_a_base_that_is_shared_lends_no_tokenizer(root):
  """A reward adapter without a tokenizer has its base's, not the policy's."""
  save_tokenizer(root / "adapter")
  policy = load(root)
  shutil.copytree(root / "adapter", root / "plain" / "adapter")
  for path in (root / "plain/adapter").glob("*token*"):
    path.unlink()
  (root / "plain/adapter/chat_template.jinja").unlink(missing_ok=True)
  other = load(root / "plain", root / "base", shared_with=policy)
  assert other.role.frozen is policy.role.frozen
  assert other.tokenizer == root / "base" and other.model_files is None


def test_an_adapter_beside_the_base_is_not_left_out(root, tmp_path):
  """transformers adds it. One that is merged already is removed."""
  both = shutil.copytree(root / "base", tmp_path / "both")
  shutil.copytree(root / "adapter", both, dirs_exist_ok=True)
  config = tiny.config("dpo", base=str(both))
  with pytest.raises(ValueError, match=r"--config\.policy\.init too"):
    tasks.run(config, tmp_path / "run")
  options = model.ReadOptions(base=str(both))
  found = restore.load(both, "", "policy", "policy.init", options=options)
  assert found.role.adapter is not None
  (both / peft.CONFIG).unlink()
  adapter.require_plain(str(both), "policy")

"""What a model card says of a stage, and a workdir whose files are damaged."""

import json

import pytest

from perl_jax.tasks.initial import manifest
from perl_jax.tasks.training import facts, workdir


def write(root, config):
  (root / manifest.MODEL_FILE).write_text("{}")
  (root / workdir.CONFIG_FILE).write_text(json.dumps(config))


CONFIG = {
  "task": "sft",
  "steps": 4,
  "data": {"name": "coffee_bar"},
  "optimizer": {"learning_rate": 0.5},
}


def test_facts(tmp_path):
  assert facts.training_facts(tmp_path, "last") == {}
  write(tmp_path, CONFIG)
  # What was measured belongs to a checkpoint, and there is none.
  (tmp_path / "summary.json").write_text('{"kl": 0.25, "seconds": 3}')
  assert facts.training_facts(tmp_path, "last") == {
    "task": "sft",
    "steps": 4,
    "data": "coffee_bar",
    "learning_rate": 0.5,
  }


@pytest.mark.parametrize(
  "config, said",
  [
    ({**CONFIG, "data": 5}, "no data.name"),
    ({**CONFIG, "optimizer": {}}, "no optimizer.learning_rate"),
    ([], "not a JSON object"),
  ],
)
def test_damage_is_named(tmp_path, config, said):
  write(tmp_path, config)
  with pytest.raises(ValueError) as caught:
    facts.training_facts(tmp_path, "last")
  assert str(tmp_path / workdir.CONFIG_FILE) in str(caught.value)
  assert said in str(caught.value)

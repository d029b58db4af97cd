"""What may change when a run goes on: no run is made for it."""

import json

import pytest

from perl_jax.tasks.settings import members as settings
from perl_jax.tasks.training import changes, members, nonfinite
from perl_jax.tasks.training import workdir as workdir_lib
from tests.tasks import tiny

CONSTANT = {"optimizer__schedule": "constant"}


def written(workdir, config):
  with workdir_lib.preparing(config, workdir):
    pass
  return workdir


def saved(workdir, step, **meta):
  """What tells of a checkpoint: its metadata."""
  directory = workdir / "checkpoints" / str(step) / "meta"
  directory.mkdir(parents=True)
  (directory / "metadata").write_text(json.dumps(meta))


def refusal(workdir, config):
  before = tiny.tree(workdir)
  with (
    pytest.raises(ValueError, match="another config") as caught,
    workdir_lib.preparing(config, workdir),
  ):
    pass
  assert tiny.tree(workdir) == before
  return str(caught.value)


def goes_on(workdir, config):
  with workdir_lib.preparing(config, workdir):
    pass
  text = (workdir / "config.json").read_text()
  assert json.loads(text) == json.loads(config.to_json())


@pytest.mark.parametrize(
  ("task", "field", "value"),
  [
    ("sft", "log_every", 3),
    ("sft", "eval_every", 3),
    ("sft", "eval.samples", 3),
    ("sft", "eval.batch_size", 4),
    ("sft", "model.remat", "full"),
    ("sft", "model.scan_unroll", 2),
    ("sft", "microbatches", 2),
    ("reward", "report_checkpoint", "last"),
    ("reward", "microbatches", 2),
    ("reward", "data.pad_to_multiple_of", 16),
    ("rl", "score_microbatches", 2),
    ("rl", "rollouts.layout", "train"),
    ("rl", "rollouts.buckets", (4, 8)),
    ("rl", "fit", "off"),
    ("rl", "judge.timeout", 1.0),
    ("rl", "judge.rows", 4),  # nobody judges
  ],
)
def test_what_is_not_learned_from_may_change(tmp_path, task, field, value):
  workdir = written(tmp_path / "run", tiny.config(task))
  saved(workdir, 2)
  goes_on(workdir, tiny.override(tiny.config(task), {field: value}))


@pytest.mark.parametrize(
  ("task", "field", "value"),
  [
    ("sft", "seed", 1),
    ("sft", "batch_size", 16),
    ("sft", "optimizer.learning_rate", 0.5),
    ("reward", "lora.dropout", 0.5),
    ("reward", "eval.rows", 4),
    ("rl", "beta", 0.5),
    ("rl", "model.dtype", "bfloat16"),
    ("rl", "policy.checkpoint", "last"),
  ],
)
def test_what_is_learned_from_may_not(tmp_path, task, field, value):
  """The message gives the flag with which the command goes on."""
  config = tiny.config(task)
  workdir = written(tmp_path / "run", config)
  message = refusal(workdir, tiny.override(tiny.config(task), {field: value}))
  assert f"config.{field}: " in message
  before = dict(config)
  for part in field.split("."):
    before = before[part]
  assert f"add --config.{field}={before}." in message


def test_a_run_has_one_judge_or_goes_on_without(tmp_path):
  config = tiny.config("rl", judge__by="gold", best="judge")
  workdir = written(tmp_path / "run", config)
  saved(workdir, 2)
  for field, value in (("judge.rows", 4), ("judge.by", "mine:f")):
    other = tiny.override(tiny.config("rl"), {
      "judge.by": "gold", "best": "judge", field: value
    })  # fmt: skip
    message = refusal(workdir, other)
    assert "are those of one judge" in message
  message = refusal(workdir, tiny.config("rl", judge__by="gold"))
  assert "config.best: 'judge' -> 'reward'" in message
  assert "compared by the other one" in message
  config = tiny.config("rl", judge__by="gold")
  workdir = written(tmp_path / "other", config)
  saved(workdir, 2)
  assert "--config.judge.by=" in refusal(
    workdir, tiny.config("rl", judge__by="gold", judge__rows=4)
  )
  goes_on(workdir, tiny.config("rl"))


@pytest.mark.parametrize("above", [(), ("rl",)])
def test_rl_of_a_version_with_fields_that_it_did_not_read_goes_on(
  tmp_path, above
):
  """Alone, and as a stage of a pipeline."""
  config = tiny.pipeline() if above else tiny.config("rl")
  workdir = written(tmp_path / "run", config)
  fields = json.loads(config.to_json())
  part = fields
  for name in above:
    part = part[name]
  assert not {"temperature", "greedy"} & set(part["eval"])
  part["eval"] |= {"temperature": 0.3, "greedy": True}
  (workdir / "config.json").write_text(json.dumps(fields))
  (workdir / "sha256.txt").unlink(missing_ok=True)
  goes_on(workdir, config)


def test_weight_decay_that_an_optimizer_did_not_take_may_go(tmp_path):
  name, decay = "optimizer.name", "optimizer.weight_decay"
  sgd = tiny.override(tiny.config("sft"), {name: "sgd", decay: 0.1})
  workdir = written(tmp_path / "run", sgd)
  goes_on(workdir, tiny.override(tiny.config("sft"), {name: "sgd"}))
  adamw = tiny.override(tiny.config("sft"), {decay: 0.1})
  workdir = written(tmp_path / "other", adamw)
  assert f"config.{decay}: 0.1 -> 0.0" in refusal(workdir, tiny.config("sft"))


def test_how_other_stages_sample_for_an_evaluation_stays(tmp_path):
  workdir = written(tmp_path / "run", tiny.config("dpo"))
  for field, value in (("eval.temperature", 0.3), ("eval.greedy", True)):
    other = tiny.override(tiny.config("dpo"), {field: value})
    assert f"config.{field}: " in refusal(workdir, other)


def test_a_run_of_a_version_without_judges_goes_on(tmp_path):
  config = tiny.config("rl")
  workdir = written(tmp_path / "run", config)
  saved(workdir, 2)
  fields = json.loads(config.to_json())
  del fields["judge"], fields["best"]
  (workdir / "config.json").write_text(json.dumps(fields))
  (workdir / "sha256.txt").unlink(missing_ok=True)
  refusal(workdir, tiny.config("rl", judge__by="gold", best="judge"))
  goes_on(workdir, tiny.config("rl", judge__by="gold"))


def test_microbatches_with_dropout_stay(tmp_path):
  """Only where the dropout is on: not in RL, nor with full tuning."""
  fields = {"lora__dropout": 0.1, "microbatches": 2}
  for task, tuning in (("rl", "lora"), ("sft", "full")):
    first = tiny.config(task, tuning=tuning, **fields)
    workdir = written(tmp_path / task, first)
    other = fields | {"microbatches": 4}
    goes_on(workdir, tiny.config(task, tuning=tuning, **other))
  workdir = written(tmp_path / "reward", tiny.config("reward", **fields))
  other = tiny.config("reward", **(fields | {"microbatches": 4}))
  message = refusal(workdir, other)
  assert "config.microbatches: 2 -> 4: each microbatch draws dropout" in message
  other = tiny.config("reward", data__pad_to_multiple_of=16, **fields)
  assert "each place in its rows (lora.dropout=0.1)" in refusal(workdir, other)


def test_more_steps_where_the_schedule_allows_it(tmp_path):
  """And what had finished with fewer has not finished any more."""
  workdir = written(tmp_path / "run", tiny.config("sft", **CONSTANT))
  saved(workdir, 4)
  (workdir / "summary.json").write_text("{}")
  fewer = tiny.config("sft", **CONSTANT, steps=3)
  assert "4 -> 3: 4 steps have been made" in refusal(workdir, fewer)
  assert (workdir / "summary.json").exists()
  goes_on(workdir, tiny.config("sft", **CONSTANT, steps=6))
  assert not (workdir / "summary.json").exists()


def test_a_schedule_that_ends_with_the_steps(tmp_path):
  config = tiny.config("reward")
  assert config.optimizer.schedule == "cosine"
  workdir = written(tmp_path / "run", config)
  goes_on(workdir, tiny.config("reward", steps=5))  # nothing is made yet
  saved(workdir, 2)
  message = refusal(workdir, tiny.config("reward", steps=6))
  assert "config.steps: 5 -> 6: the cosine schedule falls to 0" in message
  assert f"--config.reward.init={workdir} and another --workdir" in message
  assert "add --config.steps=5." in message


def test_members_are_each_compared_with_what_they_were(tmp_path):
  """A lower rate is for one that has met a number which is not finite."""

  def config(rates, seeds="0,1"):
    vary = f"seed={seeds} optimizer.learning_rate={rates}"
    return tiny.config("reward", tuning="lora", vary=vary)

  def place(number):
    return members.place_of(workdir, number)

  first = config("0.01,0.02")
  workdir = written(tmp_path / "run", first)
  for number, own in enumerate(settings.configs_of(first)):
    written(place(number), own)
    saved(place(number), 2)
  lower = config("0.01,0.005")
  assert "config.optimizer.learning_rate: 0.02 -> 0.005" in refusal(
    place(1), settings.configs_of(lower)[1]
  )
  (place(1) / nonfinite.DIRECTORY).mkdir()
  (place(1) / nonfinite.DIRECTORY / nonfinite.STOP).write_text('{"step": 3}')
  goes_on(workdir, lower)
  for number, own in enumerate(settings.configs_of(lower)):
    goes_on(place(number), own)
  both = config("0.001,0.005")
  assert "config.optimizer.learning_rate" in refusal(
    place(0), settings.configs_of(both)[0]
  )
  assert "config.vary: " in refusal(workdir, config("1,2,3", "0,1,2"))
  assert "config.vary: " in refusal(workdir, tiny.config("reward"))


def test_a_run_has_no_members_later(tmp_path):
  workdir = written(tmp_path / "run", tiny.config("reward", tuning="lora"))
  other = tiny.config("reward", tuning="lora", members=2)
  assert "config.members: 1 -> 2" in refusal(workdir, other)


def test_one_path_in_several_spellings(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  workdir = written(tmp_path / "run", tiny.config("sft", policy__init="a/b"))
  for path in ("a/b/", "./a/b", "a//b", str(tmp_path / "a/b"), "~/a/c/../b"):
    goes_on(workdir, tiny.config("sft", policy__init=path))
  message = refusal(workdir, tiny.config("sft", policy__init="a/c"))
  assert "whether the same lies there is known only" in message
  saved(workdir, 2, **{changes.ENTRY: {"base": "0"}})
  goes_on(workdir, tiny.config("sft", policy__init="a/c"))


def test_a_pipeline(tmp_path):
  """Stages have the rules, and what has finished is not trained further."""
  config = tiny.pipeline(rl__optimizer__schedule="constant")
  workdir = written(tmp_path / "run", config)
  (workdir / "rl").mkdir()
  more = {"rl__optimizer__schedule": "constant", "rl__steps": 9}
  goes_on(workdir, tiny.pipeline(**more, reward__log_every=7))
  (workdir / "rl" / "summary.json").write_text("{}")
  message = refusal(workdir, tiny.pipeline(**(more | {"rl__steps": 11})))
  assert "config.rl.steps: 9 -> 11: the stage has finished" in message
  assert "a pipeline does not read again" in refusal(
    workdir, tiny.pipeline(**more, data__dir="elsewhere")
  )


def test_every_rule_is_of_fields_that_there_are():
  """A field that is renamed takes its rule along."""
  configs = [tiny.config(t) for t in ("sft", "reward", "rl", "dpo")]
  configs += [tiny.pipeline(), tiny.config("judge")]
  for rule in changes.RULES:
    for field in rule.fields:
      found = 0
      for config in configs:
        node = config
        for part in field.split("."):
          node = node.get(part) if hasattr(node, "get") else None
        found += node is not None
      assert found, field

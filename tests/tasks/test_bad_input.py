"""What a user gets wrong: one clear error each, and nothing half-written.

An error names the file or the field, the value, and the way out. After it a
workdir that was not there is not there, and one that was is as it was.
"""

import json

import pytest

from perl_jax import tasks
from perl_jax.tasks.training import standing, workdir
from tests.tasks import tiny

ROWS = [
  {"prompt": f"a {size} {drink} please", "response": f"{size} {drink}"}
  for size in ("small", "large", "huge")
  for drink in ("mocha", "latte", "tea", "cortado", "chai", "water")
]


def refused(tmp_path, config, *texts, error=ValueError):
  """Runs a config that must be refused; returns the message."""
  workdir = tmp_path / "run"
  with pytest.raises(error) as caught:
    tasks.run(config, workdir)
  message = str(caught.value)
  for text in texts:
    assert text in message, message
  assert not workdir.exists()
  return message


def write_rows(tmp_path, lines, name="rows.jsonl"):
  path = tmp_path / name
  path.write_text("".join(line + "\n" for line in lines))
  return path


def jsonl(tmp_path, lines, task="sft", **overrides):
  path = write_rows(tmp_path, lines)
  return tiny.config(task, "jsonl", data__path=str(path), **overrides)


def test_missing_file(tmp_path):
  write_rows(tmp_path, map(json.dumps, ROWS), "orders.jsonl")
  path = tmp_path / "order.jsonl"
  config = tiny.config("sft", "jsonl", data__path=str(path))
  near = f"Did you mean {tmp_path / 'orders.jsonl'}?"
  refused(tmp_path, config, str(path), near, error=FileNotFoundError)


def test_missing_directory_of_a_public_data_set(tmp_path):
  config = tiny.config(
    "reward", "taskmaster_coffee", data__dir=str(tmp_path / "copies"),
    tuning="full",
  )  # fmt: skip
  refused(tmp_path, config, str(tmp_path / "copies"), error=FileNotFoundError)


def test_path_is_needed(tmp_path):
  refused(tmp_path, tiny.config("sft", "jsonl"), "path", ".jsonl")


def test_malformed_json_line(tmp_path):
  lines = [*map(json.dumps, ROWS[:2]), '{"prompt": "a tea", "response" "tea"}']
  refused(tmp_path, jsonl(tmp_path, lines), "rows.jsonl:3", "column 32")


@pytest.mark.parametrize(
  "row, texts",
  [
    ({"prompt": "a tea", "chosen": "tea", "rejekted": "x"},
     ("rows.jsonl:1", "'rejected'", "Is 'rejekted' a slip?")),
    ({"prmpt": "a tea"}, ("rows.jsonl:1", "'prmpt' for 'prompt'")),
    ({"prompt": "a tea", "response": 3}, ("rows.jsonl:1", "'response'", "3")),
    ({"prompt": "a tea", "response": "tea", "label": "good"},
     ("rows.jsonl:1", "'label'", "good")),
  ],
)  # fmt: skip
def test_wrong_field(tmp_path, row, texts):
  refused(tmp_path, jsonl(tmp_path, [json.dumps(row)]), *texts)


def test_rows_of_another_stage(tmp_path):
  """Demonstrations are no preferences: the fields that are needed are named."""
  fields = {"loss": "pairwise", "tuning": "full"}
  config = jsonl(tmp_path, map(json.dumps, ROWS), "reward", **fields)
  refused(tmp_path, config, "preferences", "prompt/chosen/rejected")


@pytest.mark.parametrize("lines", [[], ["", ""]])
def test_empty_data_set(tmp_path, lines):
  refused(tmp_path, jsonl(tmp_path, lines), "rows.jsonl", "empty")


def test_fewer_rows_than_a_batch(tmp_path):
  config = jsonl(tmp_path, map(json.dumps, ROWS), batch_size=64)
  refused(tmp_path, config, "batch_size=64")


def test_one_group_cannot_be_split(tmp_path):
  lines = [json.dumps(ROWS[0])] * 8
  refused(tmp_path, jsonl(tmp_path, lines), "rows.jsonl", "validation_path")


def test_prompt_that_is_longer_than_its_room(tmp_path):
  config = tiny.config("sft", data__prompt_len=8)
  refused(tmp_path, config, "coffee_bar/prompts/validation/0", "8")


def test_lengths_that_the_model_has_no_room_for(tmp_path, sft_run):
  config = tiny.config("reward", reward__init=str(sft_run), data__max_len=1000)
  refused(tmp_path, config, "max_len=1000", "the model takes 137")


def test_response_that_leaves_no_room_for_its_prompt(tmp_path, sft_run):
  config = tiny.config(
    "reward", reward__init=str(sft_run), data__max_len=16, data__prompt_len=8
  )
  refused(tmp_path, config, "coffee_bar/preferences/validation/0", "16")


@pytest.mark.parametrize(
  "task, field, value, texts",
  [
    ("sft", "model__preset", "tinny", ("model.preset='tinny'", "'tiny'")),
    ("sft", "data__name", "coffe_bar", ("'coffe_bar'", "'coffee_bar'")),
    ("sft", "tuning", "lorra", ("tuning='lorra'", "'lora'")),
    ("sft", "steps", 0, ("config.steps=0",)),
    ("sft", "eval_every", 0, ("config.eval_every=0",)),
    ("sft", "microbatches", 3, ("batch_size=8", "microbatches=3")),
    ("sft", "mesh__data", 3, ("batch_size", "3")),
    ("sft", "mesh__data", 9, ("mesh data=9", "8 devices")),
    ("sft", "optimizer__name", "adamx", ("optimizer.name='adamx'", "'adamw'")),
    ("sft", "optimizer__schedule", "cosin", ("'cosin'", "'cosine'")),
    ("sft", "data__vocab_size", 100, ("vocab_size=100", "263")),
    ("sft", "data__long", "tail", ("tail",)),
    ("sft", "data__tokenizer", "/no/such", ("/no/such",)),
    ("sft", "model__remat", "some", ("model.remat='some'",)),
    ("reward", "loss", "pairwize", ("config.loss='pairwize'", "pairwise")),
    ("reward", "report_checkpoint", "first", ("'first'", "'best'")),
    ("reward", "lora__rank", 0, ("lora.rank",)),
    ("reward", "lora__rank", -1, ("lora.rank=-1",)),
    ("reward", "lora__targets", "attn", ("lora.targets='attn'",)),
    ("reward", "lora__dropout", 1.0, ("lora.dropout=1.0",)),
    ("reward", "data__options__label_noise", 0.9, ("label_noise", "0.9")),
  ],
)  # fmt: skip
def test_value_of_a_field(tmp_path, sft_run, task, field, value, texts):
  config = tiny.config(task, **{field: value})
  if task == "reward":
    config.reward.init = str(sft_run)
  refused(tmp_path, config, *texts, error=(ValueError, FileNotFoundError))


@pytest.mark.parametrize("task", ["sft", "reward", "rl", "dpo"])
def test_an_adapter_on_random_weights(tmp_path, task):
  """They would stay as they are, and what comes out would look real."""
  role = "reward" if task == "reward" else "policy"
  config = tiny.config(task, tuning="lora")
  if task == "rl":
    config.reward.fn = "perl_jax.data.coffee_bar:gold_reward"
  refused(
    tmp_path, config, f"config.{role}.init and config.base are empty",
    "random weights", f"config.{role}.init to the workdir of configs/sft.py",
  )  # fmt: skip


def test_a_task_that_there_is_not(tmp_path):
  config = tiny.override(tiny.config("sft"), {"task": "stf"})
  refused(tmp_path, config, "config.task='stf'", "'sft'")


@pytest.mark.parametrize(
  "field, value, texts",
  [
    ("beta", 1.5, ("config.beta=1.5", "[0, 1]")),
    ("sampling__top_p", 0.9, ("top_p=0.9", "top_p=1")),
    ("sampling__top_k", 5, ("top_k=5", "top_k=0")),
    ("sampling__temperature", 0.0, ("temperature=0.0", "greedy")),
    ("reduction", "mean", ("config.reduction='mean'", "'sequence'")),
    ("reward__init", "", ("config.reward.init is empty", "configs/reward.py")),
    ("estimator", "ppoo", ("config.estimator='ppoo'", "'ppo'?")),
    ("estimator", "rloo", ("config.estimator='rloo'", "samples_per_prompt")),
    ("kl__estimator", "k3", ("config.kl.estimator='k3'", "'k1'")),
    ("ppo__epochs", 2, ("ppo.epochs=2", "grpo")),
    ("ppo__clip_low", 2.0, ("config.ppo.clip_low=2.0", "in [0, 1]")),
    ("kl__target", -1.0, ("config.kl.target=-1.0", "0 for a fixed")),
    (
      "rollouts__buckets",
      (4, 32),
      ("config.rollouts.buckets=(4, 32)", "data.response_len=12"),
    ),
    ("rollouts__refill", 3, ("config.rollouts.refill=3", "slots=0")),
    ("rollouts__layout", "fsdp", ("config.rollouts.layout='fsdp'", "decode")),
    ("microbatches", 3, ("config.batch_size=8", "config.microbatches")),
    ("score_microbatches", 3, ("3 parts", "config.score_microbatches")),
    ("value__init", "zero", ("config.value.init='zero'", "'policy'")),
    ("policy__checkpoint", "newest", ("'newest'", "'best'")),
    ("value__warmup_steps", 4, ("value.warmup_steps=4", "config.steps=4")),
    ("lora__rank", 3, ("lora", "rank=3")),
    ("eval__batch_size", 3, ("eval.batch_size=3", "2")),
  ],
)  # fmt: skip
def test_value_of_a_field_of_rl(
  tmp_path, sft_run, reward_run, field, value, texts
):
  overrides = {
    "policy__init": str(sft_run),
    "reward__init": str(reward_run),
    "value__init": "reward",
    "mesh__data": 2,
  }
  config = tiny.config("rl", **overrides | {field: value})
  refused(tmp_path, config, *texts)


def test_minibatches_divide_over_the_mesh(tmp_path):
  config = tiny.config(
    "rl", estimator="ppo", ppo__minibatches=4, mesh__data=4, microbatches=1,
    policy__init="none", reward__init="none",
  )  # fmt: skip
  refused(tmp_path, config, "config.ppo.minibatches=4", "= 4 devices")


@pytest.mark.parametrize("task", ["reward", "rl"])
def test_init_that_is_no_workdir(tmp_path, task, sft_run):
  config = tiny.config(task, reward__init=str(tmp_path / "nothing"))
  if task == "rl":
    config.policy.init = str(sft_run)
  field = f"config.reward.init={str(tmp_path / 'nothing')!r}"
  refused(tmp_path, config, field, "model.json", error=FileNotFoundError)


def test_init_that_has_no_checkpoint_yet(tmp_path, sft_run):
  early = tmp_path / "early"
  early.mkdir()
  (early / "model.json").write_bytes((sft_run / "model.json").read_bytes())
  config = tiny.config("reward", reward__init=str(early))
  refused(tmp_path, config, str(early), error=FileNotFoundError)


def test_reward_init_without_a_head(tmp_path, sft_run):
  config = tiny.config("rl", policy__init=str(sft_run))
  config.reward.init = str(sft_run)
  refused(tmp_path, config, "no scalar head", "configs/reward.py")


def test_nothing_to_evaluate(tmp_path):
  refused(tmp_path, tiny.config("evaluate"), "policy.init", "reward.init")


def test_report_of_nothing(tmp_path):
  config = __import__("configs.report", fromlist=["get_config"]).get_config()
  refused(tmp_path, config, "no such directory", error=FileNotFoundError)


def test_workdir_of_another_config(tmp_path, sft_run):
  before = tiny.tree(sft_run)
  config = tiny.config("sft", lora__rank=7, seed=3)
  with pytest.raises(ValueError) as caught:
    tasks.run(config, sft_run)
  message = str(caught.value)
  assert str(sft_run) in message and "another --workdir" in message
  assert "config.lora.rank: 2 -> 7" in message
  assert "config.seed: 0 -> 3" in message
  assert "config.steps" not in message
  assert tiny.tree(sft_run) == before


def test_workdir_of_another_pipeline(finished):
  before = tiny.tree(finished)
  with pytest.raises(ValueError, match=r"config\.rl\.beta: [\d.]+ -> 0\.1\n"):
    tasks.run(tiny.pipeline(rl__beta=0.1), finished)
  assert tiny.tree(finished) == before


def test_workdir_that_is_a_file(tmp_path):
  path = tmp_path / "run"
  path.write_text("mine")
  with pytest.raises(ValueError, match="is a file"):
    tasks.run(tiny.config("sft"), path)
  assert path.read_text() == "mine"


def test_own_directory_keeps_only_what_was_in_it(tmp_path):
  """A stale tokenizer would be taken by the next, corrected command."""
  workdir = tmp_path / "run"
  (workdir / "mine").mkdir(parents=True)
  (workdir / "mine" / "notes.txt").write_text("keep")
  with pytest.raises(ValueError, match="coffee_bar/prompts"):
    tasks.run(tiny.config("sft", data__prompt_len=8), workdir)
  assert tiny.tree(workdir) == {"mine/notes.txt": b"keep"}


@pytest.mark.slow
def test_a_tokenizer_of_a_start_that_was_killed(tmp_path, monkeypatch):
  """It is of other rows, and nothing says so: the run has no config yet."""
  run, other = tmp_path / "run", {"data__vocab_size": 420}

  def killed(*_, **__):
    raise SystemExit  # and no one cleans up

  with monkeypatch.context() as patched:
    patched.setattr(workdir, "_remove_new", lambda *_: None)
    patched.setattr(standing, "of_run", killed)
    with pytest.raises(SystemExit):
      tasks.run(tiny.config("sft", steps=1, eval_every=1), run)
  assert (run / "tokenizer").is_dir() and not (run / "config.json").exists()
  tasks.run(tiny.config("sft", steps=1, eval_every=1, **other), run)
  saved = json.loads((run / "tokenizer" / "tokenizer.json").read_text())
  assert len(saved["model"]["vocab"]) > 400


@pytest.mark.slow
def test_non_finite_update_stops_with_the_step(tmp_path):
  config = tiny.config(
    "sft", optimizer__learning_rate=1e30, steps=8, eval_every=8, log_every=4
  )
  with pytest.raises(FloatingPointError) as caught:
    tasks.run(config, tmp_path / "run")
  message = str(caught.value)
  assert message.startswith("Step 1: the update of policy/")
  assert "--config.optimizer.learning_rate (it is 1e+30)" in message
  assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


@pytest.mark.slow
def test_learning_rate_0_is_no_error(tmp_path):
  config = tiny.config(
    "sft", optimizer__learning_rate=0.0, steps=2, eval_every=1, eval__rows=0
  )
  tasks.run(config, tmp_path / "run")
  rows = tiny.lines(tmp_path / "run")
  losses = [r["validation/loss"] for r in rows if "validation/loss" in r]
  assert len(losses) == 2 and losses[0] == losses[1]

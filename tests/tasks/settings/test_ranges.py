"""The table of ranges: every number of every config is in it, and it holds."""

import importlib
import pathlib

import pytest
from ml_collections import ConfigDict

from configs import common
from perl_jax import tasks
from perl_jax.tasks.settings import leaves, ranges
from tests.tasks import tiny

NAN, INF = float("nan"), float("inf")
FILES = sorted(
  path.stem
  for path in pathlib.Path(common.__file__).parent.glob("*.py")
  if path.stem not in ("__init__", "common")
)


def configs():
  """(what was asked for, config) of every file with every argument it takes."""
  for name in FILES:
    get_config = importlib.import_module(f"configs.{name}").get_config
    for arg in (None, *common.DATASETS):
      try:
        yield f"{name}:{arg}", get_config(arg)
      except ValueError:
        assert arg is not None  # it takes no argument


def paths(config, above=""):
  """Dotted names of the fields of a config."""
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from paths(value, f"{above}{name}.")
    else:
      yield f"{above}{name}"


# Lists of numbers that configs leave empty.
MAY_BE_EMPTY = ("data.train_folds", "rollouts.buckets", "profile.steps")


def test_every_number_of_every_config_has_a_range():
  """By the type that a flag must have: a field may be None and filled later."""
  seen = set()
  for asked, config in configs():
    ranges.check(config)
    numbers = [(n.path, n.value) for n in ranges.numbers(config)]
    expected, found = [], list(leaves.leaves(config))
    assert [leaf.path for leaf in found] == list(paths(config))
    for leaf in found:
      kind = leaf.section.get_type(leaf.name.rpartition(".")[2])
      whole = leaf.value if kind is tuple else (leaf.value,)
      items = [v for v in whole if type(v) in (int, float)]
      if kind in (int, float) or items or leaf.name in MAY_BE_EMPTY:
        name = f"{leaf.task}.{leaf.name}"
        name = name if name in ranges.RANGES else leaf.name
        assert name in ranges.RANGES, (asked, leaf.path)
        seen.add(name)
        expected += [(leaf.path, item) for item in items]
    assert numbers == expected, asked
  # No row of the table is left over from a field that is gone.
  assert seen == set(ranges.RANGES)


@pytest.mark.parametrize(
  "task, field, value, text",
  [
    ("sft", "optimizer__learning_rate", -0.001, "of at least 0 (a negative"),
    ("sft", "optimizer__learning_rate", NAN, "at least 0"),
    ("sft", "optimizer__learning_rate", INF, "at least 0"),
    ("sft", "optimizer__learning_rate", 1e39, "at least 0"),
    ("sft", "optimizer__clip_norm", -1.0, "turns the gradient round"),
    ("sft", "optimizer__clip_norm", NAN, "at least 0"),
    ("sft", "optimizer__warmup_steps", -3, "a whole number of at least 0"),
    ("sft", "optimizer__b1", 1.0, "in [0, 1)"),
    ("sft", "optimizer__b1", 1.5, "in [0, 1)"),
    ("sft", "optimizer__b2", 2.0, "in [0, 1)"),
    ("sft", "optimizer__weight_decay", -1.0, "at least 0"),
    ("sft", "eval__rows", -5, "at least 0"),
    ("sft", "eval__batch_size", 0, "at least 1"),
    ("sft", "eval__temperature", -0.1, "at least 0"),
    ("sft", "log_every", 0, "at least 1"),
    ("sft", "eval_every", 0, "at least 1"),
    ("sft", "save__every_steps", -1, "at least 0"),
    ("sft", "save__every_seconds", -1.0, "at least 0"),
    ("sft", "save__every_seconds", NAN, "at least 0"),
    ("sft", "save__keep", 0, "at least 1"),
    ("sft", "steps", 0, "at least 1"),
    ("sft", "steps", 2**31, "at least 1"),
    ("sft", "batch_size", -8, "at least 1"),
    ("sft", "microbatches", 0, "at least 1"),
    ("sft", "seed", -1, "[0, 4294967295]"),
    ("sft", "lora__alpha", NAN, "above 0"),
    ("sft", "lora__alpha", 0.0, "above 0"),
    ("sft", "lora__alpha", INF, "above 0"),
    ("sft", "lora__rank", -1, "at least 0"),
    ("sft", "lora__dropout", 1.0, "in [0, 1)"),
    ("sft", "data__folds", 1, "at least 2"),
    ("sft", "data__fold", -1, "at least 0"),
    ("sft", "data__limit", -1, "at least 0"),
    ("sft", "data__max_len", 0, "at least 1"),
    ("sft", "data__buckets", (0,), "at least 1"),
    ("sft", "data__buckets", (8, 2.5), "a whole number"),
    ("sft", "data__buckets", (8, "16"), "a whole number"),
    ("sft", "data__options__label_noise", 0.6, "in [0, 0.5]"),
    ("sft", "mesh__data", 0, "at least 1, or -1"),
    ("sft", "mesh__fsdp", -2, "at least 1, or -1"),
    ("sft", "model__scan_unroll", 0, "at least 1"),
    ("reward", "ensemble", 0, "at least 1"),
    ("reward", "probe_rows", -1, "a new head at zeros"),
    ("reward", "member_share", 0.0, "in (0, 1]"),
    ("dpo", "beta", 0.0, "above 0"),
    ("dpo", "label_smoothing", 0.5, "in [0, 0.5)"),
    ("rl", "beta", 1.5, "in [0, 1]"),
    ("rl", "kl__target", -1.0, "0 for a fixed"),
    ("rl", "kl__horizon", 0, "at least 1"),
    ("rl", "sampling__temperature", 0.0, "above 0"),
    ("generate", "sampling__temperature", 0.0, "set sampling.greedy"),
    ("generate", "samples_per_prompt", 0, "at least 1"),
    ("rl", "sampling__top_p", 0.0, "in (0, 1]"),
    ("rl", "sampling__top_p", NAN, "in (0, 1]"),
    ("rl", "sampling__top_k", -1, "at least 0"),
    ("rl", "reward__std_weight", -1.0, "at least 0"),
    ("rl", "reward__fn_weight", NAN, "a finite number"),
    ("rl", "unstopped_penalty", NAN, "at least 0"),
    ("rl", "samples_per_prompt", 0, "at least 1"),
    ("rl", "entropy_coef", -0.1, "at least 0"),
    ("rl", "value_coef", -1.0, "at least 0"),
    ("rl", "value__learning_rate", -1.0, "at least 0"),
    ("rl", "value__warmup_steps", -1, "at least 0"),
    ("rl", "ppo__epochs", 0, "at least 1"),
    ("rl", "ppo__minibatches", 0, "at least 1"),
    ("rl", "score_microbatches", 0, "at least 1"),
    ("rl", "ppo__clip_low", 1.5, "in [0, 1]"),
    ("rl", "ppo__clip_high", -0.1, "at least 0"),
    ("rl", "ppo__value_clip", -0.1, "at least 0"),
    ("rl", "ppo__discount", 1.1, "in [0, 1]"),
    ("rl", "ppo__gae_lambda", NAN, "in [0, 1]"),
    ("evaluate", "eval__samples", -1, "at least 0"),
  ],
)
def test_a_number_out_of_range(tmp_path, task, field, value, text):
  """It is refused before the workdir is made, as a field of a pipeline too."""
  shown = value[-1] if isinstance(value, tuple) else value
  configs_ = {"": tiny.config(task, **{field: value})}
  if task in ("sft", "reward", "rl", "evaluate"):
    configs_[f"{task}."] = tiny.pipeline(**{f"{task}__{field}": value})
  for stage, config in configs_.items():
    with pytest.raises(ValueError) as caught:
      tasks.run(config, tmp_path / "run")
    message = str(caught.value)
    name = field.replace("__", ".")
    assert message.startswith(f"config.{stage}{name}={shown!r} must be ")
    assert text in message, message
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "task, fields",
  [
    ("sft", {"optimizer__learning_rate": 0.0, "optimizer__clip_norm": 0.0}),
    ("sft", {"optimizer__clip_norm": 1e9, "optimizer__b1": 0.0}),
    ("sft", {"eval__rows": 0, "eval__temperature": 0.0, "mesh__data": -1}),
    ("rl", {"beta": 1.0, "kl__target": 0.0, "reward__fn_weight": -2.0}),
    ("sft", {"seed": 2**32 - 1, "data__buckets": ()}),
  ],
)
def test_limits_that_belong_to_the_range(task, fields):
  ranges.check(tiny.config(task, **fields))


def test_all_that_is_wrong_is_said_at_once():
  config = tiny.pipeline(sft__steps=0, evaluate__eval__rows=-1)
  with pytest.raises(
    ValueError, match=r"rows=-1 must .*; config\.sft\.steps=0"
  ):
    ranges.check(config)


def test_other_configs():
  """An export and a plan; and a number of a user's own that no row is for."""
  for name, field in (("export", "shard_bytes"), ("plan", "vocab_size")):
    config = importlib.import_module(f"configs.{name}").get_config()
    ranges.check(config)
    config[field] = -1
    with pytest.raises(ValueError, match=f"config.{field}=-1"):
      tasks.run(config, "nowhere")
  own = ConfigDict({"task": "sft", "mine": {"number": -7.5}})
  ranges.check(own)
  own.mine.number = NAN
  with pytest.raises(ValueError, match=r"config\.mine\.number=nan .* finite"):
    ranges.check(own)


def test_a_field_of_a_section_that_another_task_has():
  """`beta` is DPO's above 0 and RL's in [0, 1], also below another name."""
  config = ConfigDict(
    {"task": "pipeline", "late": {"task": "dpo", "beta": 2.0}}
  )
  ranges.check(config)
  config.late.task = "rl"
  with pytest.raises(ValueError, match=r"config\.late\.beta=2\.0"):
    ranges.check(config)

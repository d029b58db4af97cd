"""Fields that several configs share, and what a data set changes in them.

Plain values only: no field is derived from another one, so that an override
leaves no stale value behind. A field that is None depends on the backbone, and
the command fills it in: `perl_jax/tasks/settings/defaults.py`.
"""

from ml_collections import ConfigDict, config_dict

from perl_jax import names

DATASETS = (
  "coffee_bar",
  "taskmaster_coffee",
  "taskmaster_ticketing",
  "hh_rlhf",
  "jsonl",
)


def dataset(arg: str | None) -> str:
  """The data set that a config was asked for, `configs/rl.py:NAME`."""
  name = arg or "coffee_bar"
  if name not in DATASETS:
    hint = names.did_you_mean(name, DATASETS)
    raise ValueError(
      f"There is no data set {name!r}.{hint} Known: {', '.join(DATASETS)}."
    )
  return name


def model(name: str) -> ConfigDict:
  """The backbone that is initialised at random where no `init` is given."""
  return ConfigDict(
    {
      "preset": "small" if name == "coffee_bar" else "medium",
      "scan_unroll": 4,
      "remat": "none",
      "dtype": config_dict.placeholder(str),
      "attention": "auto",
    }
  )


def lora() -> ConfigDict:
  """Adapters on every attention projection, as in the paper."""
  return ConfigDict(
    {
      "rank": 8,
      "alpha": 16.0,
      "dropout": 0.0,
      "rslora": False,
      "targets": "attention",
    }
  )


def data(name: str) -> ConfigDict:
  """Where rows come from, and their largest lengths in tokens."""
  config = ConfigDict(
    {
      "name": name,
      "dir": "",
      "path": "",
      "validation_path": "",
      "cache": "",
      "tokenizer": "",
      "vocab_size": 4096,
      "folds": 5,
      "fold": 0,
      "split_seed": 0,
      "train_folds": (),
      "limit": 0,
      "ignore": (),
      "columns": "",
      "margin": 0.0,
      "threshold": "",
      "preview": 0,
      "max_len": 512,
      "prompt_len": 384,
      "response_len": 128,
      "buckets": (128, 256),
      "pad_to_multiple_of": 8,
      "long": "cut",
      "options": {},
    }
  )
  if name == "coffee_bar":
    config.update(
      {
        "vocab_size": 1024,
        "max_len": 64,
        "prompt_len": 40,
        "response_len": 24,
        "buckets": (40,),
        "long": "error",
        "options": {
          "size": 20_000,
          "validation_size": 512,
          "demo_quality": 0.5,
          "label_noise": 0.1,
        },
      }
    )
  if name == "taskmaster_coffee":
    config.update({"max_len": 384, "prompt_len": 320, "response_len": 64})
    config.buckets = (96, 192)
  if name == "taskmaster_ticketing":
    config.update({"max_len": 1024, "prompt_len": 928})
    config.buckets = (256, 512, 768)
  if name == "hh_rlhf":
    config.long = "drop"  # a few replies are longer than a whole row may be
  if name == "jsonl":
    config.long = "turns"
  return config


def optimizer(
  warmup_steps: int, learning_rate: float | None = None
) -> ConfigDict:
  """AdamW with clipping."""
  rate = config_dict.placeholder(float)
  rate.set(learning_rate)
  return ConfigDict(
    {
      "name": "adamw",
      "schedule": "cosine",
      "learning_rate": rate,
      "warmup_steps": warmup_steps,
      "b1": 0.9,
      "b2": 0.99,
      "weight_decay": 0.0,
      "clip_norm": 1.0,
    }
  )


def evaluation(
  rows: int, batch_size: int = 64, temperature: float = 0.7
) -> ConfigDict:
  """How many rows a stage is evaluated on, and how responses are sampled."""
  return ConfigDict(
    {
      "rows": rows,
      "batch_size": batch_size,
      "samples": 64,
      "temperature": temperature,
      "greedy": False,
    }
  )


def evaluation_as_trained(rows: int, batch_size: int = 64) -> ConfigDict:
  """The same of RL, which samples for it as it does to learn: `sampling`."""
  found = evaluation(rows, batch_size)
  del found.temperature, found.greedy
  return found


def rewards() -> ConfigDict:
  """The reward of a response: a model or an ensemble, a function, or both.

  `score_at` is where the model's score is read, "template" or "turn"; "" is
  where it was trained to be read, and the template's end if that is not known.
  `timeout` is the longest that a call of the function may take, in seconds; 0
  is no limit.
  """
  return ConfigDict(
    {
      "init": "",
      "checkpoint": "best",
      "score_at": "",
      "combine": "mean",
      "std_weight": 1.0,
      "fn": "",
      "fn_weight": 1.0,
      "timeout": 1800.0,
    }
  )


def judging() -> ConfigDict:
  """How judges are read and asked, in the task `judge` and during RL.

  `same_rows` is "refuse" or "warn": what to do about a reward model that was
  trained on the rows of the policy's own one. `reward` says how reward models
  that judge are read; `endpoint` where a language model that judges is served.
  `timeout` is the longest that a call of a function may take, in seconds.
  """
  reward = rewards()
  for field in ("init", "fn", "fn_weight", "timeout"):
    del reward[field]
  reward.checkpoint = "auto"
  temperature = config_dict.placeholder(float)
  temperature.set(0.0)
  return ConfigDict(
    {
      "same_rows": "refuse",
      "reward": reward,
      "endpoint": {
        "url": "",
        "model": "",
        "template": "",
        "key_variable": "PERL_JAX_ENDPOINT_KEY",
        "max_tokens": 512,
        "temperature": temperature,
        "options": "",
        "parallel": 4,
        "request_seconds": 120.0,
      },
      "timeout": 1800.0,
    }
  )


def saving() -> ConfigDict:
  """When checkpoints are made, beside those of each evaluation.

  Every so many steps and every so many seconds (0 for never); `keep` of the
  latest checkpoints are kept, and the best.
  """
  return ConfigDict({"every_steps": 0, "every_seconds": 600.0, "keep": 2})


def tracking() -> ConfigDict:
  """How a run is called in the `trackers`: "wandb", "mlflow", "trackio".

  `project` is "perl_jax" if it is "" and the tracker's own environment says
  none; `run` is the name of the workdir. `samples` says whether samples of
  prompts and responses may be sent. docs/trackers.md
  """
  return ConfigDict({"project": "", "run": "", "samples": False})


def mesh() -> ConfigDict:
  """All devices on the data axis."""
  return ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})


def stage(task: str, name: str) -> ConfigDict:
  """Fields that every training stage has.

  `members` is the number of adapters that are trained at once on one base, with
  the seeds `seed`, `seed + 1` and so on; or `vary` lists what they differ in,
  "optimizer.learning_rate=1e-4,3e-4". docs/members.md
  `fit` says what to do with a run that does not fit in the devices' memory:
  "refuse", "warn" or "off". `nonfinite` says what to do at a loss, gradient or
  update that is not finite: "stop", or "skip" that update, and stop after
  `nonfinite_limit` of them in a row. `profile.steps` are the first and the last
  step of a trace, (10, 13).
  """
  return ConfigDict(
    {
      "task": task,
      "seed": 0,
      "members": 1,
      "vary": "",
      "tuning": config_dict.placeholder(str),
      "base": "",
      "base_dtype": config_dict.placeholder(str),
      "model": model(name),
      "lora": lora(),
      "data": data(name),
      "mesh": mesh(),
      "microbatches": 1,
      "save": saving(),
      "profile": {"steps": ()},
      "fit": "refuse",
      "nonfinite": "stop",
      "nonfinite_limit": 10,
      "trackers": (),
      "tracking": tracking(),
    }
  )

